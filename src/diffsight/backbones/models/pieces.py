"""Tokenizers of SentencePiece's kind (T5, Gemma), whose vocabulary comes in files that are easily missing."""

from importlib.util import find_spec
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from diffsight.backbones.opened import Opened
from diffsight.errors import ModelError

Tokenizer = TypeVar("Tokenizer", bound=PreTrainedTokenizerBase)

_MODELS = ("spiece.model", "tokenizer.model")


def open_pieces(opened: Opened, kind: type[Tokenizer]) -> Tokenizer:
    """The tokenizer of a folder.

    Args:
        opened: The folder.
        kind: The tokenizer's class. Without a vocabulary it would come as one that knows no word, and say nothing.

    Raises:
        ModelError: If there is no vocabulary, or one that can only be read with a library that is not here.
    """
    place = opened.folder / "tokenizer"
    if not (place / "tokenizer.json").exists():
        found = next((name for name in _MODELS if (place / name).exists()), None)
        if found is None:
            raise ModelError(
                f"{place} holds no vocabulary (tokenizer.json or {' or '.join(_MODELS)}). The copy is not complete."
            )
        if missing := [name for name in ("sentencepiece", "google.protobuf") if not _is_here(name)]:
            raise ModelError(
                f"{place} has its vocabulary only as {found}, which transformers reads with the libraries "
                f"sentencepiece and protobuf; {missing[0]} is not installed: pip install 'diffsight[sentencepiece]'."
            )
    return opened.tokenizer(kind)


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
