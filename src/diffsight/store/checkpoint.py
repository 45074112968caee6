"""The commit point of a run: the one file that says which of the others count."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffsight.errors import InputError, RunError
from diffsight.store.disk import SCHEMA, damaged, digest, read_json, to_json

TABLE = re.compile(r"[a-z][a-z0-9_]*")
_NAME = r"(?:part|state)-(\d{5,})\.(?:parquet|jsonl|safetensors)"
_WRITTEN = re.compile(rf"\.?{_NAME}(?:\.tmp)?")
_COMMITTED = re.compile(rf"{TABLE.pattern}/{_NAME}")


@dataclass(frozen=True, slots=True)
class Part:
    """A committed file: its path inside the run, its checksum, and how many rows it has."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is committed.

    Attributes:
        commits: How many commits there are.
        parts: The files of each table, in order.
        state: The file with the work in flight, if there is any.
        progress: What the last commit said of its progress.
    """

    commits: int = 0
    parts: Mapping[str, Sequence[Part]] = field(default_factory=dict)
    state: Sequence[Part] = ()
    progress: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> list[Part]:
        """All files that must be there."""
        return [*self.state, *(part for parts in self.parts.values() for part in parts)]


def encode_checkpoint(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    """The content of ``checkpoint.json``, with a checksum of itself.

    Raises:
        InputError: If the progress is not JSON.
    """
    content = {
        "fingerprint": fingerprint,
        "commits": checkpoint.commits,
        "parts": {name: [[p.file, p.sha256, p.rows] for p in parts] for name, parts in checkpoint.parts.items()},
        "state": [[p.file, p.sha256, p.rows] for p in checkpoint.state],
        "progress": dict(checkpoint.progress),
    }
    text = to_json(content, "A run's progress")
    return f'{{"schema":{SCHEMA},"sha256":"{digest(text.encode())}","content":{text}}}'.encode()


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """Read ``checkpoint.json``; a run without one has no commits.

    Raises:
        RunError: If it is damaged, newer, or of a run with another fingerprint.
    """
    if not os.path.lexists(path):
        return Checkpoint()
    value = read_json(path)
    try:
        content = value["content"]
        if digest(to_json(content, "A checkpoint").encode()) != value["sha256"]:
            raise damaged(path, "its checksum is not that of its content")
        if content["fingerprint"] != fingerprint:
            raise damaged(path, "it belongs to a run with another manifest.json")
        checkpoint = Checkpoint(
            commits=content["commits"],
            parts={name: tuple(Part(*part) for part in listed) for name, listed in content["parts"].items()},
            state=tuple(Part(*part) for part in content["state"]),
            progress=content["progress"],
        )
    except (KeyError, TypeError, InputError) as error:
        raise damaged(path, f"it is not a checkpoint of a run ({error!r})") from error
    if not all(_COMMITTED.fullmatch(part.file) for part in checkpoint.files):
        raise damaged(path, "it names files that no run has")
    return checkpoint


def find_orphans(run: Path, checkpoint: Checkpoint) -> list[Path]:
    """Files that a killed process left beyond the last commit; only such as have the names of a run's files.

    Raises:
        RunError: If there are more than one killed process can have left, so that ``checkpoint.json`` must be wrong.
    """
    committed = {part.file for part in checkpoint.files}
    orphans = [run / f".{name}.json.tmp" for name in ("manifest", "checkpoint", "metrics")]
    for directory in run.iterdir():
        if not TABLE.fullmatch(directory.name) or directory.is_symlink() or not directory.is_dir():
            continue
        for file in directory.iterdir():
            match = _WRITTEN.fullmatch(file.name)
            if not match or f"{directory.name}/{file.name}" in committed:
                continue
            if int(match[1]) > checkpoint.commits:
                raise RunError(
                    f"{file} is of commit {int(match[1])}, but checkpoint.json knows only {checkpoint.commits} of "
                    "them: it is missing or an old copy. Nothing has been changed. Restore the newest checkpoint.json, "
                    "or delete the files with this and higher numbers to have them computed again."
                )
            orphans.append(file)
    return orphans
