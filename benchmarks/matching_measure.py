"""What the benchmarks of matching share: measuring queries once for all scores, judging them, and keeping results."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffsight.backbones.base import Backbone
from diffsight.data.binding import binding_examples
from diffsight.data.queries import Query
from diffsight.data.scenes import draw
from diffsight.evaluation.metrics.accuracy import mean_of_shares
from diffsight.evaluation.metrics.matching import judge
from diffsight.matching.candidates import Candidates, prepare
from diffsight.matching.contest import measured
from diffsight.matching.scores import PMI, Attention, DenoisingError, Hybrid, Score
from diffsight.matching.settings import MatchSettings, weights_of
from diffsight.matching.statistics import Statistics
from diffsight.scoring.elimination import Exhaustive
from diffsight.store.disk import make, put, to_json

TENTHS = 10
Report = Callable[[int, int], None]
_LEARNT_FROM = 1000  # First seed of scenes to learn from; those of the tasks have 0.
_TOGETHER = 64  # Queries measured between two reports of progress.


def scores_for(queries: Sequence[Query]) -> dict[str, Score]:
    """The scores by name; between images, attention is compared less that of the empty caption."""
    null = "subtract" if queries[0].form == "images" else "ignore"
    return {"error": DenoisingError(), "pmi": PMI(), "attention": Attention(null=null), "hybrid": Hybrid()}


def measure(
    backbone: Backbone,
    settings: MatchSettings,
    queries: Sequence[Query],
    *,
    batch_size: int,
    with_empty: bool = True,
    report: Report,
) -> tuple[list[Statistics | str], np.ndarray, int]:
    """Measure all that any score needs, once.

    Args:
        backbone: The model.
        settings: Draws, layers and the rest; the score is not used.
        queries: What is asked.
        batch_size: Rows per call of the model.
        with_empty: Also under the empty caption. It is the same for all captions of an image and cancels in every
            difference: where it is not measured it stands as 0, and scores of different images mean nothing.
        report: Called with (queries finished, calls of the denoiser).

    Returns:
        What was measured of each query, or why nothing was; the weight of each draw; and the calls.
    """
    every, everything = Exhaustive(num_draws=settings.draws), Hybrid()  # It looks at attention and the empty caption.
    sets = [Candidates(pictures=query.images, texts=query.texts, policy=every) for query in queries]
    ready = prepare(backbone, replace(settings, score=everything), sets, batch_size=batch_size)
    found: list[Statistics | str] = [ready.failures.get(place, "") for place in range(len(queries))]
    report(0, 0)
    for start in range(0, len(ready.fields), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        wanted = everything if with_empty else Attention()
        some = measured(ready.ledger, ready.fields[part], settings.draws, wanted)
        for place, statistics in zip(ready.places[part], some, strict=True):
            found[place] = statistics if with_empty else _without_empty(statistics)
        report(min(start + _TOGETHER, len(queries)), ready.ledger.calls)
    return found, weights_of(settings, ready.ledger.scorer.levels, backbone), ready.ledger.calls


def examples_of(tests: Sequence[str], count: int, *, seed: int) -> tuple[Query, ...]:
    """Queries to learn from: the tests in turn, in an order that the seed decides; fewer are the first of more.

    Args:
        tests: Tests of attribute binding.
        count: How many queries.
        seed: Which ones; none of them is in a task.
    """
    order = [tests[int(place)] for place in np.random.default_rng(seed).permutation(len(tests))]
    scenes = {test: binding_examples(test, count, seed=_LEARNT_FROM + seed) for test in order}
    queries = []
    for number in range(count):
        test, positive = order[number % len(order)], number % 2
        one = next(scenes[test])
        texts = (one.true, one.false)[:: 1 - 2 * positive]
        queries.append(Query(id=f"{test}/{number}", images=(draw(one.scene),), texts=texts, positive=positive))
    return tuple(queries)


def _without_empty(one: Statistics) -> Statistics:
    return replace(one, null_errors=np.zeros_like(one.errors), null_attention=np.zeros_like(one.attention))


def hits(
    queries: Sequence[Query],
    found: Sequence[Statistics | str],
    score: Score,
    weights: np.ndarray,
    *,
    tenth: int | None = None,
) -> list[float | None]:
    """Success of each query by a score, a tie of m counting 1/m; None of a failure, and where there is no draw.

    Args:
        queries: What was asked.
        found: What was measured of each, or why nothing was.
        score: What is compared.
        weights: Of each draw's error.
        tenth: Only draws of this tenth of the noise levels; None for all.
    """
    result: list[float | None] = []
    for query, one in zip(queries, found, strict=True):
        shape = len(query.images), len(query.texts)
        mean = np.full(shape, np.nan)
        if not isinstance(one, str):
            used = np.full(len(one.times), True) if tenth is None else np.floor(one.times * TENTHS) == tenth
            values = score.per_draw(one, weights)[used]
            if used.any() and np.isfinite(values).all():
                mean = values.mean(axis=0).reshape(shape)
        result.append(judge(query, mean).hit)
    return result


def average(values: Sequence[float | None]) -> float | None:
    """Mean of what is known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def interval(values: Sequence[float | None]) -> str:
    """Accuracy with its 95 % Wilson interval."""
    known = [value for value in values if value is not None]
    found = mean_of_shares(known) if known else None
    return "–" if found is None else f"{found.value:.1%} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def percent(value: float | None) -> str:
    """A share, or a dash."""
    return "–" if value is None else f"{value:.1%}"


def read_lines(path: Path) -> dict[str, Any]:
    """What was kept, by key."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {key: value for line in lines for key, value in json.loads(line).items()}


def keep(path: Path, lines: Mapping[str, Any]) -> None:
    """Keep results by key, a line each; the file is whole whenever the process is killed."""
    make(path.resolve().parent)
    put(path, "".join(to_json({key: value}, "A result") + "\n" for key, value in lines.items()).encode())
