"""Where the files of an encoder are, the hash of its weights, and reading its parts."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from diffsight.backbones.cards import Card, assets, cards, find_card
from diffsight.backbones.encoders.kinds import ADVICE
from diffsight.backbones.encoders.processing import Processor, processed
from diffsight.backbones.folders import PICKLES, one_line, read_json
from diffsight.backbones.hub import download, repositories, repository
from diffsight.backbones.opened import quiet
from diffsight.errors import ModelError

_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
_TITLES = {"clip": "CLIP", "siglip": "SigLIP", "dinov2": "DINOv2"}


def locate(
    name: str, *, kind: str, vocabulary: Sequence[str] = (), revision: str | None = None
) -> tuple[Path, Card | None, str]:
    """The folder with a model's files, downloaded if need be; its card; its revision.

    Args:
        name: A card's name, a Hub repository (``"hf:org/repo"``) or a local folder.
        kind: What ``config.json`` must call it.
        vocabulary: Files of its tokenizer.
        revision: A commit, tag or branch of the Hub repository.

    Raises:
        ModelError: If it is not there, cannot be reached, or is something else.
    """
    folder, card, found = _folder(name, kind, vocabulary, revision)
    if (folder / "model_index.json").exists():
        raise ModelError(f"{name} is a diffusion pipeline and no {_TITLES[kind]}. Load it with diffsight.load.")
    config = read_json(folder / "config.json", f"no {_TITLES[kind]} model: it has no config.json")
    if (is_of := config.get("model_type")) != kind:
        raise ModelError(f"{name} is a model of the type {is_of!r}, and {kind!r} is needed here.")
    return folder, card, found


def content_hash(folder: Path, others: Sequence[str] = (), *, kind: str) -> str:
    """SHA-256 over the safetensors files of a folder and some others that are there, by content and in order.

    Args:
        folder: The model's.
        others: Files that change numbers as well, such as the tokenizer's vocabulary.
        kind: The class of transformers that could convert what is no safetensors.

    Raises:
        ModelError: If the folder has no safetensors.
    """
    weights = sorted(file for file in folder.glob("model*.safetensors") if ".fp16." not in file.name)
    if not weights:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        found = f"holds its weights only as a pickle ({pickles[0]})" if pickles else "holds no model.safetensors"
        raise ModelError(
            f"{folder} {found}. A pickle can run code when it is read, so diffsight reads safetensors only. Where a "
            f"repository has nothing else, convert it once where you trust it, with {kind}.from_pretrained(REPO)"
            ".save_pretrained(FOLDER), copy its tokenizer and preprocessor files, and give that folder."
        )
    digest = hashlib.sha256()
    for file in (*weights, *(folder / name for name in others if (folder / name).exists())):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def reading(name: str | Path, folder: Path, *, hint: str = "") -> Iterator[None]:
    """While transformers reads a model's parts: no chatter, and what it raises told in one line.

    Raises:
        ModelError: If it raises anything.
    """
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{name} in {folder} cannot be loaded: {one_line(error)}{hint}") from error


def read_network(kind: Any, folder: Path, dtype: torch.dtype, *, spared: str | None = None) -> Any:  # noqa: ANN401
    """A network of transformers with all its weights.

    Args:
        kind: Its class.
        folder: Where it is.
        dtype: Of its weights.
        spared: Part of the name of weights that may be missing.

    Raises:
        ModelError: If others are missing: transformers would fill them with random numbers.
    """
    network, report = kind.from_pretrained(
        folder, use_safetensors=True, dtype=dtype, local_files_only=True, output_loading_info=True
    )
    missing = sorted(key for key in report["missing_keys"] if spared is None or spared not in key)
    if missing:
        raise ModelError(
            f"The weights in {folder} lack {', '.join(missing[:3])} ({len(missing)} in all). Get them again."
        )
    return network


def made_size(processor: Processor) -> tuple[int, int]:
    """Height and width of the images that a processor makes."""
    height, width = processed(processor, [Image.new("RGB", (5, 3))]).shape[-2:]
    return height, width


def check_size(folder: Path, made: tuple[int, int], read: int) -> None:
    """Refuse a processor that makes other images than the network reads.

    Raises:
        ModelError: If it does.
    """
    if set(made) != {read}:
        raise ModelError(
            f"The preprocessor of {folder} makes images of {made[0]}×{made[1]} pixels, but the network reads "
            f"{read}×{read}. Give the folder the model's own preprocessor_config.json."
        )


def limit_tokens(tokenizer: PreTrainedTokenizerBase, positions: int) -> None:
    """Tell a tokenizer how much the network reads; some repositories do not, and it then believes in no limit."""
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)


def _folder(name: str, kind: str, vocabulary: Sequence[str], revision: str | None) -> tuple[Path, Card | None, str]:
    patterns = [*_FILES, *vocabulary, "model*.safetensors", "model.safetensors.index.json"]
    if name.startswith("hf:"):
        folder, found = download([repository(name, revision)], patterns, advice=ADVICE)
        return folder, None, found
    path = Path(name).expanduser()
    if name not in cards() and (path.exists() or "/" in name or "\\" in name):
        if not path.is_dir():
            said = "is a file" if path.exists() else "does not exist"
            raise ModelError(
                f"{name} {said}. Give the folder that save_pretrained writes, with its preprocessor_config.json and "
                "tokenizer; a Hub model is written 'hf:org/repo@revision'."
            )
        return path, None, "local"
    card = find_card(name)
    if card.family != kind:
        raise ModelError(f"{name} is a diffusion model and no {_TITLES[kind]}. Load it with diffsight.load.")
    if card.embedded:
        return assets() / card.embedded, card, "embedded"
    folder, found = download(repositories(card, revision), patterns, advice=ADVICE)
    return folder, card, found
