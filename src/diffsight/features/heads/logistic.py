"""L2-regularised logistic regression by scikit-learn, and the search for its strength (DINOv2, arXiv 2304.07193).

DINOv2 looks for C on a grid of 45 values with a tenth of the training set held out, and refits on all of it. The peak
is found as CLIP_benchmark does, from a coarse grid to a fine one: about a dozen fits instead of 45.
"""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from diffsight.errors import InputError
from diffsight.features.heads.options import as_dict, check_sizes

GRID = tuple((10 ** np.linspace(-6, 5, 45)).tolist())
# Where no image can be held out, as every class has only one: the grid's value nearest to scikit-learn's default, 1.
FALLBACK = GRID[24]
_COARSE = 11


@dataclass(frozen=True, slots=True, kw_only=True)
class Logistic:
    """Settings of logistic regression.

    Attributes:
        C: Inverse strength of the L2 penalty, in scikit-learn's units; None looks for it.
        max_iter: Steps of L-BFGS at most.
        pool: Maps are averaged to at most this size; None takes them as they are.
    """

    name: ClassVar[str] = "logistic"
    C: float | None = None
    max_iter: int = 1000
    pool: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "max_iter", "pool")
        if self.C is not None and not 0 < self.C < np.inf:
            raise InputError(f"C must be a finite number above 0, or None to look for it; got {self.C!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Name and options as JSON values."""
        return as_dict(self)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Solution:
    """A fitted logistic regression: class probabilities are ``softmax(features @ coefficients.T + intercepts)``.

    Attributes:
        coefficients: One row per class.
        intercepts: One per class.
        C: Inverse strength of the penalty.
        converged: Whether L-BFGS came to its end before it ran out of steps.
        trials: Accuracy on the held-out images for each C that was tried, ascending; empty where none was.
    """

    coefficients: Float[np.ndarray, "k d"]
    intercepts: Float[np.ndarray, " k"]
    C: float
    converged: bool
    trials: tuple[tuple[float, float], ...]


def fit_logistic(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    C: float | None = None,  # noqa: N803 - scikit-learn's name
    max_iter: int = 1000,
    seed: int = 0,
) -> Solution:
    """Fit logistic regression in fp64.

    Args:
        features: Standardised, as one penalty is put on the weights of all.
        labels: From 0 to ``num_classes - 1``.
        num_classes: How many classes there are.
        C: Inverse strength of the penalty; None takes the one with the best accuracy on a tenth of each class, held
            out (of equals, that with the best likelihood). Where every class has one image only it is `FALLBACK`.
        max_iter: Steps of L-BFGS at most. Running out of them is no error: see `Solution.converged`.
        seed: Of the choice of images to hold out.

    Raises:
        InputError: If a class has no example.
    """
    counts = np.bincount(labels, minlength=num_classes)
    if absent := np.flatnonzero(counts == 0).tolist():
        raise InputError(f"Logistic regression needs an example of every class; classes {absent[:5]} have none.")
    features = features.astype(np.float64)
    trials: dict[int, tuple[float, float]] = {}
    held = hold_out(labels, seed=seed)
    if C is None and held.any():
        trials = _search(features, labels, held, max_iter)
    chosen = C or (GRID[max(trials, key=trials.__getitem__)] if trials else FALLBACK)
    model = _fit(LogisticRegression(C=chosen, max_iter=max_iter), features, labels)
    coefficients, intercepts = model.coef_, np.asarray(model.intercept_)
    if num_classes == 2:  # scikit-learn keeps the difference of the two only
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    return Solution(
        coefficients=coefficients,
        intercepts=intercepts,
        C=chosen,
        converged=bool(np.max(model.n_iter_) < max_iter),
        trials=tuple((GRID[index], accuracy) for index, (accuracy, _) in sorted(trials.items())),
    )


def hold_out(labels: Int[np.ndarray, " n"], *, seed: int, share: float = 0.1) -> Bool[np.ndarray, " n"]:
    """Choose a share of each class at random: at least one image, but none of a class that has only one.

    Args:
        labels: The class of each image.
        seed: Of the choice.
        share: Of each class.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) > 1:
            held[rng.choice(members, max(1, round(share * len(members))), replace=False)] = True
    return held


def _search(
    features: np.ndarray, labels: np.ndarray, held: np.ndarray, max_iter: int
) -> dict[int, tuple[float, float]]:
    """Accuracy and mean log-likelihood on the held-out images, by position in the grid; denser around the peak."""
    # Each fit starts from the one before; strengths are near to one another, so few steps are left.
    model = LogisticRegression(max_iter=max_iter, warm_start=True)
    results: dict[int, tuple[float, float]] = {}

    def attempt(index: int) -> None:
        _fit(model.set_params(C=GRID[index]), features[~held], labels[~held])
        probabilities = model.predict_proba(features[held])
        right = model.classes_[probabilities.argmax(axis=1)] == labels[held]
        results[index] = float(right.mean()), -float(log_loss(labels[held], probabilities, labels=model.classes_))

    for index in range(0, len(GRID), _COARSE):
        attempt(index)
    step = _COARSE
    while step > 1:
        step = (step + 1) // 2
        peak = max(results, key=results.__getitem__)
        for index in (peak - step, peak + step):
            if 0 <= index < len(GRID) and index not in results:
                attempt(index)
    return results


def _fit(model: LogisticRegression, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # told by `Solution.converged`
        return model.fit(features, labels)
