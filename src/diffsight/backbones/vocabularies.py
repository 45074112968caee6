"""The files that a tokenizer's vocabulary comes in, which are easily missing."""

from importlib.util import find_spec
from pathlib import Path

from diffsight.errors import ModelError

_MODELS = ("spiece.model", "tokenizer.model")  # SentencePiece's, of T5 and Gemma.


def check_vocabulary(place: Path) -> None:
    """Refuse a tokenizer without words: transformers would make one that knows none, and say nothing.

    Args:
        place: Its folder.

    Raises:
        ModelError: If there is no vocabulary, or one that can only be read with a library that is not here.
    """
    if (place / "tokenizer.json").exists() or all((place / name).exists() for name in ("vocab.json", "merges.txt")):
        return
    found = next((name for name in _MODELS if (place / name).exists()), None)
    if found is None:
        raise ModelError(
            f"{place} holds no vocabulary (tokenizer.json, vocab.json with merges.txt, or {' or '.join(_MODELS)}). "
            "The copy is not complete."
        )
    if missing := [name for name in ("sentencepiece", "google.protobuf") if not _is_here(name)]:
        raise ModelError(
            f"{place} has its vocabulary only as {found}, which transformers reads with the libraries "
            f"sentencepiece and protobuf; {missing[0]} is not installed: pip install 'diffsight[sentencepiece]'."
        )


def _is_here(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
