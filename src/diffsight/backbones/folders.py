"""A diffusers folder on the disk: where its parts are, what their files say, and the hash of their weights."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffsight.errors import ModelError

_VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")
_FORMS = (".fp16.", ".fp16-", ".non_ema.")  # Of the same weights beside full precision; with a dash in parts of a file.
# Of a network's configuration, what says who wrote it; and of a tokenizer's, what says how it reads.
_ABOUT = ("_class_name", "_diffusers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_ABOUT += ("transformers_version", "_commit_hash")
_READING = ("model_max_length", "pad_token", "bos_token", "eos_token", "unk_token", "add_bos_token", "add_eos_token")
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def part_folder(folder: Path, part: str) -> Path:
    """Where a part of a pipeline is: in the folder of its name, but beside the index in the first DDPM repositories."""
    beside = not (folder / part).is_dir() and (folder / "config.json").exists()
    return folder if beside else folder / part


def listed(index: Mapping[str, Any], part: str) -> bool:
    """Whether ``model_index.json`` says that a pipeline has a part. The first DDPM repositories list none."""
    return part not in index or bool(index[part] and any(index[part]))


def weights_hash(folder: Path, parts: tuple[str, ...]) -> str:
    """SHA-256 over the safetensors files of the named parts and the tokenizers' vocabularies, by content and in order.

    Raises:
        ModelError: If a part holds only pickles or a variant, or no weights at all.
    """
    vocabulary = [place / name for place in sorted(folder.glob("tokenizer*")) for name in _VOCABULARIES]
    return files_hash([*_weight_files(folder, parts), *(path for path in vocabulary if path.exists())])


def files_hash(files: Iterable[Path]) -> str:
    """SHA-256 over the SHA-256 of each file, in order."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def settings_hash(places: Iterable[Path], folder: Path) -> str:
    """SHA-256 over what the files beside the weights say that changes numbers, such as heads, activations and padding.

    Args:
        places: The folders of the networks.
        folder: Of the pipeline, with the tokenizers.

    Raises:
        ModelError: If a file cannot be read.
    """
    said = [_read_if_there(place / "config.json") for place in places]
    kept = [{key: value for key, value in each.items() if key not in _ABOUT} for each in said]
    for place in sorted(folder.glob("tokenizer*")):
        found = [_read_if_there(place / name) for name in ("special_tokens_map.json", "tokenizer_config.json")]
        kept += [{key: each[key] for key in _READING if key in each} for each in found]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def read_json(path: Path, without: str) -> dict[str, Any]:
    """The content of a JSON file.

    Args:
        path: The file.
        without: What its folder is said to be if the file is not there.

    Raises:
        ModelError: If it is not there, or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent} is {without}.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__} and no JSON object.")
    return content


def own_settings(folder: Path) -> dict[str, Any]:
    """What the folder's diffsight.json says, for what diffusers' own files have no place for; empty without one.

    Raises:
        ModelError: If there is one that cannot be read.
    """
    return _read_if_there(folder / "diffsight.json")


def one_line(error: Exception) -> str:
    """The message of a library's error, short enough for ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _read_if_there(file: Path) -> dict[str, Any]:
    return read_json(file, "") if file.exists() else {}


def _weight_files(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    for part in parts:
        place = part_folder(folder, part)
        found = sorted(place.glob("*.safetensors"))
        if not found:
            pickles = [file.name for file in place.glob("*") if file.suffix in PICKLES]
            if pickles:
                raise ModelError(
                    f"{place} holds its weights only as a pickle ({pickles[0]}), which can run code when it is "
                    f"read; diffsight reads safetensors only. Convert it once where you trust it: "
                    f"pipeline.save_pretrained(FOLDER, safe_serialization=True)."
                )
            raise ModelError(
                f"{place} holds no weights (*.safetensors). Either the copy is not complete, or the repository "
                f"has them only as a pickle, which diffsight does not read: convert it once where you trust it, with "
                f"pipeline.save_pretrained(FOLDER, safe_serialization=True), and give that folder."
            )
        # A repository may hold the same weights in several precisions: full precision is the reference.
        plain = [file for file in found if not any(form in file.name for form in _FORMS)]
        if not plain:
            raise ModelError(
                f"{place} holds only a variant of its weights ({found[0].name}). Get those without it in the name; or, "
                "to use this one, take it out of the names of its files, and of what their .index.json says."
            )
        yield from plain
