"""Where an image encoder's files are, and the hash of its weights."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from diffsight.backbones.folders import PICKLES
from diffsight.backbones.hub import download, repository
from diffsight.backbones.kinds import ADVICE, model_type
from diffsight.errors import ModelError

_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")


def locate(name: str, *, kind: str, vocabulary: Sequence[str] = (), revision: str | None = None) -> tuple[Path, str]:
    """The folder with a model's files, downloaded if need be, and its revision.

    Args:
        name: A Hub repository (``"hf:org/repo"``) or a local folder.
        kind: What ``config.json`` must call it.
        vocabulary: Files of its tokenizer.
        revision: A commit, tag or branch of the Hub repository.

    Raises:
        ModelError: If it is not there, cannot be reached, or is something else.
    """
    if name.startswith("hf:"):
        patterns = [*_FILES, *vocabulary, "model*.safetensors", "model.safetensors.index.json"]
        folder, found = download([repository(name, revision)], patterns, advice=ADVICE)
    else:
        folder, found = Path(name).expanduser(), "local"
        if not folder.is_dir():
            said = "is a file" if folder.exists() else "does not exist"
            raise ModelError(
                f"{name} {said}. Give the folder that save_pretrained writes, with its preprocessor_config.json; a Hub "
                "model is written 'hf:org/repo@revision'."
            )
    if (is_of := model_type(folder)) != kind:
        raise ModelError(f"{name} is a model of the type {is_of!r}, and {kind!r} is needed here.")
    return folder, found


def content_hash(folder: Path, others: Sequence[str] = ()) -> str:
    """SHA-256 over the safetensors files of a folder and some others that are there, by content and in order.

    Raises:
        ModelError: If the folder has no safetensors.
    """
    weights = sorted(file for file in folder.glob("model*.safetensors") if ".fp16." not in file.name)
    if not weights:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        found = f"holds its weights only as a pickle ({pickles[0]})" if pickles else "holds no model.safetensors"
        raise ModelError(
            f"{folder} {found}. A pickle can run code when it is read, so diffsight reads safetensors only: convert it "
            "once where you trust it, with the model's save_pretrained(FOLDER), and give that folder."
        )
    digest = hashlib.sha256()
    for file in (*weights, *(folder / name for name in others if (folder / name).exists())):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
