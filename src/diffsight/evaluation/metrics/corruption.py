"""Robustness to corruptions: mean accuracies, mCE and relative mCE (Hendrycks & Dietterich 2019, arXiv:1903.12261)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Estimate

_CHUNK = 64
_EQUAL = 1e-9  # Error rates that differ by less are the same: a mean of fractions is rounded.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ErrorRates:
    """Error rates of a classifier, such as those that a paper prints.

    Attributes:
        types: Names of the corruptions.
        errors: Of each corruption at each severity, from 0 to 1. One column if only the mean over severities is known.
        clean: On the images as they are; None if not known, which leaves out the relative mCE.

    Raises:
        InputError: If shapes do not fit, or a number is no rate.
    """

    types: tuple[str, ...]
    errors: Float[np.ndarray, "types severities"]
    clean: float | None = None

    def __post_init__(self) -> None:
        if self.errors.ndim != 2 or len(self.errors) != len(self.types) or not self.errors.size:
            raise InputError(f"There are {len(self.types)} corruptions, but errors have the shape {self.errors.shape}.")
        _check_unique(self.types)
        for value in (*self.errors.ravel().tolist(), self.clean or 0.0):
            if not 0 <= value <= 1:
                raise InputError(f"An error rate lies between 0 and 1 (not in percent); got {value}.")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Corrupted:
    """Which images a classifier got right, clean and corrupted: the same images everywhere.

    Attributes:
        types: Names of the corruptions.
        correct: Of each corruption, severity and image. An image without an answer counts as wrong.
        clean: Of each image as it is.

    Raises:
        InputError: If shapes do not fit.
    """

    types: tuple[str, ...]
    correct: Bool[np.ndarray, "types severities images"]
    clean: Bool[np.ndarray, " clean"]

    def __post_init__(self) -> None:
        shape = self.correct.shape
        if len(shape) != 3 or shape[0] != len(self.types) or shape[2] != len(self.clean) or not self.correct.size:
            raise InputError(
                f"{len(self.types)} corruptions of {len(self.clean)} images do not fit answers of the shape {shape}: "
                "give (corruptions, severities, images), of the same images everywhere."
            )
        _check_unique(self.types)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptionMetrics:
    """What corruptions do; the intervals are of a bootstrap over images, which all corruptions share.

    Attributes:
        images: How many.
        clean: Accuracy on the images as they are.
        mean: Accuracy over all corruptions and severities.
        by_type: Accuracy by corruption.
        by_severity: Accuracy by severity, from the first.
        corruption_errors: CE by corruption (eq. 1): 1 is as bad as the reference. None without one, like the rest.
        mce: Their mean.
        relative_mce: Mean of the relative CE (eq. 2): the loss against clean images, over that of the reference.
        undefined: Corruptions in which the reference has no loss, so that they have no relative CE and are left out.
    """

    images: int
    clean: Estimate
    mean: Estimate
    by_type: dict[str, Estimate]
    by_severity: tuple[Estimate, ...]
    corruption_errors: dict[str, Estimate] | None = None
    mce: Estimate | None = None
    relative_mce: Estimate | None = None
    undefined: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; errors and mCE as ratios, which papers print in percent."""
        values = asdict(self)
        return values | {"by_severity": list(values["by_severity"]), "undefined": list(values["undefined"])}


def corruption_errors(model: ErrorRates, reference: ErrorRates) -> dict[str, float]:
    """CE of each corruption (1903.12261, eq. 1): summed over severities, over that of the reference.

    Raises:
        InputError: If the two have other corruptions, or the reference makes no error in one.
    """
    order = _order(model.types, reference.types)
    below = reference.errors.mean(axis=1)[order]
    if not below.all():
        raise InputError(f"The reference makes no error under {model.types[int(below.argmin())]!r}: no CE there.")
    return dict(zip(model.types, (model.errors.mean(axis=1) / below).tolist(), strict=True))


def relative_corruption_errors(model: ErrorRates, reference: ErrorRates) -> dict[str, float]:
    """Relative CE of each corruption (1903.12261, eq. 2): what it adds to the clean error, over that of the reference.

    Corruptions that do not make the reference worse have none and are left out.

    Raises:
        InputError: If the two have other corruptions, or a clean error is not known.
    """
    if model.clean is None or reference.clean is None:
        raise InputError("A relative CE needs the error on clean images, of the model and of the reference.")
    order = _order(model.types, reference.types)
    above = model.errors.mean(axis=1) - model.clean
    below = reference.errors.mean(axis=1)[order] - reference.clean
    pairs = zip(model.types, above.tolist(), below.tolist(), strict=True)
    return {name: mine / theirs for name, mine, theirs in pairs if theirs > _EQUAL}


