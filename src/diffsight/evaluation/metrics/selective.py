"""How far a confidence tells right answers from wrong ones: accuracy when only the surest images are answered.

Geifman & El-Yaniv 2017 (arXiv:1705.08500) for selective accuracy and the risk-coverage curve, Geifman et al. 2019
(arXiv:1805.08206) for the area under it. Images of equal confidence have no order, so each of them counts with the mean
of all: what a random order would give on average.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Estimate, mean_of_shares

COVERAGES = (0.5, 0.8, 0.9, 0.95)


@dataclass(frozen=True, slots=True, eq=False)
class RiskCoverage:
    """Share of wrong answers among the surest images, for each number of them.

    Attributes:
        coverage: Share of the images that are answered, from 1/n to 1; of all images if failures were counted.
        risk: Share of wrong answers among these.
    """

    coverage: Float[np.ndarray, " n"]
    risk: Float[np.ndarray, " n"]

    @property
    def area(self) -> float:
        """AURC: the mean risk over all numbers of answered images (1805.08206, §4)."""
        return float(self.risk.mean())

    @property
    def best_area(self) -> float:
        """The least AURC with as many wrong answers: all of them after all right ones."""
        n = len(self.risk)
        answered = np.arange(1, n + 1)
        return float((np.maximum(answered - (n - self.risk[-1] * n), 0) / answered).mean())

    @property
    def excess(self) -> float:
        """E-AURC: what the order of confidences costs, whatever the accuracy is (1805.08206, §4)."""
        return self.area - self.best_area


def risk_coverage(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " m"], *, failures: int = 0
) -> RiskCoverage:
    """Answer the surest image, the two surest, and so on.

    Args:
        confidence: Of each image, higher is surer; any scale.
        correct: Which images are right.
        failures: Images without an answer: never covered, never wrong.

    Raises:
        InputError: If there is no image, lengths differ, a confidence is NaN, or ``failures`` is negative.
    """
    if failures < 0:
        raise InputError(f"failures must be a number of images, at least 0; got {failures}.")
    wrong = 1 - _smoothed(confidence, correct)
    answered = np.arange(1, len(wrong) + 1)
    return RiskCoverage(answered / (len(wrong) + failures), wrong.cumsum() / answered)


def aurc(
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    *,
    seed: int = 0,
    resamples: int = 500,
    level: float = 0.95,
) -> Estimate:
    """Area under the risk-coverage curve with a bootstrap percentile interval; smaller is better.

    Args:
        confidence: Of each image, higher is surer.
        correct: Which images are right.
        seed: Of the bootstrap.
        resamples: How many times the images are resampled.
        level: Confidence level of the interval.

    Raises:
        InputError: As `risk_coverage`.
    """
    value, n = risk_coverage(confidence, correct).area, len(correct)
    order = np.argsort(-confidence, kind="stable")
    group = np.unique(-confidence[order], return_inverse=True)[1]
    wrong, rng, places = 1.0 - correct[order], np.random.default_rng(seed), np.arange(1, n + 1)
    areas = []
    for _ in range(resamples):
        drawn = np.sort(rng.integers(0, n, n))  # places in the order of confidence, so that sorting them sorts it
        mine = group[drawn]
        shares = np.bincount(mine, weights=wrong[drawn]) / np.maximum(np.bincount(mine), 1)
        areas.append((shares[mine].cumsum() / places).mean())
    low, high = np.quantile(areas, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, min(float(low), value), max(float(high), value))


def selective_accuracy(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], coverage: float, *, level: float = 0.95
) -> Estimate:
    """Accuracy on the surest images, with Wilson's interval for that many of them.

    Args:
        confidence: Of each image, higher is surer.
        correct: Which images are right.
        coverage: Share of the images that is answered, rounded up to whole images; over 0, up to 1.
        level: Confidence level of the interval.

    Raises:
        InputError: If ``coverage`` is out of range; or as `risk_coverage`.
    """
    if not 0 < coverage <= 1:
        raise InputError(f"coverage must be over 0 and at most 1 (0.8 answers 80 % of the images); got {coverage!r}.")
    right = _smoothed(confidence, correct)
    return mean_of_shares(right[: math.ceil(round(coverage * len(right), 9))].tolist(), level=level)


def selective_summary(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, seed: int = 0
) -> dict[str, Any]:
    """What a run reports of it, as JSON values.

    Returns:
        ``aurc`` with its interval; ``excess`` (E-AURC); ``accuracy_at``, a list with ``coverage`` and the accuracy with
        its interval there.
    """
    return {
        "aurc": asdict(aurc(confidence, correct, seed=seed)),
        "excess": risk_coverage(confidence, correct).excess,
        "accuracy_at": [
            {"coverage": share, **asdict(selective_accuracy(confidence, correct, share))} for share in COVERAGES
        ],
    }


def _smoothed(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Right answers from the surest image on; those of equal confidence as the mean of all of these."""
    if len(confidence) != len(correct) or not len(correct):
        raise InputError(
            f"Give one confidence for each answer, and at least one; got {len(confidence)} and {len(correct)}."
        )
    if np.isnan(confidence).any():
        raise InputError(f"The confidence of image {int(np.isnan(confidence).argmax())} is NaN; leave the image out.")
    _, group = np.unique(-confidence, return_inverse=True)  # ascending, so the surest come first
    counts = np.bincount(group)
    return np.repeat(np.bincount(group, weights=correct) / counts, counts)
