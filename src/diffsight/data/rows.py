"""Rows of published benchmarks: found, read and checked, with the right candidate where the query's id says."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diffsight.data.manifests import check_text
from diffsight.data.queries import Query
from diffsight.data.tables import load_json
from diffsight.diffusion.noise import key_of
from diffsight.errors import InputError, SourceError

STREAM = "compositional-philox4x64-1"

# The rows of a benchmark with their ids, and what makes a query of one.
Read = tuple[Iterable[tuple[str, Any]], Callable[[str, Any], Query]]
T = TypeVar("T")


def placed(id: str, right: T, wrong: Sequence[T]) -> tuple[tuple[T, ...], int]:
    """Put the right candidate among the others, where the id says, and give its place."""
    place = digest(f"place {id}") % (len(wrong) + 1)
    return (*wrong[:place], right, *wrong[place:]), place


def digest(address: str) -> int:
    """A number of 128 bits that follows from an address alone."""
    return key_of(f"{STREAM} {address}".encode())


def find(place: Path, *names: str) -> Path:
    """The first of these files or folders that is there, without links in its path.

    Raises:
        SourceError: If there is none.
    """
    found = [place / name for name in names if (place / name).exists()]
    if not found:
        raise SourceError(f"There is no {' or '.join(names)} in {place}.")
    return Path(os.path.realpath(found[0]))


def load_rows(path: Path, kind: type[T], key: str | None = None) -> T:
    """The rows in a JSON file, a list or a dict, which may be what ``key`` has in it.

    Raises:
        SourceError: If the file is no JSON, is too large, or holds something else.
    """
    content = load_json(path)
    rows = content.get(key) if key is not None and isinstance(content, dict) else content
    if not isinstance(rows, kind):
        raise SourceError(f"{path} holds a {type(rows).__name__}, not a {kind.__name__} of rows.")
    return rows


def with_ids(rows: Iterable[object], key: str | None = None) -> Iterator[tuple[str, object]]:
    """Each row with its id: what it has as ``key``, or its number."""
    for index, row in enumerate(rows):
        id = row.get(key) if isinstance(row, dict) else None
        yield str(id) if isinstance(id, str | int) and str(id).strip() else str(index), row


def as_object(row: object) -> dict[str, Any]:
    """See that a row has keys.

    Raises:
        InputError: If not, or if the row is what was wrong with it.
    """
    if isinstance(row, InputError):
        raise row
    if not isinstance(row, dict):
        raise InputError(f"There must be an object with keys; got {row!r:.80}.")
    return row


def text_of(row: object, key: str) -> str:
    """The text that a row has as ``key``.

    Raises:
        InputError: If it has none.
    """
    return check_text(key, as_object(row).get(key))


def whole_of(row: object, key: str) -> int:
    """The number of at least 0 that a row has as ``key``.

    Raises:
        InputError: If it has none.
    """
    value = as_object(row).get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"{key!r} must be a whole number from 0; got {value!r:.80}.")
    return value
