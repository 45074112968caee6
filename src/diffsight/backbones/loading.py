"""`load`: from a name, a Hub repository or a local diffusers folder to a backbone."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from diffsight.backbones.base import Backbone, resolve_device, resolve_dtype
from diffsight.backbones.cards import Card, assets, cards, find_card
from diffsight.backbones.families import family_of
from diffsight.backbones.folders import listed, one_line, part_folder, read_json, settings_hash, weights_hash
from diffsight.backbones.hub import download, repositories, repository
from diffsight.backbones.opened import Opened, quiet
from diffsight.backbones.own.embeddings import read_embeddings
from diffsight.backbones.own.loras import read_loras
from diffsight.backbones.own.model_file import ModelFile, is_model_file, read_model_file
from diffsight.backbones.small_memory import check_text_encoder
from diffsight.errors import ModelError

log = logging.getLogger(__name__)

# The first DDPM repositories have no sub-folders; in others, what lies beside the index is another format.
_BESIDE = ("model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors")
_FILES = (*_BESIDE, "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors")
_IGNORED = ("*.fp16.*", "*.fp16-*", "*.non_ema.*", "safety_checker/*", "*.msgpack")


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    text_encoder: str | None = None,
) -> Backbone:
    """Load a diffusion model.

    Args:
        name: A card's name (``"tiny-fashion"``, ``"sd-1.5"``; `diffsight ls models` lists them), a Hub repository
            (``"hf:org/repo"`` or ``"hf:org/repo@revision"``), a local folder in diffusers' format, or a model file
            (``"mine.yaml"``), which adds what the user trained: see docs/adapters.md.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.
        revision: A commit, tag or branch of the Hub repository instead of the card's.
        text_encoder: Where the GPU's memory is small: ``"offload"`` keeps text encoders in main memory, ``"8bit"`` and
            ``"4bit"`` quantise them with bitsandbytes. By default what a model file says, or neither.

    Returns:
        The backbone in evaluation mode, its weights frozen.

    Raises:
        ModelError: If the model is unknown, cannot be reached, is no supported pipeline, or has no safetensors; or if a
            model file has a mistake or names what does not fit.
        InputError: If the device or dtype does not exist, or the way to keep text encoders.
    """
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    check_text_encoder(text_encoder)
    own = read_model_file(name) if is_model_file(name) else ModelFile(base=str(name))
    if own.base in cards() and find_card(own.base).family == "clip":
        raise ModelError(f"{own.base} is a CLIP model and draws nothing: it is for 'diffsight match' alone.")
    folder, card, found_revision = _locate(own.base, revision)
    index = read_json(folder / "model_index.json", "no diffusers model: it has no model_index.json")
    family = family_of(index, own.base)
    parts = tuple(part for part in family.parts if listed(index, part))
    kept = parts if own.denoiser is None else tuple(part for part in parts if part != family.denoiser)
    provenance = {"revision": found_revision, "weights": weights_hash(folder, kept), **own.provenance()}
    if found_revision == "local" or own.denoiser is not None:  # A commit and a version stand for all their files.
        tuned = [own.denoiser] if own.denoiser is not None and own.denoiser.is_dir() else []
        places = [*tuned, *(part_folder(folder, part) for part in (kept if tuned else parts))]
        provenance["settings"] = settings_hash(places, folder)
    if card and card.weights and kept == parts and card.weights != provenance["weights"]:
        raise ModelError(
            f"The weights of {card.name} in {folder} are not those of its card (SHA-256 {provenance['weights'][:12]}… "
            f"and not {card.weights[:12]}…): a damaged or foreign copy. Install or download it again."
        )
    encoders = text_encoder or own.text_encoder
    readers = [part for part in parts if part.startswith("text_encoder")]
    if encoders in ("8bit", "4bit") and readers:
        provenance["text_encoder"] = encoders
    opened = Opened(
        folder=folder,
        called=card.name if card and own.base == str(name) else str(name),
        card=card,
        index=index,
        provenance=provenance,
        device=chosen_device,
        dtype=chosen_dtype,
        own_denoiser=own.denoiser,
        encoders=encoders,
    )
    try:
        with quiet():
            opened = replace(
                opened,
                loras=read_loras(own.lora, index["_class_name"], parts, opened.denoiser_folder(family.denoiser)),
                embeddings=read_embeddings(own.embeddings, family.module, readers),
            )
            return import_module(f"diffsight.backbones.models.{family.module}").open_folder(opened)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
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
                f"{name} is a file. Give the folder that diffusers' save_pretrained writes (with model_index.json), or "
                "make one of a single .safetensors file with 'diffsight convert'."
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
