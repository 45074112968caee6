"""What a run needs of a file system: files that are whole or absent, one writer, and errors that say how to go on."""

import fcntl
import hashlib
import io
import json
import os
import socket
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import Any

from diffsight.errors import InputError, ModelError, RunError

SCHEMA = 1
_REMEDIES = {
    ENOSPC: "Make room on the disk",
    EDQUOT: "Make room in your quota",
    EACCES: "Make it writable for you",
    EPERM: "Make it writable for you",
    EROFS: "Mount it writable",
}


def digest(data: bytes) -> str:
    """SHA-256 of a file's content."""
    return hashlib.sha256(data).hexdigest()


def to_json(value: object, what: str, *, indent: int | None = None) -> str:
    """Write a value as the one JSON text that all equal values share.

    Args:
        value: Text, finite numbers, booleans, None, lists and dicts of these.
        what: What it is, for the error.
        indent: Spaces of indentation; compact by default.

    Raises:
        InputError: If the value is anything else.
    """
    separators = (",", ":") if indent is None else None
    try:
        return json.dumps(value, sort_keys=True, indent=indent, separators=separators, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{what} cannot be kept as JSON ({error}). Use text, finite numbers, booleans, lists and dicts of these."
        ) from error


def damaged(path: Path, reason: str) -> RunError:
    """The error for a file that is not what this package wrote."""
    return RunError(
        f"{path} is damaged: {reason}. Nothing has been changed. Restore this file from a copy, or start the run again "
        "in another directory."
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of this package.

    Raises:
        RunError: If it cannot be read, is not JSON, is not ours, or has a newer schema.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}. See to its permissions and the disk.") from error
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    if not isinstance(value, dict) or type(value.get("schema")) is not int:
        raise damaged(path, "it has no schema number, as all files of a run do")
    if value["schema"] > SCHEMA:
        raise RunError(
            f"{path} has schema {value['schema']}, but this diffsight knows schemas up to {SCHEMA} only. Upgrade "
            "diffsight to read or continue this run."
        )
    return value


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `RunError` that says what is safe and how to go on."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{error.filename or path} cannot be written: {error.strerror or error}. "
            f"{_REMEDIES.get(error.errno or 0, 'See to the disk')} and give the same command again: it continues from "
            "the last commit, and nothing that was committed is lost."
        ) from error


def _sync(directory: Path) -> None:
    """Make the names in a directory survive a loss of power."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make(directory: Path) -> None:
    """Create a directory and its parents, and make them durable."""
    if not directory.is_dir():
        make(directory.parent)
        with suppress(FileExistsError):
            os.mkdir(directory)
        _sync(directory.parent)


def put(path: Path, data: bytes) -> None:
    """Put a file in place whole or not at all; when this returns, it survives a loss of power."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def put_model(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files of something that was learnt, each whole or absent; the last one may tell if the others are its own.

    Args:
        folder: Made where it is missing.
        files: Contents by name, in the order in which they are written.

    Raises:
        ModelError: If the disk refuses.
    """
    try:
        make(folder.resolve())
        for name, data in files.items():
            put(folder / name, data)
    except OSError as error:
        raise ModelError(
            f"{error.filename or folder} cannot be written: {error.strerror}. Make room, or give another place."
        ) from error


def lock(directory: Path) -> io.FileIO:
    """Hold a directory for this process alone.

    Returns:
        The lock: it is held until this is closed or the process dies.

    Raises:
        RunError: If another process, or another part of this one, holds it.
    """
    file = io.FileIO(directory / ".lock", "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read(200).decode(errors="replace") or "another process"
        file.close()
        raise RunError(f"{directory} is in use by {holder}. Wait until it ends, or give another directory.") from error
    except BaseException:
        file.close()
        raise
    # A forked worker shares the lock; one that outlives its killed parent must not keep the run locked.
    reference = weakref.ref(file)
    os.register_at_fork(after_in_child=lambda: (held := reference()) and held.close())
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return file
