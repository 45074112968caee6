"""Queries from a file of one's own: JSON lines, JSON, CSV or Parquet with a row for each query.

The rows are data from outside. A row that cannot be a query is a failure with its reason, and does not stop the others;
a file that would be misread as a whole is refused. Images are only looked up here, and decoded when they are used.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diffsight.data.queries import Query
from diffsight.data.tables import load_csv, load_json, load_json_lines, load_parquet, parse_json
from diffsight.errors import InputError, SourceError, nearest
from diffsight.store.disk import put

KEYS = ("id", "image", "images", "text", "texts", "positive", "tags")
MOST_ROWS = 5_000_000


@dataclass(frozen=True, slots=True)
class Failure:
    """A row that is no query.

    Attributes:
        id: Its name, or its number from 0 where it has none; also that of another row if that is what is wrong.
        reason: What is wrong with it.
    """

    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """Queries, and what could not be one.

    Attributes:
        name: Of the file or benchmark.
        queries: In the order of the rows; their ids are unique, and there is at least one.
        failures: In the order of the rows.
    """

    name: str
    queries: tuple[Query, ...] = field(repr=False)
    failures: tuple[Failure, ...] = field(default=(), repr=False)


def read_manifest(path: str | Path, *, images: str | Path | None = None) -> Manifest:
    """Read queries from a local file.

    Each row has ``image`` (a path) or ``images`` (a list), ``text`` or ``texts`` (a list), and may have ``id`` (else
    its number, from 0), ``positive`` (place of the right candidate, from 0) and ``tags`` (a list, or one text). In CSV
    a list is a JSON array in its cell, and an empty cell says nothing.

    Args:
        path: A ``.jsonl``, ``.json`` (a list of objects), ``.csv`` or ``.parquet`` file; text in UTF-8.
        images: The folder that the image paths are relative to; by default that of ``path``. They may not lead out of
            it, links included.

    Raises:
        SourceError: If the file cannot be read, has an unknown key, is too large, or no row of it is a query.
    """
    path = Path(path).expanduser()
    root = path.parent if images is None else Path(images).expanduser()
    if not root.is_dir():
        raise SourceError(f"The folder of the images, {root}, does not exist. Give it as images.")
    readers = {".jsonl": load_json_lines, ".json": _json_list, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise SourceError(f"{path} has the ending {path.suffix!r}; a manifest is one of {', '.join(readers)}.")
    make = partial(_query, root=Path(os.path.realpath(root)))
    return collect(path.stem, _named(path, readers[path.suffix](path)), make, where=str(path))


def write_manifest(path: str | Path, queries: Iterable[Query]) -> None:
    """Write queries as JSON lines that `read_manifest` reads; whole or not at all.

    Images below the folder of ``path`` are written relative to it, so that the folder can be moved. Others are written
    in full; `read_manifest` takes those when ``images`` is a folder above them.

    Raises:
        InputError: If a query has an image that is no file, an id is repeated, there is no query, or ``path`` is not a
            ``.jsonl`` file that can be written.
    """
    path = Path(path).expanduser()
    if path.suffix != ".jsonl":
        raise InputError(f"A manifest is written as JSON lines; {path} must end in .jsonl.")
    folder = Path(os.path.realpath(path.parent))
    rows: dict[str, str] = {}
    for query in queries:
        if query.id in rows:
            raise InputError(f"Two queries have the id {query.id!r}; give each its own.")
        rows[query.id] = json.dumps(_row(query, folder))
    if not rows:
        raise InputError("There are no queries to write; a manifest has at least one.")
    try:
        put(path, "".join(f"{row}\n" for row in rows.values()).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def collect(name: str, rows: Iterable[tuple[str, Any]], make: Callable[[str, Any], Query], *, where: str) -> Manifest:
    """Make a query of each row, an id and a content, and a failure of each for which ``make`` raises an `InputError`.

    Raises:
        SourceError: If there is no query in the end.
    """
    queries: dict[str, Query] = {}
    failures: list[Failure] = []
    for id, row in rows:
        try:
            if id in queries:
                raise InputError(f"The id {id!r} is there before; give every query its own.")
            queries[id] = make(id, row)
        except InputError as error:
            failures.append(Failure(id, str(error)))
    if not queries:
        found = f"none of its {len(failures)} rows is one. The first: {failures[0].reason}" if failures else "no rows."
        raise SourceError(f"There is no query in {where}: {found}")
    return Manifest(name, tuple(queries.values()), tuple(failures))


def find_image(root: Path, name: str) -> Path:
    """Give the file of an image by its path from ``root``, a folder without links in its path; does not open it.

    Raises:
        InputError: If it leads out of the folder or is no file.
    """
    try:
        path = Path(os.path.realpath(root / name))
        inside, found = path.is_relative_to(root), path.is_file()
    except (OSError, ValueError) as error:  # Too long, forbidden, or with a zero in it.
        raise InputError(f"The image {name[:200]!r} cannot be looked up: {error}.") from error
    if not inside:
        raise InputError(f"The image {name!r} leads out of {root}, to {path}. Give a folder above it as images.")
    if not found:
        raise InputError(f"The image {name!r} is no file in {root}.")
    return path


def check_text(key: str, value: object) -> str:
    """See that a value is text that says something and can be encoded.

    Raises:
        InputError: If not, naming the key.
    """
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{key!r} must be text, and not empty; got {value!r:.80}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON can spell halves of characters.
        raise InputError(f"{key!r} is not Unicode: {error}.") from error
    return value


def _json_list(path: Path) -> Iterator[tuple[str, object]]:
    rows = load_json(path)
    if not isinstance(rows, list):
        raise SourceError(f"{path} holds a {type(rows).__name__}; it must hold a list of objects, one for each query.")
    return ((f"row {number}", row) for number, row in enumerate(rows))


def _csv_rows(path: Path) -> Iterator[tuple[str, object]]:
    rows = load_csv(path, lambda columns: _check_columns(path, columns))
    return ((line, row if isinstance(row, InputError) else _from_cells(row)) for line, row in rows)


def _from_cells(cells: Mapping[str, str]) -> dict[str, object]:
    """Values as JSON would have them; a cell of another form stays text, and is refused for its type."""
    row: dict[str, object] = {key: cell for key, cell in cells.items() if cell}
    for key in ("images", "texts", "tags", "positive"):
        value = parse_json(cells.get(key, ""))
        if isinstance(value, int if key == "positive" else list):
            row[key] = value
    return row


def _parquet_rows(path: Path) -> Iterator[tuple[str, object]]:
    return load_parquet(path, lambda columns: _check_columns(path, columns))


def _row(query: Query, folder: Path) -> dict[str, Any]:
    names: list[str] = []
    for image in query.images:
        if not isinstance(image, Path):
            kind = type(image).__name__
            raise InputError(f"Query {query.id!r} has an image that is no file but a {kind}. Save it as a file first.")
        file = Path(os.path.realpath(image))
        names.append(str(file.relative_to(folder) if file.is_relative_to(folder) else file))
    row = {"id": query.id, "images": names, "texts": query.texts, "positive": query.positive, "tags": query.tags}
    return {key: value for key, value in row.items() if value not in (None, ())}


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    _check_keys(path, "its columns", columns)
    for one, many in (("image", "images"), ("text", "texts")):
        if one not in columns and many not in columns:
            raise SourceError(f"{path} has neither a column {one!r} nor {many!r}, only {', '.join(columns)!r:.200}.")


def _check_keys(path: Path, where: str, keys: Iterable[str]) -> None:
    # To pass over a misspelt 'positive' would lose all answers, silently.
    for key in keys:
        if key not in KEYS:
            raise SourceError(f"{path}, {where}: unknown key {key[:80]!r}. {nearest(key[:80], KEYS)}")


def _named(path: Path, rows: Iterable[tuple[str, object]]) -> Iterator[tuple[str, tuple[str, object]]]:
    """Check the keys of rows and give them ids."""
    for index, (where, row) in enumerate(rows):
        if index >= MOST_ROWS:
            raise SourceError(f"{path} has more rows than the limit of {MOST_ROWS:,}. Divide it.")
        id = None
        if isinstance(row, dict):
            _check_keys(path, where, row)
            id = _id(row.get("id"))
        yield str(index) if id is None else id, (where, row)


def _id(value: object) -> str | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else None


def _query(id: str, row: tuple[str, object], *, root: Path) -> Query:
    where, content = row
    try:
        if isinstance(content, InputError):
            raise content
        if not isinstance(content, dict):
            raise InputError(f"a row must be an object with keys; got {content!r:.80}.")
        known = {key: value for key, value in content.items() if value is not None}
        if "id" in known and _id(known["id"]) is None:
            raise InputError(f"'id' must be text or a whole number; got {known['id']!r:.80}.")
        positive = known.get("positive")
        if positive is not None and (isinstance(positive, bool) or not isinstance(positive, int)):
            raise InputError(f"'positive' must be a whole number, from 0; got {positive!r:.80}.")
        images = tuple(find_image(root, name) for name in _texts(known, "image", "images"))
        tags = _texts(known, "tags", "tags") if known.get("tags") else ()
        texts = _texts(known, "text", "texts")
        return Query(id=check_text("id", id), images=images, texts=texts, positive=positive, tags=tags)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _texts(row: Mapping[str, Any], one: str, many: str) -> tuple[str, ...]:
    """A text or a list of them: under ``one`` a text, under ``many`` a list; under either if they are the same."""
    given = [key for key in dict.fromkeys((one, many)) if key in row]
    if len(given) != 1:
        raise InputError(f"there must be {one!r} or {many!r}{', not both' if given else ''}.")
    key, value = given[0], row[given[0]]
    if key == one and not (key == many and isinstance(value, list)):
        return (check_text(key, value),)
    if not isinstance(value, list):
        raise InputError(f"{key!r} must be a list (in CSV, a JSON array); a single one is {one!r}. Got {value!r:.80}.")
    return tuple(check_text(key, text) for text in value)
