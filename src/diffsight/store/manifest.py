"""What a run's numbers depend on: two runs may be joined only when it is the same."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffsight.errors import RunError
from diffsight.store.disk import SCHEMA, damaged, digest, put, read_json, to_json


def _flatten(value: object, name: str = "") -> dict[str, str]:
    """Leaves of nested dicts and lists, as JSON text under names like ``policy.stages[0]``."""
    if isinstance(value, dict) and value:
        items = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and value:
        items = [(f"{name}[{index}]", item) for index, item in enumerate(value)]
    else:
        return {name: json.dumps(value, ensure_ascii=False)}
    return {path: leaf for key, item in items for path, leaf in _flatten(item, key).items()}


def _shorten(text: str | None, limit: int = 100) -> str:
    text = "(absent)" if text is None else text
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def session(packages: Sequence[str], **facts: object) -> dict[str, Any]:
    """What is worth recording of a session and changes no number: versions, command, start time, and other facts.

    Args:
        packages: Beside diffsight and torch, whose versions matter.
        facts: Such as the device and the batch size.
    """
    return {
        **facts,
        "versions": {name: version(name) for name in ("diffsight", "torch", *packages)},
        "python": platform.python_version(),
        "command": sys.argv[1:],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run's numbers depend on, and what else is worth knowing of it.

    Attributes:
        fingerprint_fields: All that changes numbers (model revision and weights hash, dtype, resolution, prompts,
            schedule, grid, seed, policy, task version, data ids): JSON values, nested as you like.
        recorded: All that does not (batch size, device, versions, command, start time).
        schema: Version of the directory's format.

    Raises:
        InputError: If a value is not JSON.
    """

    fingerprint_fields: Mapping[str, Any]
    recorded: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        # Through JSON and back: a tuple in the program is a list in the file, and the two must compare equal.
        for name in ("fingerprint_fields", "recorded"):
            object.__setattr__(self, name, json.loads(to_json(dict(getattr(self, name)), f"A manifest's {name}")))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of what changes numbers."""
        return digest(to_json(self.fingerprint_fields, "A manifest's fingerprint_fields").encode())

    def differences(self, other: "Manifest") -> dict[str, tuple[str | None, str | None]]:
        """Find the fields that change numbers and differ.

        Args:
            other: The manifest to compare with.

        Returns:
            For each field, by its path, the value here and in ``other`` as JSON text; None where it is absent.
        """
        mine, theirs = _flatten(self.fingerprint_fields), _flatten(other.fingerprint_fields)
        paths = [*mine, *(path for path in theirs if path not in mine)]
        return {path: (mine.get(path), theirs.get(path)) for path in paths if mine.get(path) != theirs.get(path)}


def check_same(run: Path, stored: Manifest, asked: Manifest, *, what: str = "run") -> None:
    """Refuse to continue a run with other settings than its own.

    Args:
        run: Its directory.
        stored: With what it was made.
        asked: With what it is to be continued.
        what: What the directory holds, for the error.

    Raises:
        RunError: With the fields that differ and both values.
    """
    if stored.fingerprint == asked.fingerprint:
        return
    differences = stored.differences(asked)
    lines = [
        f"  {name}: {_shorten(old)} in the {what}, {_shorten(new)} asked now"
        for name, (old, new) in list(differences.items())[:12]
    ]
    if len(differences) > len(lines):
        lines.append(f"  and {len(differences) - len(lines)} more")
    raise RunError(
        f"{run} holds a {what} with other settings, so it cannot be continued with these:\n"
        + "\n".join(lines)
        + "\nAsk for the same settings again, or give another directory."
    )


def write_manifest(path: Path, manifest: Manifest, sessions: Sequence[Mapping[str, Any]]) -> None:
    """Write ``manifest.json``: the settings, and what each session on the run recorded."""
    value = {
        "schema": manifest.schema,
        "fingerprint": manifest.fingerprint,
        "fingerprint_fields": manifest.fingerprint_fields,
        "sessions": list(sessions),
    }
    put(path, to_json(value, "A manifest", indent=2).encode())


def read_manifest(path: Path) -> tuple[Manifest, list[dict[str, Any]]]:
    """Read ``manifest.json``.

    Returns:
        The manifest with which the run was created, and what each session recorded.

    Raises:
        RunError: If it is damaged, edited, newer, or no manifest of this package.
    """
    value = read_json(path)
    fields, sessions = value.get("fingerprint_fields"), value.get("sessions")
    if not isinstance(fields, dict) or not isinstance(sessions, list) or not sessions:
        raise damaged(path, "it is not the manifest of a diffsight run")
    manifest = Manifest(fields, sessions[0], value["schema"])
    if manifest.fingerprint != value.get("fingerprint"):
        raise damaged(path, "its fields do not have the fingerprint that was written with them")
    return manifest, sessions
