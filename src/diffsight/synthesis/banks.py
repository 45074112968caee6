"""Files from outside that say what to call classes and what to say of them: prompt banks, aliases, superclasses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffsight.data.tables import load_json
from diffsight.errors import PromptError, SourceError, nearest
from diffsight.synthesis.wording import LONGEST, Bank, Wording

LARGEST_FILE = 64 * 2**20
MOST_PROMPTS = 1_000_000


def read_bank(path: Path | str, class_names: Sequence[str]) -> Wording | Bank:
    """Read prompts.

    Args:
        path: A text file with one template per line, each with a place for the class (see `wording`); or a JSON file
            ``{"class name": ["a prompt", …]}`` whose prompts are taken as they stand.
        class_names: The classes: of JSON each must be there, and no other.

    Raises:
        PromptError: If the file cannot be read, is too large, or a class or a prompt in it is wrong.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        lists = _lists(path, class_names, "prompts")
        if missing := [name for name in class_names if name not in lists]:
            raise PromptError(f"{path} has no prompt for {missing[0]!r} ({len(missing)} classes are missing).")
        return _checked(path, lambda: Bank(prompts=lists))
    lines = [line.strip() for line in _text(path).splitlines()]
    templates = tuple(dict.fromkeys(line for line in lines if line))
    if not templates:
        raise PromptError(f"{path} has no prompt. Write one per line, with {{class}} or {{a class}} in it.")
    return _checked(path, lambda: Wording(templates=templates))


def read_aliases(path: Path | str, class_names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read what to call classes instead of their names: JSON, ``{"class name": ["another name", …]}``.

    Classes that are not in the file keep their names. For the name itself beside others, list it too.

    Raises:
        PromptError: If the file cannot be read, or holds something else.
    """
    return _lists(Path(path), class_names, "aliases")


def read_superclasses(path: Path | str, class_names: Sequence[str]) -> dict[str, str]:
    """Read what each class is a type of: JSON, ``{"class name": "a kind of thing"}``, with every class in it.

    Raises:
        PromptError: If the file cannot be read, or holds something else.
    """
    content = _object(Path(path), class_names)
    wrong = [name for name in class_names if not isinstance(content.get(name), str) or not content[name].strip()]
    if wrong:
        raise PromptError(f"{path} does not say in words what {wrong[0]!r} is a type of.")
    return {name: str(content[name]).strip() for name in class_names}


def _lists(path: Path, class_names: Sequence[str], what: str) -> dict[str, tuple[str, ...]]:
    found, total = {}, 0
    for name, values in _object(path, class_names).items():
        if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
            raise PromptError(f"{path}: the {what} of {name!r} must be a list of texts, with at least one.")
        wrong = [value for value in values if not value.strip() or len(value) > LONGEST]
        if wrong:
            raise PromptError(f"{path}: one of the {what} of {name!r} is empty or over {LONGEST} characters.")
        found[name] = tuple(dict.fromkeys(" ".join(value.split()) for value in values))
        total += len(values)
        if total > MOST_PROMPTS:
            raise PromptError(f"{path} has more than {MOST_PROMPTS:,} {what}.")
    return found


def _object(path: Path, class_names: Sequence[str]) -> Mapping[str, Any]:
    _check_size(path)
    try:
        content = load_json(path)
    except SourceError as error:
        raise PromptError(str(error)) from error
    if not isinstance(content, dict) or not content:
        raise PromptError(f'{path} must hold a JSON object {{"class name": …}}.')
    if strange := [name for name in content if name not in class_names]:
        raise PromptError(f"{path} names {strange[0]!r}, which is no class here. {nearest(strange[0], class_names)}")
    return content


def _text(path: Path) -> str:
    _check_size(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}). Save it as plain text in UTF-8.") from error
    except OSError as error:
        raise PromptError(f"{path} cannot be read: {error.strerror}.") from error


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise PromptError(f"{path} is missing, or is no file.")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise PromptError(f"{path} has {size:,} bytes, over the limit of {LARGEST_FILE:,}.")


def _checked(path: Path, make: Any) -> Any:  # noqa: ANN401
    try:
        return make()
    except PromptError as error:
        raise PromptError(f"{path}: {error}") from error
