"""Classification without training: a Gaussian for each class on the features of generated images, and Bayes' rule.

After GDC (Qi et al. 2412.12594): images of each class are generated once, a fixed network (DINOv2 in the paper) gives
their features, and an image belongs to the class whose Gaussian makes its features most likely. The paper's own choice
of covariance is not known to us; the default here is one that all classes share.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.linalg import cholesky, solve_triangular
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.covariance import ledoit_wolf, shrunk_covariance

from diffsight.errors import InputError, nearest

COVARIANCES = ("shared", "per-class")
_JITTER = 1e-10


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Gaussian:
    """The root of a covariance: Σ = L Lᵀ."""

    root: Float[np.ndarray, "d d"]
    half_log_det: float

    def squared(self, difference: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
        """Squared Mahalanobis lengths."""
        return (solve_triangular(self.root, difference.T, lower=True, check_finite=False) ** 2).sum(axis=0)


class GaussianClassifier(ClassifierMixin, BaseEstimator):
    """Bayes' rule with a Gaussian for each class; a scikit-learn classifier of feature vectors.

        p(y | x) ∝ p(y) N(x; μ_y, Σ_y),   Σ = (1 − s) S + s (tr S / d) I

    With one covariance for all classes it is linear discriminant analysis, else quadratic; scikit-learn's have another
    automatic shrinkage, and in some versions none for the quadratic one.

    Args:
        covariance: ``"shared"``, that of all images about the means of their classes; or ``"per-class"``.
        shrinkage: s from 0 to 1, or None for the one of Ledoit & Wolf (2004), which a formula gives and no held-out
            image. Without any a covariance of more features than images is singular.
        priors: ``"uniform"``, or ``"frequencies"`` of the classes among the images.

    Attributes:
        classes_: The classes, sorted.
        means_: Of each class, shape (k, d).
        shrinkage_: s of each covariance.
        log_priors_: Of each class.

    References:
        Qi et al., A Simple and Efficient Baseline for Zero-Shot Generative Classification,
        https://arxiv.org/abs/2412.12594
    """

    def __init__(self, *, covariance: str = "shared", shrinkage: float | None = None, priors: str = "uniform") -> None:
        self.covariance = covariance
        self.shrinkage = shrinkage
        self.priors = priors

    def fit(self, X: Float[np.ndarray, "n d"], y: Any) -> "GaussianClassifier":  # noqa: ANN401
        """Take the moments of each class.

        Args:
            X: Features, shape (n, d).
            y: The class of each row.

        Raises:
            InputError: If there are fewer than two classes, a class has a single image, a covariance is singular, a
                number is not finite, or an option makes no sense.
        """
        if self.covariance not in COVARIANCES:
            raise InputError(f"Unknown covariance {self.covariance!r}. {nearest(self.covariance, COVARIANCES)}")
        if self.priors not in ("uniform", "frequencies"):
            raise InputError(f"priors are 'uniform' or 'frequencies'; got {self.priors!r}.")
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise InputError(f"shrinkage is from 0 to 1, or None for Ledoit and Wolf's; got {self.shrinkage}.")
        features, labels = _matrix(X), np.asarray(y)
        if labels.shape != (len(features),):
            raise InputError(f"There are {len(features)} images and labels of the shape {labels.shape}.")
        self.classes_, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise InputError(f"A classifier needs at least two classes; got {list(self.classes_)}.")
        if counts.min() < 2:
            raise InputError(f"Class {self.classes_[counts.argmin()]!r} has a single image, which has no covariance.")
        self.means_ = np.stack([features[index == each].mean(axis=0) for each in range(len(counts))])
        centred = features - self.means_[index]
        groups = [centred] if self.covariance == "shared" else [centred[index == each] for each in range(len(counts))]
        found = [self._gaussian(group) for group in groups]
        self._gaussians = [gaussian for gaussian, _ in found] * (len(counts) if len(found) == 1 else 1)
        self.shrinkage_ = np.array([shrinkage for _, shrinkage in found])
        shares = counts / counts.sum() if self.priors == "frequencies" else np.full(len(counts), 1 / len(counts))
        self.log_priors_ = np.log(shares)
        self.n_features_in_ = features.shape[1]
        return self

    def decision_function(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """The logarithm of p(y) N(x; μ_y, Σ_y) of each class, but for what all classes share; a row for each image.

        Raises:
            InputError: If it is not fitted, or the features are not of that width, or not finite.
        """
        if not hasattr(self, "means_"):
            raise InputError("This classifier has seen no images yet: call fit first.")
        features = _matrix(X)
        if features.shape[1] != self.n_features_in_:
            raise InputError(f"These images have {features.shape[1]} features; it was fitted to {self.n_features_in_}.")
        columns = [
            prior - each.squared(features - mean) / 2 - each.half_log_det
            for mean, each, prior in zip(self.means_, self._gaussians, self.log_priors_, strict=True)
        ]
        return np.stack(columns, axis=1)

    def predict_proba(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """p(y | x) of each class; rows sum to 1. Raises as `decision_function`."""
        scores = self.decision_function(X)
        likelihood = np.exp(scores - scores.max(axis=1, keepdims=True))
        return likelihood / likelihood.sum(axis=1, keepdims=True)

    def predict(self, X: Float[np.ndarray, "n d"]) -> np.ndarray:
        """The most likely class of each image; of exactly equal ones the first. Raises as `decision_function`."""
        best = self.decision_function(X).argmax(axis=1)
        return self.classes_[best]

    def _gaussian(self, centred: Float[np.ndarray, "n d"]) -> tuple[_Gaussian, float]:
        if self.shrinkage is None:
            covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
        else:
            shrinkage = float(self.shrinkage)
            covariance = shrunk_covariance(centred.T @ centred / len(centred), shrinkage=shrinkage)
        eigenvalues = np.linalg.eigvalsh(covariance)
        if eigenvalues[0] <= _JITTER * eigenvalues[-1]:
            raise InputError(
                f"A covariance of {len(centred)} images and {centred.shape[1]} features is singular with the shrinkage "
                f"{shrinkage:g}. Give more images, a greater shrinkage, or the shared covariance."
            )
        root = cholesky(covariance, lower=True)
        return _Gaussian(root=root, half_log_det=float(np.log(root.diagonal()).sum())), float(shrinkage)


def _matrix(features: Any) -> Float[np.ndarray, "n d"]:  # noqa: ANN401
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise InputError(f"Features are a row for each image; got the shape {matrix.shape}.")
    if not np.isfinite(matrix).all():
        raise InputError(f"The features of image {int((~np.isfinite(matrix)).any(axis=1).argmax())} are not finite.")
    return matrix
