"""Accuracy with intervals, calibration, ties, coverage and cost, from the tables of a run: pure numpy.

A tie is never a success: where several classes share the best score, the image is counted as wrong and as a tie. A
failed image is neither right nor wrong: accuracy is over the scored images, and the coverage stands beside it.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from diffsight.errors import InputError

Metric = Literal["top1", "mean_per_class"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its interval: a share between 0 and 1, or a difference of shares.

    Attributes:
        value: The number.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """How often images of a stated confidence are right: a reliability diagram.

    Attributes:
        edges: Ends of the equal-width bins of confidence, from 0 to 1; a bin contains its upper end.
        counts: Images in each bin.
        accuracy: Share of right images in each bin, NaN in an empty one.
        confidence: Mean confidence in each bin, NaN in an empty one.
    """

    edges: Float[np.ndarray, " ends"]
    counts: Int[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap of accuracy and confidence, weighted by the images in each bin."""
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())


def wilson(successes: int, total: int, *, level: float = 0.95) -> Estimate:
    """Share of successes with the Wilson score interval, which keeps its level near 0 and 1.

    Args:
        successes: How many.
        total: Of how many, at least 1.
        level: Confidence level of the interval.
    """
    from scipy.stats import binomtest  # slow to import, and the list of tasks does not need it

    interval = binomtest(successes, total).proportion_ci(level, method="wilson")
    return Estimate(successes / total, float(interval.low), float(interval.high))


