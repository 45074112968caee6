"""A run directory: killed at any moment, continued by the same command, bit for bit.

::

    manifest.json                    what the numbers depend on, and every session that worked on them
    checkpoint.json                  the commit point: which files count, with their checksums
    errors/part-00007.parquet        the rows that commit 7 added to a table; any table name
    failures/part-00007.jsonl        the failures that it added
    state/state-00007.safetensors    the work in flight at the last commit
    metrics.json                     always recomputable from the tables

A part is put in place whole and never changed; only ``checkpoint.json`` is replaced. So there is always exactly one
last commit, and whatever lies beyond it is an orphan of a killed process. No file is a pickle.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from diffsight.errors import InputError, RunError
from diffsight.store.checkpoint import TABLE, Checkpoint, Part, encode_checkpoint, find_orphans, read_checkpoint
from diffsight.store.disk import SCHEMA, damaged, digest, lock, make, put, read_json, to_json, writing
from diffsight.store.manifest import Manifest as Manifest
from diffsight.store.manifest import check_same, read_manifest, write_manifest

_FAILURES, _STATE = "failures", "state"


def _encode_state(state: Mapping[str, np.ndarray]) -> bytes:
    try:
        return safetensors.numpy.save({name: np.asarray(array) for name, array in state.items()})
    except safetensors.SafetensorError as error:
        raise InputError(f"A run's state cannot be kept: {error}. Use arrays of numbers or booleans.") from error


class Run:
    """A directory that holds everything a result depends on. Made by `open` or `load`; use it in a ``with`` statement.

    One process at a time holds a run for writing; any number may read what is committed.

    Attributes:
        path: The directory.
        manifest: What the run was created with.
        sessions: What each session on the run recorded, in order: more than one after an interruption.
    """

    def __init__(self, path: Path, held: io.FileIO | None, created: tuple[Manifest, list[dict[str, Any]]]) -> None:
        self.path = path
        self.manifest, self.sessions = created
        self._held = held
        self._torn = False
        self._schemas: dict[str, pa.Schema] = {}
        self._checkpoint = read_checkpoint(path / "checkpoint.json", self.manifest.fingerprint)

    @classmethod
    def open(cls, path: Path | str, manifest: Manifest, *, read_only: bool = False) -> Self:
        """Create a run, or continue it where its last commit left it.

        Args:
            path: The run's directory; it may be absent or empty.
            manifest: What the numbers depend on: the run's own, when there is one.
            read_only: Only read, without a lock; nothing is created or cleaned.

        Returns:
            The run, held for writing until it is closed.

        Raises:
            RunError: If the directory belongs to something else or to other settings (the differences are listed), is
                damaged, newer, in use by another process, or cannot be written.
        """
        path = Path(path)
        if read_only:
            run = cls.load(path)
            check_same(path, run.manifest, manifest)
            return run
        file = path / "manifest.json"
        with writing(path):
            if path.exists() and not path.is_dir():
                raise RunError(f"{path} is a file. Give a directory for the run.")
            strangers = sorted(set(os.listdir(path)) - {".lock", ".manifest.json.tmp"}) if path.exists() else []
            if strangers and not file.exists():
                raise RunError(
                    f"{path} holds {strangers[0]!r} but no manifest.json, so it is not a run. Give an empty or a new "
                    "directory, or restore manifest.json."
                )
            make(path)
            held = lock(path)
        try:
            stored, sessions = read_manifest(file) if file.exists() else (manifest, [])
            check_same(path, stored, manifest)
            run = cls(path, held, (stored, [*sessions, dict(manifest.recorded)]))
            for part in run._checkpoint.files:
                run._bytes(part)
            with writing(path):
                for orphan in find_orphans(path, run._checkpoint):
                    orphan.unlink(missing_ok=True)
                write_manifest(file, stored, run.sessions)
        except BaseException:
            held.close()
            raise
        return run

    @classmethod
    def load(cls, path: Path | str, *, read_only: bool = True) -> Self:
        """Open an existing run without knowing its settings, to read it or to score it again.

        Args:
            path: The run's directory.
            read_only: Only read, without a lock, also while another process works on it. With False the run is held,
                so that `finish` can write other metrics.

        Returns:
            The run.

        Raises:
            RunError: If there is no run, or as for `open`.
        """
        path = Path(path)
        if not (path / "manifest.json").exists():
            inside = sorted(file.parent for end in ("*", "*/*/*") for file in path.glob(f"{end}/manifest.json"))
            hint = f"one of those in it, such as {inside[0]}" if inside else "the directory of a run"
            raise RunError(f"{path} is not a run: it has no manifest.json. Give {hint}.")
        if read_only:
            return cls(path, None, read_manifest(path / "manifest.json"))
        with writing(path):
            held = lock(path)
        try:
            return cls(path, held, read_manifest(path / "manifest.json"))
        except BaseException:
            held.close()
            raise

    @property
    def commits(self) -> int:
        """How many commits there are."""
        return self._checkpoint.commits

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the committed tables."""
        return tuple(name for name in self._checkpoint.parts if name != _FAILURES)

    @property
    def progress(self) -> dict[str, Any]:
        """What the last commit said of its progress; empty before the first."""
        return json.loads(json.dumps(self._checkpoint.progress))

    def rows(self, table: str) -> int:
        """How many rows of a table are committed, without reading them; 0 for a table that is not there."""
        return sum(part.rows for part in self._checkpoint.parts.get(table, ()))

    def read(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all committed rows of a table.

        Args:
            table: Its name.
            columns: Only these columns; all by default.

        Returns:
            The rows in the order in which they were committed; a dictionary column has one dictionary for all parts.

        Raises:
            RunError: If there is no such table, or a part is damaged.
        """
        if table not in self.tables:
            raise RunError(f"{self.path} has no table {table!r}. It has: {', '.join(self.tables) or 'none yet'}.")
        chosen = None if columns is None else list(columns)
        files = (pq.ParquetFile(pa.BufferReader(self._bytes(part))) for part in self._checkpoint.parts[table])
        return pa.concat_tables([file.read(columns=chosen) for file in files]).unify_dictionaries()

    def failures(self) -> list[dict[str, Any]]:
        """All committed failures, in the order in which they were committed."""
        parts = self._checkpoint.parts.get(_FAILURES, ())
        return [json.loads(line) for part in parts for line in self._bytes(part).splitlines()]

    def state(self) -> dict[str, np.ndarray]:
        """The work in flight at the last commit; empty when there was none."""
        return {k: v for part in self._checkpoint.state for k, v in safetensors.numpy.load(self._bytes(part)).items()}

    def metrics(self) -> dict[str, Any] | None:
        """What `finish` wrote last, or None."""
        path = self.path / "metrics.json"
        return read_json(path)["metrics"] if path.exists() else None

    def commit(
        self,
        tables: Mapping[str, pa.Table],
        *,
        failures: Sequence[Mapping[str, Any]] = (),
        state: Mapping[str, np.ndarray] | None = None,
        progress: Mapping[str, Any] | None = None,
    ) -> None:
        """Add rows and failures, and replace state and progress: all of it, or nothing.

        Args:
            tables: New rows by table name. A table keeps the columns of its first commit.
            failures: New failures, each a dict of JSON values.
            state: What is needed to continue the work in flight; replaces that of the commit before.
            progress: JSON values; replaces that of the commit before.

        Raises:
            InputError: If a name, a table's columns or a value cannot be stored; the run is as before.
            RunError: If the disk refuses. What was committed before is safe; the run must be opened again.
        """
        self._check_held()
        number, previous = self._checkpoint.commits, self._checkpoint.state
        parts = dict(self._checkpoint.parts)
        contents: dict[str, bytes] = {}

        def add(name: str, file: str, data: bytes, rows: int) -> None:
            contents[f"{name}/{file}"] = data
            parts[name] = (*parts.get(name, ()), Part(f"{name}/{file}", digest(data), rows))

        for name, table in tables.items():
            self._check_table(name, table)
            if table.num_rows or name not in parts:  # an empty first part keeps the columns
                buffer = pa.BufferOutputStream()
                pq.write_table(table.replace_schema_metadata(None), buffer, compression="zstd")
                add(name, f"part-{number:05d}.parquet", buffer.getvalue().to_pybytes(), table.num_rows)
        if failures:
            text = "".join(to_json(dict(failure), "A failure") + "\n" for failure in failures)
            add(_FAILURES, f"part-{number:05d}.jsonl", text.encode(), len(failures))
        if state:
            add(_STATE, f"state-{number:05d}.safetensors", _encode_state(state), len(state))
        after = Checkpoint(commits=number + 1, state=parts.pop(_STATE, ()), parts=parts, progress=progress or {})
        checkpoint = encode_checkpoint(after, self.manifest.fingerprint)

        self._torn = True  # until all is done, also when it ends in an exception
        with writing(self.path):
            for file, data in contents.items():
                make((self.path / file).parent)
                put(self.path / file, data)
            put(self.path / "checkpoint.json", checkpoint)
        self._checkpoint, self._torn = after, False
        self._schemas |= {name: table.schema for name, table in tables.items()}
        for part in previous:
            with suppress(OSError):
                (self.path / part.file).unlink(missing_ok=True)

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Write the metrics, replacing those that are there.

        Args:
            metrics: JSON values.

        Raises:
            InputError: If a value is not JSON; NaN is not.
            RunError: If the run is not held for writing, or the disk refuses.
        """
        self._check_held()
        text = to_json({"schema": SCHEMA, "metrics": dict(metrics)}, "A run's metrics", indent=2)
        with writing(self.path):
            put(self.path / "metrics.json", text.encode())

    def close(self) -> None:
        """Give the run free for other processes. Nothing is lost when this is never called."""
        if self._held:
            self._held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _bytes(self, part: Part) -> bytes:
        """A committed file's content, checked."""
        path = self.path / part.file
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise damaged(path, "it was committed but is not there") from error
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error.strerror}. See to its permissions and the disk.") from error
        if digest(data) != part.sha256:
            raise damaged(path, "its checksum is not that of the committed file")
        return data

    def _check_held(self) -> None:
        if self._held is None or self._held.closed:
            raise RunError(f"{self.path} was opened for reading, or is closed. Open it for writing with Run.open.")
        if self._torn:
            raise RunError(f"The last commit to {self.path} was cut short. Open the run again: it continues before it.")

    def _check_table(self, name: str, table: pa.Table) -> None:
        if not TABLE.fullmatch(name) or name in (_FAILURES, _STATE):
            raise InputError(f"{name!r} cannot name a table: use a lower-case word, not {_FAILURES!r} or {_STATE!r}.")
        if name not in self._schemas and (parts := self._checkpoint.parts.get(name)):
            self._schemas[name] = pq.read_schema(pa.BufferReader(self._bytes(parts[0])))
        first = self._schemas.get(name, table.schema)
        if not first.equals(table.schema):
            raise InputError(f"Table {name!r} has columns {first.to_string()!r}, not {table.schema.to_string()!r}.")
