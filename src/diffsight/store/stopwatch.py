"""Time that work took, beside its results: of all sessions, and in no fingerprint."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diffsight.errors import RunError
from diffsight.store.disk import SCHEMA, make, put, read_json, to_json, writing

FILE = "seconds.json"


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Seconds spent on parts of some work, also by processes that were interrupted.

    Attributes:
        file: Where they are kept.
    """

    file: Path

    def spent(self, part: str) -> float:
        """Seconds on a part so far."""
        return float(self._all().get(part, 0.0))

    def add(self, part: str, seconds: float) -> None:
        """Add time to a part.

        Raises:
            RunError: If the disk refuses.
        """
        values = self._all()
        values[part] = values.get(part, 0.0) + seconds
        with writing(self.file):
            make(self.file.resolve().parent)
            put(self.file, to_json({"schema": SCHEMA, "seconds": values}, "Times", indent=1).encode())

    @contextmanager
    def running(self, part: str) -> Iterator[None]:
        """Add the time of a block to a part, also of one that is left by an error."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - began)

    def _all(self) -> dict[str, float]:
        if not self.file.exists():
            return {}
        try:
            return dict(read_json(self.file)["seconds"])
        except (RunError, KeyError, TypeError, ValueError):  # Times are not worth a refusal.
            return {}
