"""Candidates compete: rounds of draws for many queries at once, until each has its answer."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from diffsight.matching.scores import Score
from diffsight.matching.statistics import Ledger, Statistics, Wanted
from diffsight.scoring.elimination import Policy


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Field:
    """The candidates of one query.

    Attributes:
        images: The image of each candidate.
        texts: The text of each candidate.
        policy: Decides on draws, and on who is out.
    """

    images: Int[np.ndarray, " pairs"]
    texts: Int[np.ndarray, " pairs"]
    policy: Policy


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Finish:
    """How a query ended.

    Attributes:
        per_draw: The score of each candidate at each draw; NaN after it was dropped.
        alive: The winner, or all winners of an exact tie.
        finite: Whether all that was measured is a number.
    """

    per_draw: Float[np.ndarray, "draws pairs"]
    alive: Bool[np.ndarray, " pairs"]
    finite: bool

    @property
    def scores(self) -> Float[np.ndarray, " pairs"]:
        """Mean over the draws that the winner and the candidate both have, the winner's own mean added.

        Draws differ in how hard they are: only differences at the same draws compare a candidate that was dropped.
        """
        best = int(np.flatnonzero(self.alive)[0])
        gaps = np.nanmean(self.per_draw - self.per_draw[:, [best]], axis=0)
        return gaps + self.per_draw[:, best].mean()


def compete(
    ledger: Ledger,
    fields: Sequence[Field],
    score: Score,
    weights: Float[np.ndarray, " draws"],
) -> list[Finish]:
    """Run all queries to their end; those that are still open share batches.

    Args:
        ledger: Measures pairs.
        fields: The queries.
        score: What is compared.
        weights: Of each draw's error.
    """
    tables = [np.zeros((0, len(field.images))) for field in fields]
    alive = [np.ones(len(field.images), dtype=bool) for field in fields]
    finite = [True] * len(fields)
    going = list(range(len(fields)))
    while going:
        wanted: list[tuple[int, tuple[int, ...]]] = []
        for index in going:
            decision = fields[index].policy.next(-tables[index], alive[index])
            alive[index] = decision.alive
            if decision.draws:
                wanted.append((index, decision.draws))
        needs = (_needs(ledger, fields[index], alive[index], draws, score) for index, draws in wanted)
        ledger.measure([one for several in needs for one in several])
        going = []
        for index, draws in wanted:
            field = fields[index]
            start, stop = min(draws), max(draws) + 1
            fresh = score.per_draw(ledger.statistics(field.images, field.texts, stop), weights[:stop])[start:]
            # Another query may know more of a candidate that is out here: an answer must not depend on its neighbours.
            tables[index] = np.concatenate([tables[index], np.where(alive[index], fresh, np.nan)])
            finite[index] = bool(np.isfinite(fresh[:, alive[index]]).all())
            if finite[index]:
                going.append(index)
    return [
        Finish(per_draw=table, alive=left, finite=good) for table, left, good in zip(tables, alive, finite, strict=True)
    ]


def _needs(ledger: Ledger, field: Field, alive: np.ndarray, draws: Sequence[int], score: Score) -> list[Wanted]:
    images, texts = field.images[alive], field.texts[alive]
    pairs = Wanted(images, texts, draws)
    if not score.needs_null:
        return [pairs]
    alone = np.unique(images)
    return [pairs, Wanted(alone, np.full(len(alone), ledger.null), draws)]


def measured(ledger: Ledger, fields: Sequence[Field], draws: int, score: Score) -> list[Statistics]:
    """The statistics of all candidates at all draws, which adapters are fitted to."""
    everything = range(draws)
    ledger.measure(
        [
            one
            for field in fields
            for one in _needs(ledger, field, np.ones(len(field.images), dtype=bool), everything, score)
        ]
    )
    return [ledger.statistics(field.images, field.texts, draws) for field in fields]
