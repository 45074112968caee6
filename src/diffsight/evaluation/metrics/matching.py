"""Results of image–text matching, from the scores of each query: pure numpy.

Where the right candidate shares its score with others, their order is not known, and the query counts with what a
random order would give on average: 1/m for the first place shared by m. The scores of a grid are Winoground's
(arXiv:2204.03162, §3), which ask for strictly more: there a tie is a failure. Both are counted as ties. A failed query
is neither right nor wrong; the coverage stands beside the results.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffsight.data.queries import Query
from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Estimate, mean_of_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What is known of one query.

    Attributes:
        id: The query's.
        form: The query's: ``texts``, ``images`` or ``grid``.
        count: How many candidates it has; of a grid, how many images and texts each.
        positive: Place of the right candidate; None for a grid.
        tags: The query's.
        better: How many candidates score higher than the right one; None for a grid and a failure.
        equal: How many others score the same as the right one; None for a grid and a failure.
        text: Grids only: whether each image gives its own text strictly the highest score.
        image: Grids only: whether each text gives its own image strictly the highest score.
        group: Grids only: both.
        tie: Whether a first place is shared, by whichever candidates; in a grid, that of any image or text.
        failed: Why there is no result, or None.
    """

    id: str
    form: str
    count: int
    positive: int | None = None
    tags: tuple[str, ...] = ()
    better: int | None = None
    equal: int | None = None
    text: bool | None = None
    image: bool | None = None
    group: bool | None = None
    tie: bool = False
    failed: str | None = None

    @property
    def hit(self) -> float | None:
        """Success at the first place, between 0 and 1 in a tie; None for a grid and a failure."""
        return self.within(1)

    @property
    def chance(self) -> float:
        """What ``hit`` is on average when the scores are random; of a grid, what ``group`` is."""
        return grid_chance(self.count)[1] if self.form == "grid" else 1 / self.count

    @property
    def reciprocal_rank(self) -> float | None:
        """Mean of 1/rank of the right candidate over the orders of a tie; None for a grid and a failure."""
        if self.better is None or self.equal is None:
            return None
        return math.fsum(1 / (self.better + place) for place in range(1, self.equal + 2)) / (self.equal + 1)

    def within(self, k: int) -> float | None:
        """Share of the orders of a tie in which the right candidate is among the first ``k``.

        Args:
            k: How many candidates may be named.

        Returns:
            0 or 1 without a tie; None for a grid and a failure.
        """
        if self.better is None or self.equal is None:
            return None
        return min(max(k - self.better, 0), self.equal + 1) / (self.equal + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A mean over queries, beside what random scores would give.

    Attributes:
        estimate: The mean with its interval.
        chance: Its expected value for random scores.
        queries: Over how many queries.
    """

    estimate: Estimate
    chance: float
    queries: int

    def to_dict(self) -> dict[str, Any]:
        """``value``, ``low``, ``high``, ``chance`` and ``queries``, as JSON values."""
        return {**asdict(self.estimate), "chance": self.chance, "queries": self.queries}


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchingMetrics:
    """Results over queries; None where no scored query has the form that a result is about.

    Attributes:
        queries: How many there are.
        scored: How many have a result.
        failed: How many have none.
        ties: How many of the scored share a first place.
        accuracy: Recall at 1. Its chance is the mean over the queries, whose candidates may differ in number.
        recall_at_5: Over the queries with more than five candidates.
        reciprocal_rank: Mean of 1/rank.
        majority: What always naming the place ``majority_position`` would give. Far above its chance, the places give
            the answers away. The place is the most frequent one of the same queries, so in a few dozen of them this is
            somewhat above chance without any leak.
        majority_position: The most frequent place of the right candidate, from 0; the first of several.
        text: Winoground's text score.
        image: Winoground's image score.
        group: Winoground's group score.
        by_tag: The same for the queries with each tag; a query with several tags is in each.
    """

    queries: int
    scored: int
    failed: int
    ties: int
    accuracy: Measure | None
    recall_at_5: Measure | None
    reciprocal_rank: Measure | None
    majority: Measure | None
    majority_position: int | None
    text: Measure | None
    image: Measure | None
    group: Measure | None
    by_tag: dict[str, "MatchingMetrics"] = field(default_factory=dict)

    @property
    def coverage(self) -> float | None:
        """Share of the queries that have a result; None without a query."""
        return self.scored / self.queries if self.queries else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        counts = ("queries", "scored", "failed", "ties", "coverage", "majority_position")
        measures = ("accuracy", "recall_at_5", "reciprocal_rank", "majority", "text", "image", "group")
        values: dict[str, Any] = {name: getattr(self, name) for name in counts}
        for name in measures:
            measure = getattr(self, name)
            values[name] = None if measure is None else measure.to_dict()
        if self.by_tag:
            values["by_tag"] = {tag: part.to_dict() for tag, part in self.by_tag.items()}
        return values


def judge(query: Query, scores: Float[np.ndarray, "images texts"], *, failure: str | None = None) -> Outcome:
    """Compare the scores of a query with its right answer.

    Args:
        query: What was scored.
        scores: Of each of its images with each of its texts, higher is better. A NaN makes the query a failure.
        failure: Why it could not be scored, if so; the scores are not looked at.

    Raises:
        InputError: If the right answer is not known, or the scores are not those of this query.
    """
    if query.positive is None and query.form != "grid":
        raise InputError(
            f"Query {query.id!r} has no positive, so no answer to it can be called right. Say which candidate is the "
            "right one, or leave the query out."
        )
    expected = len(query.images), len(query.texts)
    if scores.shape != expected:
        raise InputError(
            f"The scores of query {query.id!r} have the shape {scores.shape}, but it has {expected[0]} image(s) and "
            f"{expected[1]} text(s). Give one score for each pair: images in rows, texts in columns."
        )
    outcome = Outcome(id=query.id, form=query.form, count=query.count, positive=query.positive, tags=query.tags)
    missing = int(np.isnan(scores).sum())
    if failure is not None or missing:
        return replace(outcome, failed=failure or f"{missing} of its {scores.size} scores are NaN.")
    if query.positive is None:
        text, image = bool(_strictly_first(scores).all()), bool(_strictly_first(scores.T).all())
        tie = bool(_shared(scores).any() or _shared(scores.T).any())
        return replace(outcome, text=text, image=image, group=text and image, tie=tie)
    row = scores.reshape(1, -1)
    own = row[0, query.positive]
    return replace(
        outcome,
        better=int((row > own).sum()),
        equal=int((row == own).sum()) - 1,
        tie=bool(_shared(row).any()),
    )


def summarize(outcomes: Sequence[Outcome], *, level: float = 0.95) -> MatchingMetrics:
    """Average outcomes, over all of them and by tag.

    The intervals treat queries as independent: where many share an image or a text they are too narrow. Choosing a text
    and choosing an image are averaged together; summarize the outcomes of each form for one of them.

    Args:
        outcomes: From `judge`.
        level: Confidence level of the intervals.

    Raises:
        InputError: If ``level`` is not between 0 and 1.
    """
    tags = sorted({tag for outcome in outcomes for tag in outcome.tags})
    parts = {tag: _summarize([one for one in outcomes if tag in one.tags], level) for tag in tags}
    return replace(_summarize(outcomes, level), by_tag=parts)


def grid_chance(size: int) -> tuple[float, float]:
    """What random scores give in a grid: all ``size``² of them independent, of one distribution, without ties.

    Text score: each of n images has its own text first with probability 1/n, independently of the others, which makes
    1/nⁿ; the image score is alike. Group score: each score of the diagonal is the largest of its row and its column.
    Take the diagonal as u₁ < … < uₙ, uniform. Two cells lie between each pair of it and must be below the smaller one,
    so 2(n − k) below uₖ, which makes n! ∫ ∏ uₖ^(2(n − k)) = n! / ∏ k (2n − k) = (n − 1)! / (2n − 1)!: 1/6 for two.

    Args:
        size: How many images and texts each.

    Returns:
        Chance of the text score, which is that of the image score, and chance of the group score.
    """
    return 1 / size**size, math.factorial(size - 1) / math.factorial(2 * size - 1)


def _summarize(outcomes: Sequence[Outcome], level: float) -> MatchingMetrics:
    scored = [outcome for outcome in outcomes if outcome.failed is None]
    choices = [outcome for outcome in scored if outcome.form != "grid"]
    grids = [outcome for outcome in scored if outcome.form == "grid"]
    many = [outcome for outcome in choices if outcome.count > 5]

    def measure(values: Sequence[float | None], chances: Sequence[float]) -> Measure | None:
        known = [float(value) for value in values if value is not None]
        if not known:
            return None
        chance = math.fsum(chances) / len(chances)
        return Measure(estimate=mean_of_shares(known, level=level), chance=chance, queries=len(known))

    places = [outcome.positive for outcome in choices if outcome.positive is not None]
    most = int(np.bincount(places).argmax()) if places else -1
    chance = [1 / one.count for one in choices]
    alone = [grid_chance(one.count)[0] for one in grids]
    return MatchingMetrics(
        queries=len(outcomes),
        scored=len(scored),
        failed=len(outcomes) - len(scored),
        ties=sum(outcome.tie for outcome in scored),
        accuracy=measure([one.hit for one in choices], chance),
        recall_at_5=measure([one.within(5) for one in many], [5 / one.count for one in many]),
        reciprocal_rank=measure(
            [one.reciprocal_rank for one in choices],
            [math.fsum(1 / place for place in range(1, one.count + 1)) / one.count for one in choices],
        ),
        # A query without so many candidates is lost, so there the chance is 0.
        majority=measure([place == most for place in places], [(most < one.count) / one.count for one in choices]),
        majority_position=most if places else None,
        text=measure([one.text for one in grids], alone),
        image=measure([one.image for one in grids], alone),
        group=measure([one.group for one in grids], [one.chance for one in grids]),
    )


def _strictly_first(scores: Float[np.ndarray, "n n"]) -> Bool[np.ndarray, " n"]:
    return (scores >= np.diagonal(scores)[:, None]).sum(axis=1) == 1


def _shared(scores: Float[np.ndarray, "rows candidates"]) -> Bool[np.ndarray, " rows"]:
    return (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1
