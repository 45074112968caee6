"""Which of two runs is better on the same images: a paired difference with interval and p-value.

Two accuracies on the same images share their easy and hard ones, so their own intervals say little about their
difference. What counts is where the two disagree. Runs of different questions are refused.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Estimate, Metric, wilson
from diffsight.store.run import Run

Failures = Literal["leave-out", "wrong"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Which labelled images a run got right, and what it was asked.

    Attributes:
        name: What to call it.
        asked: What two runs must have in common: ``task``, ``task version``, ``data`` and ``class names``.
        metric: What the task reports.
        labels: True class of each labelled image with an answer, by its id.
        correct: Whether the answer is right, by the image's id; a tie is wrong.
        failed: Ids of the images without an answer.
    """

    name: str
    asked: Mapping[str, Any]
    metric: Metric
    labels: Mapping[str, int]
    correct: Mapping[str, bool]
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedComparison:
    """Two runs on the same images.

    Attributes:
        names: Of the two.
        metric: What is compared.
        images: How many are compared.
        both: Of these, how many both got right.
        first_only: How many only the first got right.
        second_only: How many only the second got right.
        neither: How many neither got right.
        first: The metric of the first on these images: accuracy, or its mean over the classes.
        second: The metric of the second on these images.
        difference: First minus second. For top-1 with Newcombe's interval for paired shares, which has a width even
            where the two never disagree; for the mean over classes with that of the bootstrap.
        bootstrap: The same with the percentile interval of a paired bootstrap, within classes for their mean.
        p_value: Two-sided, of no difference: McNemar's exact test for top-1; for the mean over classes a randomisation
            test, which lets each image on which the two disagree swap sides.
        failures: Whether images that failed in a run are left out or count as its error.
        coverage: Of all images of either run, how many the ``first`` and the ``second`` answered, how many of them
            ``both``, and how many ``neither``.
    """

    names: tuple[str, str]
    metric: Metric
    images: int
    both: int
    first_only: int
    second_only: int
    neither: int
    first: float
    second: float
    difference: Estimate
    bootstrap: Estimate
    p_value: float
    failures: Failures
    coverage: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"names": list(self.names)}


def read_answers(path: Path | str, *, name: str | None = None) -> Answers:
    """Read a finished run of images and classes, of whatever method.

    Args:
        path: Its directory.
        name: What to call it; by default its path.

    Raises:
        RunError: If there is no run, or it is damaged.
        InputError: If it is a run of something else, or not finished.
    """
    run, name = Run.load(path), name or str(path)
    fields = run.manifest.fingerprint_fields
    if "predictions" not in run.tables or not {"task", "data", "classes"} <= fields.keys():
        raise InputError(
            f"{path} is no run of 'diffsight evaluate', or has not committed anything yet: it holds no predictions of "
            "classes. Give a finished run."
        )
    table, failed = run.read("predictions"), frozenset(failure["id"] for failure in run.failures())
    done, total = table.num_rows + len(failed), fields["data"]["images"]
    if done < total:
        raise InputError(
            f"{path} is not finished: {done} of {total} images. Give the command again that made it, then compare."
        )
    columns = {key: table[key].to_pylist() for key in ("id", "label", "prediction", "tie")}
    rows = zip(*columns.values(), strict=True)
    known = {id: (label, prediction == label and not tie) for id, label, prediction, tie in rows if label is not None}
    return Answers(
        name=name,
        asked=asked(fields),
        metric=fields["task"].get("metric", "top1"),
        labels={id: label for id, (label, _) in known.items()},
        correct={id: right for id, (_, right) in known.items()},
        failed=failed,
    )


def asked(fields: Mapping[str, Any]) -> dict[str, Any]:
    """What two runs must have in common, from the fields of a run's fingerprint."""
    task, data = fields["task"], fields["data"]
    return {
        "task": task["name"],
        "task version": task["version"],
        "data": {"images": data["images"], "ids and labels": data["ids"]},
        "class names": tuple(fields["classes"]),
    }


def differences(first: Answers, second: Answers) -> list[str]:
    """Why two runs must not be compared image by image, one reason a line; empty if they may."""
    lines = []
    for key in first.asked:
        mine, theirs = first.asked[key], second.asked.get(key)
        if mine == theirs:
            continue
        if key == "class names" and theirs is not None:
            lines.append(f"class names: {_first_difference(mine, theirs)}")
        elif key == "data" and theirs is not None:
            counts = f"{mine['images']} in the first, {theirs['images']} in the second"
            lines.append(f"images: {counts}" if mine["images"] != theirs["images"] else "images: other ids or labels")
        else:
            lines.append(f"{key}: {mine!r} in the first, {theirs!r} in the second")
    shared = first.labels.keys() & second.labels.keys()
    if other := sorted(id for id in shared if first.labels[id] != second.labels[id]):
        lines.append(f"labels: {len(other)} images have others, {other[0]!r} for one")
    return lines


