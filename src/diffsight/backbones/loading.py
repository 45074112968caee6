"""`load`: from a name, a Hub repository or a local diffusers folder to a backbone."""

import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from diffsight.backbones.base import Backbone, resolve_device, resolve_dtype
from diffsight.backbones.cards import Card, assets, cards, find_card
from diffsight.backbones.families import family_of
from diffsight.backbones.folders import listed, one_line, read_json, weights_hash
from diffsight.backbones.hub import download, repositories, repository
from diffsight.backbones.opened import Opened, quiet
from diffsight.errors import ModelError

log = logging.getLogger(__name__)

# The first DDPM repositories have no sub-folders; in others, what lies beside the index is another format.
_BESIDE = ("model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors")
_FILES = (*_BESIDE, "*/*.json", "*/*.txt", "*/*.safetensors")
_IGNORED = ("*.fp16.*", "*.non_ema.*", "safety_checker/*", "*.msgpack")


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Backbone:
    """Load a diffusion model.

    Args:
        name: A card's name (``"tiny-fashion"``, ``"sd-1.5"``; `diffsight ls models` lists them), a Hub repository
            (``"hf:org/repo"`` or ``"hf:org/repo@revision"``), or a local folder in diffusers' format.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.
        revision: A commit, tag or branch of the Hub repository instead of the card's.

    Returns:
        The backbone in evaluation mode, its weights frozen.

    Raises:
        ModelError: If the model is unknown, cannot be reached, is no supported pipeline, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    if str(name) in cards() and find_card(str(name)).family == "clip":
        raise ModelError(f"{name} is a CLIP model and draws nothing: it is for 'diffsight match' alone.")
    folder, card, found_revision = _locate(str(name), revision)
    index = read_json(folder / "model_index.json", "no diffusers model: it has no model_index.json")
    family = family_of(index, str(name))
    parts = tuple(part for part in family.parts if listed(index, part))
    provenance = {"revision": found_revision, "weights": weights_hash(folder, parts)}
    if card and card.weights and card.weights != provenance["weights"]:
        raise ModelError(
            f"The weights of {card.name} in {folder} are not those of its card (SHA-256 {provenance['weights'][:12]}… "
            f"and not {card.weights[:12]}…): a damaged or foreign copy. Install or download it again."
        )
    opened = Opened(
        folder=folder,
        called=card.name if card else str(name),
        card=card,
        index=index,
        provenance=provenance,
        device=chosen_device,
        dtype=chosen_dtype,
    )
    try:
        with quiet():
            return import_module(f"diffsight.backbones.{family.module}").open_folder(opened)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name} in {folder} cannot be loaded: {one_line(error)}") from error


def _locate(name: str, revision: str | None) -> tuple[Path, Card | None, str]:
    """The folder with the model's files, downloading them if need be; its card; its revision."""
    if name.startswith("hf:"):
        repo, wanted = repository(name, revision)
        folder, found = _download([(repo, wanted)])
        card = next((card for card in cards().values() if repo in (card.repo, *card.mirrors)), None)
        return folder, card, found
    path = Path(name).expanduser()
    if name not in cards() and (path.is_dir() or path.exists() or "/" in name or "\\" in name):
        if not path.exists():
            raise ModelError(f"The folder {name} does not exist. A Hub model is written 'hf:org/repo@revision'.")
        if not path.is_dir():
            raise ModelError(
                f"{name} is a file. Give the folder that diffusers' save_pretrained writes (with model_index.json)."
            )
        return path, None, "local"
    card = find_card(name)
    if card.embedded:
        return assets() / card.embedded, card, "embedded"
    if card.checkpoint:
        raise ModelError(
            f"{name} is not to be had in a form that diffsight reads. Download {card.checkpoint} and convert it once: "
            f"diffsight convert {card.checkpoint.rpartition('/')[2]} --kind {name} --out FOLDER. Then give that folder."
        )
    folder, found = _download(repositories(card, revision))
    return folder, card, found


def _download(candidates: Sequence[tuple[str, str | None]]) -> tuple[Path, str]:
    advice = "a local diffusers folder instead of the name, or use --model tiny-fashion"
    return download(candidates, _FILES, ignored=_IGNORED, advice=advice)
