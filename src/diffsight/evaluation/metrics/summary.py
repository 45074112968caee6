"""All that is reported of a run of images and classes, from its tables.

A failed image is neither right nor wrong: accuracy is over the scored images, and the coverage stands beside it.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Metric, mean_per_class, top_k, wilson
from diffsight.evaluation.metrics.cost import cost
from diffsight.evaluation.metrics.reliability import calibration, reliability
from diffsight.evaluation.metrics.selective import selective_summary


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
    return {
        "calibration": calibration(reliability(confidence, correct)),
        "selective": selective_summary(confidence, correct, seed=seed),
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
