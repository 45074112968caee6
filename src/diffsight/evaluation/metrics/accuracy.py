"""Shares of right answers with their intervals.

A tie is never a success: where several classes share the best score, the image is counted as wrong and as a tie.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

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


def mean_of_shares(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """Mean of values between 0 and 1, with Wilson's score interval.

    For successes, 0 or 1, it is that of `wilson`. Values between have at most the variance p (1 − p) of
    successes with the same mean p, which is all that the interval uses, so for them it is too wide rather than too
    narrow. A bootstrap would need random numbers, and has no width at all where every query is the same tie.

    Args:
        values: At least one.
        level: Confidence level of the interval.

    Raises:
        InputError: If ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1 (0.95 is 95 %); got {level!r}.")
    count, mean = len(values), min(math.fsum(values) / len(values), 1.0)
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle = (mean + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(mean * (1 - mean) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    # At a mean of 0 or 1 the interval ends there; rounding must not put the mean outside of it.
    return Estimate(mean, min(max(middle - half, 0.0), mean), max(min(middle + half, 1.0), mean))


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
