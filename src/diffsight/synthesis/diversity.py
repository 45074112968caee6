"""How diverse images are, and how near to real ones, by their features; pure functions of arrays.

A row is the feature vector of an image: what is measured is what the network tells apart, so that two numbers can be
compared only with the same features. Most also depend on how many images there are: compare at equal numbers.

`vendi_score` and `mean_cosine` look at one set. All others compare with real images: they are oracles, which no
zero-shot protocol may choose anything by (fact sheet A.7). None of them is what a classifier is trained for: two sets
can be ordered otherwise by the accuracy that is learnt from them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

from diffsight.errors import InputError

Features = Float[np.ndarray, "_ _"]

_ROUNDING = 1e-12
_PAIRS = 2**23  # Distances in memory at once.


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelDistance:
    """A kernel inception distance.

    Attributes:
        value: Mean over the subsets. It can be negative: the estimate is unbiased, and 0 for equal distributions.
        sd: Standard deviation over the subsets; None for a single one.
        subsets: How many.
        size: Images of each side in one.
    """

    value: float
    sd: float | None
    subsets: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """How two sets lie in one another, by balls around images that reach to the k-th neighbour in their own set.

    Attributes:
        precision: Share of generated images in the ball of a real one.
        recall: Share of real images in the ball of a generated one.
        density: In how many balls of real images a generated one is, by k; can exceed 1.
        coverage: Share of real images with a generated one in their ball.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def vendi_score(features: Features) -> float:
    """The effective number of different images (Friedman & Dieng 2210.02410, eq. 1), with the cosine kernel.

        VS = exp(−Σ λᵢ log λᵢ),  λ the eigenvalues of K / n,  Kᵢⱼ = ⟨xᵢ, xⱼ⟩ / (‖xᵢ‖ ‖xⱼ‖)

    n orthogonal vectors have the score n, n equal ones 1. The score of a sample is below that of what it was drawn
    from, and **grows with the number of images** (2602.14682): compare only at equal n. With this kernel it cannot
    exceed the number of features.

    Args:
        features: Of each image, shape (n, d).

    Raises:
        InputError: If there is no image, or a feature vector is not finite or 0, which has no direction.
    """
    unit = _directions(features)
    # K / n = U Uᵀ / n and Uᵀ U / n have the same eigenvalues but for zeros: squares of the singular values of U.
    shares = np.linalg.svd(unit, compute_uv=False) ** 2 / len(unit)
    shares = shares[shares > _ROUNDING]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def mean_cosine(features: Features) -> float:
    """Mean cosine of all pairs of two different images: 1 if all are alike. No bias with their number.

    Args:
        features: Of each image, shape (n, d).

    Raises:
        InputError: If there are fewer than two images, or a feature vector is not finite or 0.
    """
    unit = _directions(features, least=2)
    n = len(unit)
    total = unit.sum(axis=0)  # ‖Σ uᵢ‖² is the sum over all pairs, the n of an image with itself among them.
    return float((total @ total - n) / (n * (n - 1)))


def frechet_distance(real: Features, generated: Features) -> float:
    """FID, if the features are Inception's (Heusel et al. 1706.08500, eq. 6): a distance of two Gaussians.

        ‖μ_r − μ_g‖² + Tr(Σ_r + Σ_g − 2 (Σ_r Σ_g)^½)

    Covariances are divided by n − 1. The estimate is biased upwards, the more the fewer images there are: compare only
    at equal numbers, well above that of the features.

    Args:
        real: Features of real images, shape (n, d).
        generated: Of generated ones, shape (m, d).

    Raises:
        InputError: If a side has fewer than two images, the widths differ, or a feature is not finite.
    """
    real, generated = _both(real, generated, least=2)
    roots = []
    for features in (real, generated):
        centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
        roots.append(np.linalg.qr(centred, mode="r"))
    # With Σ = RᵀR the eigenvalues of Σ_r Σ_g are squares of the singular values of R_r R_gᵀ: no matrix root is taken,
    # whose imaginary part would have to be thrown away where a covariance is singular.
    cross = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    shift = real.mean(axis=0) - generated.mean(axis=0)
    value = shift @ shift + (roots[0] ** 2).sum() + (roots[1] ** 2).sum() - 2 * cross
    return float(max(value, 0.0))