def top_k(scores: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"], k: int = 1) -> Bool[np.ndarray, " n"]:
    """Which images have their label among the ``k`` best classes, even if every tie is decided against it.

    Args:
        scores: Higher is better; NaN (never scored) is below every number.
        labels: Index of the true class.
        k: How many classes may be named.

    Returns:
        True where fewer than ``k`` other classes score at least as high as the label.
    """
    ranked = np.where(np.isnan(scores), -np.inf, scores)
    own = np.take_along_axis(ranked, labels[:, None], axis=1)
    return (ranked >= own).sum(axis=1) <= k


def mean_per_class(
    correct: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    *,
    seed: int | np.random.Generator = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """Mean over the classes of the accuracy in each, with a stratified bootstrap percentile interval.

    Classes without an image do not count. Images are resampled within their class, so a class with one image adds
    nothing to the width: with few images per class the interval is too narrow.

    Args:
        correct: Which images are right.
        labels: Index of the true class.
        seed: Of the bootstrap, or a generator.
        resamples: How many times the data is resampled.
        level: Confidence level of the interval.
    """
    totals = np.bincount(labels)
    seen = totals > 0
    totals, hits = totals[seen], np.bincount(labels, weights=correct)[seen]
    # Drawing n images with replacement from n of which h are right gives a binomial number of right ones.
    drawn = np.random.default_rng(seed).binomial(totals, hits / totals, size=(resamples, len(totals)))
    low, high = np.quantile((drawn / totals).mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float((hits / totals).mean()), float(low), float(high))


def reliability(confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, bins: int = 15) -> Reliability:
    """Compare stated confidence with accuracy (Guo et al. 2017, arXiv:1706.04599, §2).

    Args:
        confidence: Probability of the predicted class.
        correct: Which images are right.
        bins: How many bins of equal width.
    """
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    known = np.where(counts > 0, counts, np.nan)
    return Reliability(
        edges,
        counts,
        np.bincount(index, weights=correct, minlength=bins) / known,
        np.bincount(index, weights=confidence, minlength=bins) / known,
    )


def cost(calls: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Denoiser calls per image, as total, mean, median and 95th percentile; all 0 without an image."""
    known = calls if len(calls) else np.zeros(1)
    return {
        "total": int(known.sum()),
        "mean": float(known.mean()),
        "median": float(np.median(known)),
        "p95": float(np.percentile(known, 95)),
    }


def summary(
    *,
    labels: Sequence[int | None],
    predictions: Sequence[int | None],
    probabilities: Float[np.ndarray, "n classes"] | None,
    ties: Sequence[bool],
    calls: Sequence[int],
    failures: int,
    class_names: Sequence[str],
    metric: Metric = "top1",
    seed: int = 0,
) -> dict[str, Any]:
    """All that is reported of a run, as JSON values.

    Args:
        labels: True class of each scored image; None (or -1) where it is not known: no part in accuracy.
        predictions: Predicted class of each scored image; None (or -1) where there is none, which is wrong.
        probabilities: Their probabilities, rows that sum to 1, or None when there are none.
        ties: Which images have no single best class; these are wrong whatever their prediction.
        calls: Denoiser calls of each scored image.
        failures: How many images could not be scored.
        class_names: The classes.
        metric: The one that the task reports as ``value``.
        seed: Of the bootstrap.

    Returns:
        ``metric`` and ``value``; ``images``, ``scored``, ``failed``, ``labelled``, ``ties`` and ``coverage``; ``top1``,
        ``top5`` (from six classes on) and ``mean_per_class``, each with ``value``, ``low`` and ``high`` at 95 %;
        ``calibration`` with ``ece``, ``mean_confidence`` and the filled ``bins``; ``selective`` (see
        `selective.selective_summary`); ``calls`` of the scored images; ``per_class``. What cannot be known is None:
        without labels all accuracies. Eliminated classes share the last place, so with an elimination that leaves one
        class ``top5`` is little more than ``top1``.

    Raises:
        InputError: If the lengths differ, or labels, predictions or probabilities are impossible.
    """
    scored = len(labels)
    lengths = {"predictions": len(predictions), "ties": len(ties), "calls": len(calls)}
    if probabilities is not None:
        lengths["probabilities"] = len(probabilities)
        _check_probabilities(probabilities, len(class_names))
    if wrong := [f"{count} {name}" for name, count in lengths.items() if count != scored]:
        raise InputError(f"There are {scored} labels but {', '.join(wrong)}; give one for each scored image.")
    truth = _class_indices(labels, class_names, "label")
    known = truth >= 0
    truth = truth[known]
    tied = np.array(ties, dtype=bool)
    correct = (_class_indices(predictions, class_names, "prediction")[known] == truth) & ~tied[known]
    images = scored + failures
    report: dict[str, Any] = {
        "metric": metric,
        "value": None,
        "images": images,
        "scored": scored,
        "failed": failures,
        "labelled": int(known.sum()),
        "ties": int(tied.sum()),
        "coverage": scored / images if images else None,
        "top1": None,
        "top5": None,
        "mean_per_class": None,
        "calibration": None,
        "selective": None,
        "calls": cost(np.array(calls, dtype=np.int64)),
        "per_class": None,
    }
    if not known.any():
        return report
    report["top1"] = asdict(wilson(int(correct.sum()), len(correct)))
    report["mean_per_class"] = asdict(mean_per_class(correct, truth, seed=seed))
    report["value"] = report[metric]["value"]
    report["per_class"] = [
        {"name": name, "images": int(here.sum()), "correct": int(correct[here].sum())}
        for name, here in ((name, truth == index) for index, name in enumerate(class_names))
    ]
    if probabilities is not None:
        stated = probabilities[known].astype(np.float64)
        if len(class_names) > 5:
            report["top5"] = asdict(wilson(int(top_k(stated, truth, 5).sum()), len(truth)))
        report |= confidence_metrics(stated.max(axis=1), correct, seed=seed)
    return report


def confidence_metrics(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, seed: int = 0
) -> dict[str, Any]:
    """What a summary says of stated confidences: ``calibration`` and ``selective``.

    Args:
        confidence: Probability of the predicted class of each labelled image.
        correct: Which of them are right.
        seed: Of the bootstrap.
    """
    from diffsight.evaluation.selective import selective_summary  # which uses the above

    return {
        "calibration": _calibration(reliability(confidence, correct)),
        "selective": selective_summary(confidence, correct, seed=seed),
    }


def _calibration(diagram: Reliability) -> dict[str, Any]:
    filled = np.flatnonzero(diagram.counts)
    return {
        "ece": diagram.error,
        "mean_confidence": float(np.nansum(diagram.counts * diagram.confidence) / diagram.counts.sum()),
        "bins": [
            {
                "low": float(diagram.edges[index]),
                "high": float(diagram.edges[index + 1]),
                "images": int(diagram.counts[index]),
                "accuracy": float(diagram.accuracy[index]),
                "confidence": float(diagram.confidence[index]),
            }
            for index in filled
        ],
    }


def _class_indices(values: Sequence[int | None], class_names: Sequence[str], what: str) -> Int[np.ndarray, " n"]:
    indices = np.array([-1 if value is None else value for value in values], dtype=np.int64)
    if len(indices) and (indices.min() < -1 or indices.max() >= len(class_names)):
        bad = int(np.flatnonzero((indices < -1) | (indices >= len(class_names)))[0])
        raise InputError(
            f"The {what} of image {bad} is {indices[bad]}, but there are {len(class_names)} classes, counted from 0. "
            "Give the class names in the order of the data's labels."
        )
    return indices


def _check_probabilities(probabilities: Float[np.ndarray, "n classes"], classes: int) -> None:
    if probabilities.ndim != 2 or probabilities.shape[1] != classes:
        raise InputError(f"The probabilities have the shape {probabilities.shape}; there are {classes} classes.")
    good = (probabilities >= 0).all(axis=1) & (np.abs(probabilities.sum(axis=1) - 1) < 1e-3)
    if not good.all():
        bad = int(np.flatnonzero(~good)[0])
        raise InputError(f"The probabilities of image {bad} are {probabilities[bad]}: not 0 to 1 with the sum 1.")
