"""Probabilities of a run that are calibrated on its own labels, without any image calibrating itself.

The images are divided into five parts, and each part is calibrated on the other four. So what is measured holds for
unseen images; but labels were used, and the probabilities are not zero-shot.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Int

from diffsight.data.splits import random_order
from diffsight.errors import InputError
from diffsight.scoring.engine import Scored
from diffsight.zero_shot.calibration import fit_platt, fit_temperature
from diffsight.zero_shot.settings import Contest
from diffsight.zero_shot.verdict import Verdict, decide

CALIBRATIONS = ("temperature", "platt")
PROTOCOL = "not zero-shot: probabilities calibrated on labelled images (five-fold)"
FOLDS = 5


def cross_temperature(
    scored: Sequence[Scored], contest: Contest, labels: Sequence[int | None], *, seed: int = 0
) -> list[Verdict]:
    """Decide with a temperature that was fitted to the other parts.

    Args:
        scored: Images, all with a result.
        contest: What competes: classes, not single prompts.
        labels: True class of each image; one without takes no part in the fits.
        seed: Of the parts.

    Raises:
        InputError: If single prompts compete, or there are too few labelled images.
    """
    if contest.ensemble in ("min", "mixture") and len(contest.owner) > len(contest.class_names):
        raise InputError(
            f"A temperature is fitted to the errors of classes, and with the ensemble {contest.ensemble!r} single "
            "prompts compete. Use the ensemble 'mean'."
        )
    verdicts: list[Verdict | None] = [None] * len(scored)
    for learn, apply in _folds(labels, seed):
        tables = [contest.units.reduce(scored[index].errors) for index in learn]
        scale = fit_temperature(tables, np.array([labels[index] for index in learn])).scale
        for index in apply:
            verdicts[index] = decide(scored[index], contest, scale=scale)
    return [verdict for verdict in verdicts if verdict is not None]


def cross_platt(
    calls: Int[np.ndarray, " images"],
    correct: Bool[np.ndarray, " images"],
    labels: Sequence[int | None],
    *,
    seed: int = 0,
) -> Float[np.ndarray, " images"]:
    """Confidence of each answer from its number of calls, fitted to the other parts (Clark & Jaini 2303.15233).

    Args:
        calls: Denoiser calls of each image.
        correct: Whether its answer is right.
        labels: True class of each image; one without takes no part in the fits.
        seed: Of the parts.

    Raises:
        InputError: If all images took as many calls, or there are too few labelled ones; or as `fit_platt`.
    """
    if len(np.unique(calls)) == 1:
        raise InputError(
            f"Every image took {calls[0]} calls, which say nothing of how sure its answer is. Platt scaling is for "
            "policies that stop early, such as 'race' or 't-test'."
        )
    confidence = np.full(len(calls), np.nan)
    for learn, apply in _folds(labels, seed):
        confidence[apply] = fit_platt(calls[learn], correct[learn]).confidence(calls[apply])
    return confidence


def with_confidence(verdict: Verdict, confidence: float) -> Verdict:
    """The same verdict with another probability of its label; the rest is shared out among the others as before."""
    others = verdict.probabilities.copy()
    others[verdict.label] = 0
    total = others.sum()
    even = np.arange(len(others)) != verdict.label
    spread = others / total if total > 0 else even / max(even.sum(), 1)
    probabilities = (1 - confidence) * spread
    probabilities[verdict.label] = confidence if len(others) > 1 else 1.0
    return replace(verdict, probabilities=probabilities)


def _folds(labels: Sequence[int | None], seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each part, the labelled images outside of it, and all images in it."""
    known = np.array([label is not None for label in labels])
    if known.sum() < 2 * FOLDS:
        raise InputError(
            f"Calibration needs labelled images, at least {2 * FOLDS}; there are {int(known.sum())}. Leave it out."
        )
    part = np.empty(len(labels), dtype=int)
    part[random_order(len(labels), f"calibration {seed}")] = np.arange(len(labels)) % FOLDS
    for one in range(FOLDS):
        yield np.flatnonzero(known & (part != one)), np.flatnonzero(part == one)