def summarize_corruptions(
    results: Corrupted,
    *,
    reference: Corrupted | ErrorRates | None = None,
    seed: int = 0,
    resamples: int = 1000,
    level: float = 0.95,
) -> CorruptionMetrics:
    """Summarise a classifier's answers on corrupted images.

    Args:
        results: Its answers.
        reference: What it is measured against: answers on the same images, which are then resampled together, or
            published error rates, which count as exact.
        seed: Of the bootstrap.
        resamples: How many times the images are resampled.
        level: Confidence level of the intervals.

    Raises:
        InputError: If the reference has other corruptions or images, or makes no error under one.
    """
    images = len(results.clean)
    joint = reference if isinstance(reference, Corrupted) else None
    if joint is not None and len(joint.clean) != images:
        raise InputError(f"The reference has {len(joint.clean)} images and the model {images}: use the same images.")
    numbers, names = _numbers(results, reference, np.ones((1, images)))
    drawn = [_numbers(results, reference, part)[0] for part in _resampled(images, seed, resamples)]
    ends = [(1 - level) / 2, (1 + level) / 2]
    found = {}
    for name, value, values in zip(names, numbers[0].tolist(), np.concatenate(drawn).T, strict=True):
        if np.isfinite(value):
            low, high = np.quantile(values[np.isfinite(values)], ends)
            found[name] = Estimate(value, min(float(low), value), max(float(high), value))
    severities = results.correct.shape[1]
    shown: dict[str, Any] = {}
    if reference is not None:
        shown["corruption_errors"] = {name: found[f"ce {name}"] for name in results.types}
        shown["mce"] = found["mce"]
        shown["relative_mce"] = found.get("relative mce")
        if _known(reference).clean is not None:
            kept = relative_corruption_errors(_rates(results), _known(reference))
            shown["undefined"] = tuple(name for name in results.types if name not in kept)
    return CorruptionMetrics(
        images=images,
        clean=found["clean"],
        mean=found["mean"],
        by_type={name: found[f"type {name}"] for name in results.types},
        by_severity=tuple(found[f"severity {index}"] for index in range(severities)),
        **shown,
    )


def _numbers(
    results: Corrupted, reference: Corrupted | ErrorRates | None, weights: Float[np.ndarray, "draws images"]
) -> tuple[np.ndarray, list[str]]:
    """All numbers for each weighting of the images, shape (draws, numbers), and what they are called."""
    severities = results.correct.shape[1]
    clean, cells = _weighted(results, weights)
    columns = [clean, cells.mean(axis=(1, 2)), *cells.mean(axis=2).T, *cells.mean(axis=1).T]
    names = ["clean", "mean", *(f"type {name}" for name in results.types)]
    names += [f"severity {index}" for index in range(severities)]
    if reference is not None:
        order = _order(results.types, reference.types)
        if isinstance(reference, Corrupted):
            base, their = _weighted(reference, weights)
            base, their = 1 - base, 1 - their.mean(axis=2)[:, order]
        else:
            base = np.full(len(weights), np.nan if reference.clean is None else reference.clean)
            their = np.repeat(reference.errors.mean(axis=1)[order][None], len(weights), axis=0)
        corruption_errors(_rates(results), _known(reference))  # refuses a reference without errors
        errors = 1 - cells.mean(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = np.where(their > 0, errors / their, np.nan)
            lost = their - base[:, None]
            relative = np.where(lost > _EQUAL, (errors - (1 - clean[:, None])) / lost, np.nan)
        columns += [*ratios.T, _mean(ratios), _mean(relative)]
        names += [*(f"ce {name}" for name in results.types), "mce", "relative mce"]
    return np.stack(columns, axis=1), names


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row over what is a number there; NaN if nothing is."""
    count = np.isfinite(values).sum(axis=1)
    return np.where(count > 0, np.nansum(values, axis=1) / np.maximum(count, 1), np.nan)


def _weighted(results: Corrupted, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy on clean images, and of each corruption and severity, for each weighting of the images."""
    total = weights.sum(axis=1)
    cells = weights @ results.correct.reshape(-1, results.correct.shape[2]).T.astype(np.float64)
    shape = (len(weights), *results.correct.shape[:2])
    return weights @ results.clean / total, (cells / total[:, None]).reshape(shape)


def _resampled(images: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        count = min(_CHUNK, resamples - start)
        yield rng.multinomial(images, np.full(images, 1 / images), size=count).astype(np.float64)


def _rates(results: Corrupted) -> ErrorRates:
    errors = 1 - results.correct.mean(axis=2)
    return ErrorRates(types=results.types, errors=errors, clean=float(1 - results.clean.mean()))


def _known(reference: Corrupted | ErrorRates) -> ErrorRates:
    return _rates(reference) if isinstance(reference, Corrupted) else reference


def _order(types: tuple[str, ...], others: tuple[str, ...]) -> list[int]:
    """Where each type is among the others."""
    if differing := sorted({*types} ^ {*others}):
        raise InputError(f"Model and reference have other corruptions: {', '.join(differing)} only in one of them.")
    return [others.index(name) for name in types]


def _check_unique(types: tuple[str, ...]) -> None:
    if len({*types}) < len(types):
        raise InputError(f"A corruption is named twice: {', '.join(types)}.")