def kernel_distance(
    real: Features, generated: Features, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """KID, if the features are Inception's (Bińkowski et al. 1801.01401, §4): an unbiased squared MMD.

        k(x, y) = (⟨x, y⟩ / d + 1)³
        KID = mean_{i≠j} k(rᵢ, rⱼ) + mean_{i≠j} k(gᵢ, gⱼ) − 2 mean_{i,j} k(rᵢ, gⱼ)

    taken over subsets without replacement and averaged, as in the paper. Its mean does not depend on their size.

    Args:
        real: Features of real images, shape (n, d).
        generated: Of generated ones, shape (m, d).
        subsets: How many; one, if a subset is all there is of both.
        subset_size: Images of each side; fewer, if there are fewer.
        seed: Chooses them.

    Raises:
        InputError: If a side has fewer than two images, the widths differ, a feature is not finite, or a number makes
            no sense.
    """
    real, generated = _both(real, generated, least=2)
    if subsets < 1 or subset_size < 2:
        raise InputError(f"At least 1 subset of at least 2 images is needed; got {subsets} of {subset_size}.")
    size = min(subset_size, len(real), len(generated))
    if size == len(real) == len(generated):
        subsets = 1
    rng = np.random.default_rng(seed)
    values = [
        _squared_mmd(
            real[rng.choice(len(real), size, replace=False)],
            generated[rng.choice(len(generated), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    sd = float(np.std(values, ddof=1)) if subsets > 1 else None
    return KernelDistance(value=float(np.mean(values)), sd=sd, subsets=subsets, size=size)


def neighbourhood(real: Features, generated: Features, *, k: int = 5, precision_k: int | None = 3) -> Neighbourhood:
    """Precision and recall (Kynkäänniemi et al. 1904.06991, §3), density and coverage (Naeem et al. 2002.09797, §3).

    With B(x) the closed ball around x that reaches to its k-th neighbour in its own set, x itself not counted:

        precision = mean_j [gⱼ ∈ ∪ᵢ B(rᵢ)]        recall = mean_i [rᵢ ∈ ∪ⱼ B(gⱼ)]
        density = Σ_{i,j} [gⱼ ∈ B(rᵢ)] / (k m)     coverage = mean_i [∃ j: gⱼ ∈ B(rᵢ)]

    An outlier has a large ball, which raises precision and recall; density and coverage suffer less. For equal
    distributions density is 1 and coverage 1 − 2⁻ᵏ or so, with many images on both sides.

    Args:
        real: Features of real images, shape (n, d).
        generated: Of generated ones, shape (m, d).
        k: Of density and coverage; 5 in their paper.
        precision_k: Of precision and recall; 3 in theirs. None takes ``k``.

    Raises:
        InputError: If a side has not more than k images, the widths differ, or a feature is not finite.
    """
    other = k if precision_k is None else precision_k
    if min(k, other) < 1:
        raise InputError(f"The number of neighbours is at least 1; got {min(k, other)}.")
    real, generated = _both(real, generated, least=max(k, other) + 1)
    of_real, of_generated = (_radii(each, (k, other)) for each in (real, generated))
    inside = np.zeros(len(generated), dtype=bool)
    recalled, covered, balls = [], [], 0
    step = max(1, _PAIRS // len(generated))
    for start in range(0, len(real), step):
        rows = slice(start, start + step)
        distances = cdist(real[rows], generated)
        inside |= (distances <= of_real[1][rows, None]).any(axis=0)
        recalled.append((distances <= of_generated[1][None, :]).any(axis=1))
        within = distances <= of_real[0][rows, None]
        covered.append(within.any(axis=1))
        balls += int(within.sum())
    return Neighbourhood(
        precision=float(inside.mean()),
        recall=float(np.concatenate(recalled).mean()),
        density=balls / (k * len(generated)),
        coverage=float(np.concatenate(covered).mean()),
    )


def _radii(features: Features, ks: tuple[int, int]) -> list[Float[np.ndarray, " _"]]:
    """Distance of each row to its k-th nearest other row, for each k."""
    found: list[list[np.ndarray]] = [[] for _ in ks]
    step = max(1, _PAIRS // len(features))
    for start in range(0, len(features), step):
        distances = cdist(features[start : start + step], features)
        own = np.arange(len(distances))
        distances[own, start + own] = -1.0  # An image is its own nearest, also if another is the same.
        distances.partition(sorted(set(ks)), axis=1)
        for each, k in zip(found, ks, strict=True):
            each.append(distances[:, k].copy())
    return [np.concatenate(each) for each in found]


def _squared_mmd(real: Features, generated: Features) -> float:
    width, n = real.shape[1], len(real)
    within = 0.0
    for features in (real, generated):
        gram = (features @ features.T / width + 1) ** 3
        within += (gram.sum() - gram.trace()) / (n * (n - 1))
    return float(within - 2 * ((real @ generated.T / width + 1) ** 3).mean())


def _both(real: Features, generated: Features, *, least: int) -> tuple[Features, Features]:
    sides = _checked(real, "real ", least), _checked(generated, "generated ", least)
    if sides[0].shape[1] != sides[1].shape[1]:
        raise InputError(
            f"Real images have {sides[0].shape[1]} features and generated ones {sides[1].shape[1]}: take both from one "
            "network."
        )
    return sides


def _checked(features: Features, what: str, least: int) -> Features:
    if features.ndim != 2 or len(features) < least or not features.shape[1]:
        raise InputError(f"At least {least} {what}images with features are needed; got the shape {features.shape}.")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise InputError(f"The features of {what}image {row} (from 0) are not finite.")
    return features.astype(np.float64)


def _directions(features: Features, *, least: int = 1) -> Features:
    features = _checked(features, "", least)
    lengths = np.linalg.norm(features, axis=1)
    if not lengths.all():
        raise InputError(f"All features of image {int(lengths.argmin())} (from 0) are 0, which has no direction.")
    return features / lengths[:, None]
