"""The Hilbert-Schmidt independence criterion: what CKA is a ratio of (Song et al. 2007; Székely & Rizzo 1310.2926).

HSIC of two columns is an inner product of their centred Gram matrices, so that of all pairs of columns is one matrix
product. The estimators centre differently: see `diffsight.features.cka`.
"""

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffsight.errors import InputError, nearest

Activations = Float[Tensor, "_ ..."] | Float[np.ndarray, "_ ..."]
ROWS_NEEDED = {"unbiased": 4, "biased": 2}
KERNELS = ("linear", "rbf")

# Where float64 sums cancel to less than this share of their terms, what is left is rounding.
ROUNDING = 1e-12


def hsic(gram_x: Float[Tensor, "_ _"], gram_y: Float[Tensor, "_ _"], *, estimator: str = "unbiased") -> float:
    """Estimate the Hilbert-Schmidt independence criterion from two Gram matrices of the same images.

    Args:
        gram_x: Symmetric matrix ``K`` of shape (n, n).
        gram_y: Symmetric matrix ``L`` of shape (n, n).
        estimator: ``"biased"`` is ``tr(KHLH) / (n - 1)²`` with ``H = I - 1/n``. ``"unbiased"`` is HSIC₁ (Song et al.
            2007, eq. 5), which does not look at the diagonals and may be negative.

    Raises:
        InputError: If the matrices are not square, differ in shape or are too small, or the estimator is unknown.
    """
    rows, shapes = len(gram_x), (tuple(gram_x.shape), tuple(gram_y.shape))
    if shapes != ((rows, rows), (rows, rows)):
        raise InputError(f"HSIC needs two square Gram matrices of the same images; got {shapes[0]} and {shapes[1]}.")
    check_options(estimator, rows=rows)
    x, y = (_centred(gram.detach().cpu().double(), estimator) for gram in (gram_x, gram_y))
    return float((x * y).sum())


def hsic_of_grams(grams: Sequence[Float[Tensor, "n n"]], estimator: str) -> Float[Tensor, "c c"]:
    """HSIC of all pairs of columns, by one matrix product of their centred Gram matrices, float64."""
    centred = [_centred(gram, estimator, rounding=ROUNDING) for gram in grams]
    stack = torch.stack([gram.flatten().to(centred[0].device) for gram in centred])
    return stack @ stack.T


def hsic_of_features(columns: Sequence[Float[Tensor, "n _"]], estimator: str) -> Float[Tensor, "c c"]:
    """The same for linear kernels, by one matrix product of features: for few of them and many rows.

    The biased form is eq. 1 of Kornblith et al. (1905.00414).

    Args:
        columns: Features of each column in float64, their mean taken off.
        estimator: ``"biased"`` or ``"unbiased"``.
    """
    joined, rows = torch.cat([part.to(columns[0].device) for part in columns], dim=1), len(columns[0])
    member = torch.block_diag(*(joined.new_ones(part.shape[1], 1) for part in columns))
    products = member.T @ (joined.T @ joined).square() @ member
    if estimator == "biased":
        return products / (rows - 1) ** 2
    # The rows of these Gram matrices sum to 0, and without their diagonals to minus those: all that HSIC₁ takes off
    # are products of diagonals, the squared lengths of the rows.
    lengths = joined.square() @ member
    of_sums = torch.outer(lengths.sum(dim=0), lengths.sum(dim=0)) / ((rows - 1) * (rows - 2))
    unbiased = products - rows / (rows - 2) * lengths.T @ lengths + of_sums
    nothing = unbiased.diagonal() <= ROUNDING * products.diagonal()
    return unbiased.masked_fill(nothing | nothing[:, None], 0) / (rows * (rows - 3))


def check_options(estimator: str, kernel: str = "linear", bandwidth: float = 0.5, *, rows: float = inf) -> None:
    """Refuse options that make no sense, and fewer rows than the estimator needs.

    Raises:
        InputError: Then.
    """
    if estimator not in ROWS_NEEDED:
        raise InputError(f"Unknown estimator {estimator!r}. {nearest(estimator, ROWS_NEEDED)}")
    if kernel not in KERNELS:
        raise InputError(f"Unknown kernel {kernel!r}. {nearest(kernel, KERNELS)}")
    if not 0 < bandwidth < inf:
        raise InputError(f"The bandwidth is a positive share of the median distance, such as 0.5; got {bandwidth}.")
    if rows < ROWS_NEEDED[estimator]:
        raise InputError(f"The {estimator} estimator needs at least {ROWS_NEEDED[estimator]} rows at once; got {rows}.")


def shifted(column: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Shift rows to the mean 0, in float64. The first is taken off before, so that constant ones become exactly 0."""
    features = (column.cpu() if column.device.type == "mps" else column).double()  # which MPS does not have
    features = features - features[0]
    return features.sub_(features.mean(dim=0))


def _centred(gram: Tensor, estimator: str, *, rounding: float = 0.0) -> Tensor:
    """Centre and scale a Gram matrix, so that HSIC is an inner product; ``rounding`` of it or less is nothing."""
    rows = len(gram)
    if estimator == "biased":
        means = gram.mean(dim=0)
        centred = (gram - means - means[:, None] + means.mean()) / (rows - 1)
    else:
        gram = gram.clone().fill_diagonal_(0)
        means = gram.sum(dim=0) / (rows - 2)
        means -= means.sum() / (2 * (rows - 1))
        centred = (gram - means - means[:, None]).fill_diagonal_(0) / sqrt(rows * (rows - 3))
    return centred if centred.norm() > rounding * gram.norm() / rows else torch.zeros_like(centred)
