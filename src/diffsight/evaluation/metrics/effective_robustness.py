"""Effective robustness: accuracy under a shift, beyond what accuracy without it predicts (Taori et al. 2007.00644).

Accuracies of ordinary models on a data set and on its shifted version lie near a straight line after a logit. A
model's effective robustness is how far it is above that line, in accuracy (2007.00644, §2, eq. 1). One model above the
line without an interval is no evidence: here it comes from the binomial counts of all models, those of the line, too.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from diffsight.errors import InputError, nearest
from diffsight.evaluation.metrics.accuracy import Estimate

SCALES = ("logit", "probit", "linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftResult:
    """A model's counts on a data set and on its shifted version.

    Attributes:
        name: The model.
        correct: Right answers without the shift. For ImageNet-A and R on the classes that these have.
        images: Images without the shift.
        shifted_correct: Right answers under it.
        shifted_images: Images under it.

    Raises:
        InputError: If there is no image, or a count is impossible.
    """

    name: str
    correct: int
    images: int
    shifted_correct: int
    shifted_images: int

    def __post_init__(self) -> None:
        for right, of in ((self.correct, self.images), (self.shifted_correct, self.shifted_images)):
            if of < 1 or not 0 <= right <= of:
                raise InputError(f"{self.name}: {right} right answers of {of} images make no sense.")

    @property
    def accuracy(self) -> float:
        """Without the shift."""
        return self.correct / self.images

    @property
    def shifted_accuracy(self) -> float:
        """Under the shift."""
        return self.shifted_correct / self.shifted_images


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """The line that ordinary models follow.

    Attributes:
        slope: On the scale below.
        intercept: On the scale below.
        scale: What both accuracies went through before the fit.
        models: Through whose results it was drawn.
        spread: Standard deviation of these models' accuracies under the shift about the line; None for two models.
    """

    slope: float
    intercept: float
    scale: str = "logit"
    models: tuple[str, ...] = ()
    spread: float | None = None

    def predict(self, accuracy: float) -> float:
        """Accuracy under the shift that the line gives to a model with this accuracy without it."""
        forward, back = _transforms(self.scale)
        return float(back(self.slope * forward(np.float64(accuracy)) + self.intercept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """How far a model is from the line.

    Attributes:
        name: The model.
        accuracy: Without the shift.
        shifted_accuracy: Under it.
        predicted: What the line gives.
        robustness: Effective robustness, the difference of the last two, with the interval of the counts.
    """

    name: str
    accuracy: float
    shifted_accuracy: float
    predicted: float
    robustness: Estimate

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def fit_trend(models: Sequence[ShiftResult], *, scale: str = "logit") -> Trend:
    """Draw the line by least squares on the transformed accuracies.

    Accuracies of 0 and 1 have no logit: they stand half a right or wrong answer away from it.

    Args:
        models: At least two ordinary ones that were trained on the same data, and only on that (2007.00644, §3).
        scale: ``"logit"``, ``"probit"`` or ``"linear"``.

    Raises:
        InputError: If there are fewer than two, or all have the same accuracy.
    """
    if scale not in SCALES:
        raise InputError(f"Unknown scale {scale!r}. {nearest(scale, SCALES)}")
    if len(models) < 2:
        raise InputError(f"A line needs at least two reference models, better ten; got {len(models)}.")
    x, y = (row[:, None] for row in _shares(models))
    if np.ptp(x) == 0:
        raise InputError(f"All {len(models)} reference models have the accuracy {x[0, 0]:.3f}: no line goes through.")
    slope, intercept = _lines(x, y, scale)
    trend = Trend(slope=float(slope[0]), intercept=float(intercept[0]), scale=scale)
    apart = [float(b) - trend.predict(float(a)) for a, b in zip(x[:, 0], y[:, 0], strict=True)]
    spread = float(np.sqrt(np.square(apart).sum() / (len(models) - 2))) if len(models) > 2 else None
    names = tuple(model.name for model in models)
    return Trend(slope=trend.slope, intercept=trend.intercept, scale=scale, models=names, spread=spread)


def effective_robustness(
    model: ShiftResult,
    references: Sequence[ShiftResult] | Trend,
    *,
    scale: str = "logit",
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> Effective:
    """How far a model is above the line of the reference models.

    The interval holds for other images, not for other reference models: each count is drawn anew from what is known of
    it (its Jeffreys posterior) and the line is drawn again. See `Trend.spread` for how far ordinary models are off it.

    Args:
        model: The one in question; it should not be among the references.
        references: Through which the line is drawn; or a published line, which then counts as exact.
        scale: Of the line; that of the published one, if one is given.
        seed: Of the draws.
        resamples: How many draws.
        level: Confidence level of the interval.

    Raises:
        InputError: As `fit_trend`; or if the model is among the references.
    """
    known = isinstance(references, Trend)
    trend = references if known else fit_trend(references, scale=scale)
    if model.name in trend.models:
        raise InputError(f"{model.name} is one of the reference models: leave it out of the line that it is held to.")
    predicted = trend.predict(_shares([model])[0][0])
    value = model.shifted_accuracy - predicted
    rng = np.random.default_rng(seed)
    own, shifted = _drawn([model], rng, resamples)
    forward, back = _transforms(trend.scale)
    if known:
        slope, intercept = np.full(resamples, trend.slope), np.full(resamples, trend.intercept)
    else:
        slope, intercept = _lines(*_drawn(references, rng, resamples), trend.scale)
    drawn = shifted[0] - back(slope * forward(own[0]) + intercept)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Effective(
        name=model.name,
        accuracy=model.accuracy,
        shifted_accuracy=model.shifted_accuracy,
        predicted=predicted,
        robustness=Estimate(value, min(float(low), value), max(float(high), value)),
    )


def _shares(models: Sequence[ShiftResult]) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies, half an answer away from 0 and 1."""

    def share(right: int, of: int) -> float:
        return min(max(right, 0.5), of - 0.5) / of

    return (
        np.array([share(model.correct, model.images) for model in models]),
        np.array([share(model.shifted_correct, model.shifted_images) for model in models]),
    )


def _drawn(models: Sequence[ShiftResult], rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """What the accuracies may be, shape (models, draws) each."""
    plain = [rng.beta(one.correct + 0.5, one.images - one.correct + 0.5, count) for one in models]
    shifted = [
        rng.beta(one.shifted_correct + 0.5, one.shifted_images - one.shifted_correct + 0.5, count) for one in models
    ]
    return np.stack(plain), np.stack(shifted)


def _lines(
    x: Float[np.ndarray, "models draws"], y: Float[np.ndarray, "models draws"], scale: str
) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of the least squares of each draw."""
    forward = _transforms(scale)[0]
    x, y = forward(x), forward(y)
    apart = x - x.mean(axis=0)
    slope = (apart * y).sum(axis=0) / np.square(apart).sum(axis=0)
    return slope, y.mean(axis=0) - slope * x.mean(axis=0)


def _transforms(scale: str) -> tuple[Any, Any]:
    from scipy import special

    same = np.asarray
    return {"logit": (special.logit, special.expit), "probit": (special.ndtri, special.ndtr), "linear": (same, same)}[
        scale
    ]
