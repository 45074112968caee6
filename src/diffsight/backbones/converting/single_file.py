"""A whole pipeline in one safetensors file, as model sites publish them, turned once into a diffusers folder."""

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from diffsight.backbones.cards import Card, cards, find_card
from diffsight.backbones.families import family_of
from diffsight.backbones.folders import PICKLES, one_line, own_settings, read_json
from diffsight.backbones.hub import download, repositories
from diffsight.backbones.opened import quiet
from diffsight.errors import InputError, ModelError

_CONFIGURATION = ("*.json", "*/*.json", "*/*.txt", "*/*.model")
_MODULES = ("latent_unet", "sdxl", "mmdit", "flux")


def single_file_kinds() -> tuple[str, ...]:
    """The cards that a single file may be of: families of which diffusers knows the authors' own names."""
    return tuple(name for name, card in cards().items() if card.family in _MODULES and card.repo)


def convert_single_file(
    checkpoint: Path | str, out: Path | str, *, kind: str, config: Path | str | None = None
) -> Path:
    """Write a folder in diffusers' format with a single file's weights, whole or not at all.

    The names are translated by diffusers. What a file does not hold, such as the T5 of FLUX, is taken from ``config``
    if its weights are there.

    Args:
        checkpoint: A safetensors file with the names that the model's authors use.
        out: The folder; it must not exist.
        kind: The card of the model that it was made from; see `single_file_kinds`.
        config: A diffusers folder of that model, from which the configuration, scheduler and tokenizers are. By default
            the card's repository.

    Returns:
        The folder.

    Raises:
        InputError: If the kind is unknown, or the folder exists.
        ModelError: If the file is a pickle, cannot be read, or is no such model; or the folder cannot be written.
    """
    import diffusers

    checkpoint, out = Path(checkpoint), Path(out)
    card = _card(kind)
    if out.exists():
        raise InputError(f"{out} exists already. Remove it, or give another folder.")
    _check_file(checkpoint)
    folder = _configuration(card) if config is None else Path(config)
    index = read_json(folder / "model_index.json", "no diffusers model: it has no model_index.json")
    if (found := family_of(index, str(folder)).module) != card.family:
        raise ModelError(f"{folder} is a {index['_class_name']} ({found}), and {kind} is another kind of model.")
    if find_spec("accelerate") is None:
        # Without it diffusers would fill in what a file lacks with random numbers, and say nothing.
        raise ModelError("Converting a single file needs accelerate, which is not installed: pip install accelerate")
    try:
        with quiet():
            pipeline = getattr(diffusers, index["_class_name"]).from_single_file(
                str(checkpoint), config=str(folder), local_files_only=True
            )
    except Exception as error:  # Whatever diffusers' translation raises at a file that is something else.
        raise ModelError(
            f"{checkpoint} is no whole {kind} in one file that diffusers can read: {one_line(error)}"
        ) from error
    for part, network in pipeline.components.items():
        if isinstance(network, nn.Module) and any(each.is_meta for each in network.parameters()):
            raise ModelError(f"{checkpoint} has not all weights of the {part} of a {kind}. Is it another kind?")
    own = own_settings(folder) | {"converted_from": {"file": checkpoint.name, "kind": kind}}
    if card.transform:
        own = {"transform": dict(card.transform)} | own
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place, quiet():
            unfinished = Path(place) / out.name
            pipeline.save_pretrained(unfinished, safe_serialization=True)
            (unfinished / "diffsight.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
            unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out} cannot be written, and nothing of it was left: {one_line(error)}.") from error
    return out


def _card(kind: str) -> Card:
    if kind not in single_file_kinds():
        raise InputError(f"{kind!r} is not known as a single file. Use one of {', '.join(single_file_kinds())}.")
    return find_card(kind)


def _check_file(checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise ModelError(f"There is no file {checkpoint}.")
    if checkpoint.suffix in PICKLES:
        raise ModelError(
            f"{checkpoint} is a pickle, which can run code when it is read. Take the .safetensors that most sites "
            "offer beside it, or save its state dict as that where you trust it: "
            f"safetensors.torch.save_file(torch.load({checkpoint.name!r}, weights_only=True)['state_dict'], "
            f"{checkpoint.stem + '.safetensors'!r})."
        )
    if checkpoint.suffix != ".safetensors":
        raise ModelError(f"{checkpoint} is no .safetensors file.")


def _configuration(card: Card) -> Path:
    """The files that say how a card's model is built, without its weights."""
    return download(
        repositories(card, None), _CONFIGURATION, advice="a local diffusers folder of the same kind with --config"
    )[0]
