"""Tables in files from outside: JSON, JSON lines, CSV and Parquet, row by row and within limits.

A row that cannot be read is what is wrong with it, and does not stop the others; a file that is not what it is said to
be is refused.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from diffsight.errors import InputError, SourceError

LARGEST_FILE = 2**30


def load_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file.

    Raises:
        SourceError: If it is none, or too large.
    """
    with _reading(path, "JSON") as file:
        return json.loads(file.read())


def load_json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """Read a file of JSON lines: each line, and its value or what is wrong with it.

    Raises:
        SourceError: If it is no such file, or too large.
    """
    with _reading(path, "JSON lines") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"line {number}", parse_json(line)


def load_csv(path: Path, check: Callable[[Sequence[str]], None]) -> Iterator[tuple[str, dict[str, str] | InputError]]:
    """Read a CSV file row by row: the line, and its cells by column or what is wrong with them.

    Raises:
        SourceError: If it is no such file, or too large; and what ``check`` raises for the names of the columns.
    """
    with _reading(path, "CSV") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = reader.fieldnames or ()
            if len({*columns}) != len(columns):
                raise SourceError(f"{path} has a column twice; its first line is {','.join(columns)!r:.200}.")
            check(columns)
            for row in reader:
                broken = None in row or None in row.values()
                wrong = f"not {len(columns)} cells. Put a text that has a comma into quotes."
                yield f"line {reader.line_num}", InputError(wrong) if broken else row
        except csv.Error as error:
            raise SourceError(f"{path} after line {reader.line_num} is not CSV: {error}.") from error


def load_parquet(path: Path, check: Callable[[Sequence[str]], None]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a Parquet file row by row: the row's number, and its cells by column.

    Raises:
        SourceError: If it is no such file, or too large; and what ``check`` raises for the names of the columns.
    """
    import pyarrow as pa  # Slow, and needed only here.
    import pyarrow.parquet as pq

    _check_file(path)
    try:
        with pq.ParquetFile(path) as file:
            size = sum(file.metadata.row_group(index).total_byte_size for index in range(file.num_row_groups))
            if size > LARGEST_FILE:
                raise SourceError(f"{path} unpacks to {size:,} bytes, over the limit of {LARGEST_FILE:,}. Divide it.")
            check(file.schema_arrow.names)
            rows = (row for batch in file.iter_batches(batch_size=4096) for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows))
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is damaged or not Parquet: {error}.") from error


def parse_json(text: str) -> object:
    """The value of a JSON text, or what is wrong with it."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return InputError(f"not JSON ({error}).")


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} is missing, or is no file.")
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise SourceError(f"{path} has {size:,} bytes, over the limit of {LARGEST_FILE:,}. Divide it.")


@contextmanager
def _reading(path: Path, form: str) -> Iterator[TextIO]:
    """Open a text file, and say of what goes wrong while it is read that it is not of this form."""
    _check_file(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not {form} in UTF-8: {error}.") from error
