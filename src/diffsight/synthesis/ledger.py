"""What was drawn and decided so far: every attempt at every image, and what is left to do.

Attempts are made in rounds. The first is at every image; each later one at those that are not kept yet. Which they are
follows from the rounds before, so that an interrupted set goes on with the same batches.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import pyarrow as pa

from diffsight.store.run import Run

TABLE = "attempts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One image that was drawn.

    Attributes:
        label: Its class.
        index: Its number in the class.
        attempt: How often it had been drawn before.
        round: In which round.
        reason: Why it is not kept; empty if it is.
        prompt: What the model read.
        guidance_scale: How much of it.
        trick: Whose idea that was.
        domain: The kind of picture that the prompt names.
        width: Of the picture, after resizing.
        height: The same.
        content: Hash of the picture as it was drawn.
        likeness: Its perceptual hash.
        rows: Rows of the batch that it was drawn in.
        place: Its row in it.
        sha256: Of the file; empty if it was not written.
        bytes: Of the file.
    """

    label: int
    index: int
    attempt: int
    round: int
    reason: str
    prompt: str
    guidance_scale: float
    trick: str
    domain: str | None
    width: int
    height: int
    content: str
    likeness: str
    rows: int
    place: int
    sha256: str
    bytes: int


_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), str | None: pa.string()}
SCHEMA = pa.schema([(name, _TYPES[kind]) for name, kind in Attempt.__annotations__.items()])


@dataclass(slots=True, eq=False, kw_only=True)
class Ledger:
    """All attempts in their order.

    Attributes:
        withdraws: Whether a picture that came twice is not kept at its first coming either.
        max_attempts: After how many an image is given up.
    """

    withdraws: bool
    max_attempts: int
    attempts: list[Attempt] = field(default_factory=list)

    @classmethod
    def of(cls, run: Run, *, withdraws: bool, max_attempts: int) -> Self:
        """What a run holds."""
        rows = run.read(TABLE).to_pylist() if TABLE in run.tables else []
        return cls(withdraws=withdraws, max_attempts=max_attempts, attempts=[Attempt(**row) for row in rows])

    def kept(self, before: int | None = None) -> dict[tuple[int, int], Attempt]:
        """The image that stands for each class and number after the rounds before this one, where there is one."""
        attempts = self._until(before)
        twice = self._twice(attempts)
        last = {(each.label, each.index): each for each in attempts}
        return {key: each for key, each in last.items() if not each.reason and each.content not in twice}

    def open(self, wanted: Iterable[tuple[int, int]], number: int) -> list[tuple[int, int]]:
        """What a round is to draw: what is not kept, and not given up, after the rounds before it."""
        kept, made = self.kept(number), Counter((each.label, each.index) for each in self._until(number))
        return [key for key in wanted if key not in kept and made[key] < self.max_attempts]

    def done(self, number: int) -> set[tuple[int, int]]:
        """What has been drawn in a round already."""
        return {(each.label, each.index) for each in self.attempts if each.round == number}

    def made(self) -> Counter[tuple[int, int]]:
        """How often each image was drawn."""
        return Counter((each.label, each.index) for each in self.attempts)

    def reasons(self) -> dict[tuple[int, int], list[str]]:
        """Why earlier attempts at each image are not kept, in their order."""
        twice, kept = self._twice(self.attempts), self.kept()
        found: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        for each in self.attempts:
            key = (each.label, each.index)
            if kept.get(key) is not each:
                found[key].append(each.reason or ("repeated" if each.content in twice else ""))
        return dict(found)

    def _until(self, before: int | None) -> Sequence[Attempt]:
        return self.attempts if before is None else [each for each in self.attempts if each.round < before]

    def _twice(self, attempts: Sequence[Attempt]) -> set[str]:
        if not self.withdraws:
            return set()
        return {content for content, count in Counter(each.content for each in attempts).items() if count > 1}


def table_of(attempts: Sequence[Attempt]) -> pa.Table:
    """Attempts as the rows of a table."""
    return pa.table({name: [getattr(each, name) for each in attempts] for name in SCHEMA.names}, schema=SCHEMA)
