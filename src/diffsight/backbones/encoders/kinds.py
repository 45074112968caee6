"""What a name means among transformers' models: CLIP, SigLIP, DINOv2, or none of them."""

from pathlib import Path

from diffsight.backbones.cards import find_card
from diffsight.backbones.folders import read_json
from diffsight.backbones.hub import download, repository
from diffsight.errors import ModelError

ADVICE = "a local folder instead of the name"


def model_type(name: str | Path) -> str | None:
    """What ``config.json`` says a model of transformers is: ``"clip"``, ``"siglip"``, ``"dinov2"``, ….

    Of a card its family decides, of a local folder what is in it. Of a Hub repository ``config.json`` is fetched (or
    found in the cache): a few kilobytes, which loading needs anyway, and which a diffusion pipeline does not have.

    Args:
        name: A card's name, ``"hf:org/repo"`` or ``"hf:org/repo@revision"``, or a local folder.

    Returns:
        None for a diffusion model, and for what does not exist or cannot be reached: loading it then says so.
    """
    name = str(name)
    folder = Path(name).expanduser()
    if name.startswith("hf:"):
        try:
            folder, _ = download([repository(name, None)], ["config.json", "model_index.json"], advice=ADVICE)
        except ModelError:
            return None
    else:
        try:
            card = find_card(name)
        except ModelError:
            pass
        else:
            return card.family if card.family == "clip" else None
    try:
        kind = read_json(folder / "config.json", "").get("model_type")
    except ModelError:
        return None
    return kind if isinstance(kind, str) and not (folder / "model_index.json").exists() else None