def compare_answers(
    first: Answers,
    second: Answers,
    *,
    metric: Metric | None = None,
    failures: Failures = "leave-out",
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> PairedComparison:
    """Compare two runs on the images that both have answered, or on all.

    Args:
        first: From `read_answers`, or re-scored.
        second: Likewise.
        metric: What to compare; by default what the task reports.
        failures: ``"leave-out"`` compares where both have an answer; ``"wrong"`` counts a failure as an error of the
            run that has it (images that fail in both have no known label and are left out).
        seed: Of bootstrap and randomisation.
        resamples: Of each.
        level: Confidence level of the intervals.

    Raises:
        InputError: If the two must not be compared, with what differs; or there is no labelled image to compare on.
    """
    if reasons := differences(first, second):
        raise InputError(
            f"{first.name} and {second.name} must not be compared image by image:\n"
            + "\n".join(f"  {reason}" for reason in reasons)
            + "\nEvaluate both on the same version of one task, with the same images and classes."
        )
    metric = metric or first.metric
    here, there = first.labels.keys(), second.labels.keys()
    # What is in neither a run's answers nor its failures was left out of it on purpose: no error.
    wrong = failures == "wrong"
    ids = sorted((here | (first.failed if wrong else set())) & (there | (second.failed if wrong else set())))
    ids = [id for id in ids if id in here or id in there]
    if not ids:
        raise InputError(f"{first.name} and {second.name} have no labelled image in common that both have answered.")
    labels = np.array([first.labels.get(id, second.labels.get(id)) for id in ids])
    a = np.array([first.correct.get(id, False) for id in ids])
    b = np.array([second.correct.get(id, False) for id in ids])
    groups = [labels == label for label in np.unique(labels)] if metric == "mean_per_class" else [np.ones(len(a), bool)]
    counts = np.array([[(a & ~b & here).sum(), (b & ~a & here).sum(), here.sum()] for here in groups])
    only_a, only_b, sizes = counts.T
    value = float(((only_a - only_b) / sizes).mean())
    rng = np.random.default_rng(seed)
    bootstrap = _bootstrap(counts, value, rng, resamples, level)
    per_class = metric == "mean_per_class"
    everything = here | there | first.failed | second.failed
    return PairedComparison(
        names=(first.name, second.name),
        metric=metric,
        images=len(ids),
        both=int((a & b).sum()),
        first_only=int(only_a.sum()),
        second_only=int(only_b.sum()),
        neither=int((~a & ~b).sum()),
        first=float(np.mean([a[group].mean() for group in groups])),
        second=float(np.mean([b[group].mean() for group in groups])),
        difference=bootstrap if per_class else newcombe(_table(a, b), level=level),
        bootstrap=bootstrap,
        p_value=_randomised(counts, value, rng, resamples) if per_class else mcnemar(int(only_a[0]), int(only_b[0])),
        failures=failures,
        coverage={
            "images": len(everything),
            "first": len(here),
            "second": len(there),
            "both": len(here & there),
            "neither": len(everything - here - there),
        },
    )


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p-value that two classifiers are equally often right (McNemar 1947): a sign test.

    Args:
        first_only: Images that only the first got right.
        second_only: Images that only the second got right.
    """
    from scipy.stats import binomtest

    disagree = first_only + second_only
    return float(binomtest(first_only, disagree).pvalue) if disagree else 1.0


def newcombe(table: tuple[int, int, int, int], *, level: float = 0.95) -> Estimate:
    """Difference of two paired shares with the square-and-add interval of Wilson's limits.

    Newcombe 1998, Statistics in Medicine 17, 2635-2650, method 10.

    Args:
        table: How many images both, only the first, only the second, and neither got right.
        level: Confidence level of the interval.
    """
    both, first, second, neither = table
    n = sum(table)
    a, b = wilson(both + first, n, level=level), wilson(both + second, n, level=level)
    margins = float((both + first) * (second + neither) * (both + second) * (first + neither))
    product = both * neither - first * second
    product = max(product - n / 2, 0) if product > 0 else product
    correlation = product / margins**0.5 if margins else 0.0
    value = (first - second) / n

    def reach(x: float, y: float) -> float:
        return max(x * x - 2 * correlation * x * y + y * y, 0.0) ** 0.5

    return Estimate(
        value, value - reach(a.value - a.low, b.high - b.value), value + reach(a.high - a.value, b.value - b.low)
    )


def _bootstrap(counts: np.ndarray, value: float, rng: np.random.Generator, resamples: int, level: float) -> Estimate:
    """Resample images within their group: only whether the two disagree, and how, matters."""
    drawn = np.zeros(resamples)
    for only_a, only_b, size in counts:
        parts = rng.multinomial(size, [only_a / size, only_b / size, (size - only_a - only_b) / size], size=resamples)
        drawn += (parts[:, 0] - parts[:, 1]) / size / len(counts)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _randomised(counts: np.ndarray, value: float, rng: np.random.Generator, resamples: int) -> float:
    """How often chance alone gives as large a mean difference over the groups."""
    disagree, sizes = counts[:, 0] + counts[:, 1], counts[:, 2]
    swapped = rng.binomial(disagree, 0.5, size=(resamples, len(counts)))
    drawn = ((2 * swapped - disagree) / sizes).mean(axis=1)
    return float((1 + (np.abs(drawn) >= abs(value) - 1e-12).sum()) / (resamples + 1))


def _table(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int, int]:
    return int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum())


def _first_difference(mine: tuple[str, ...], theirs: tuple[str, ...]) -> str:
    if len(mine) != len(theirs):
        return f"{len(mine)} in the first, {len(theirs)} in the second"
    place = next(index for index, pair in enumerate(zip(mine, theirs, strict=True)) if pair[0] != pair[1])
    return f"class {place} is {mine[place]!r} in the first, {theirs[place]!r} in the second"
