"""Centered kernel alignment: how alike two layers, timesteps or models see the same images.

Row ``i`` of every column of activations belongs to image ``i``. A column is seen through its Gram matrix, the
similarities of its rows, so columns of any width can be compared (Kornblith et al. 1905.00414, §3):

    CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))

CKA does not change when a column is rotated, shifted or scaled as a whole; it does under other linear maps. HSIC is
an inner product of centred Gram matrices, and its estimators centre differently. "biased" takes out the means of rows
and columns. Wide columns then look alike because every row is near to itself: about ``p / (p + n)`` for ``n``
independent Gaussian rows of ``p`` features (a ratio of Wishart moments). "unbiased", the default, leaves the diagonal
out of everything (Song et al. 2007, eq. 5; Székely & Rizzo 1310.2926). Over all pairings of the rows of two columns
its mean is 0 and its standard deviation ``sqrt(2 / (n (n - 3)))``, whatever they contain: so much is no similarity.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import inf, prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffsight.errors import InputError
from diffsight.features.hsic import (
    ROWS_NEEDED,
    Activations,
    check_options,
    hsic_of_features,
    hsic_of_grams,
    shifted,
)


class CKAWarning(UserWarning):
    """The CKA of some columns is undefined, and NaN, because they do not tell the images apart."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CKAMatrix:
    """CKA of all pairs of columns.

    Attributes:
        names_x: What the rows of ``values`` are.
        names_y: What its columns are.
        values: CKA, NaN where undefined. Never clipped: the unbiased estimate may be negative.
        images: From how many images it was computed.
        left_out: How many images were not used, because they came in batches too small for the estimator.
        batches: Over how many batches HSIC was averaged; biased values depend on it.
        estimator: ``"unbiased"`` or ``"biased"``.
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: Of the RBF kernel, as a share of the median distance; None for the linear one.
    """

    names_x: tuple[str, ...]
    names_y: tuple[str, ...]
    values: Float[np.ndarray, "x y"]
    images: int
    left_out: int
    batches: int
    estimator: str
    kernel: str
    bandwidth: float | None

    def to_dict(self) -> dict[str, Any]:
        """Give everything as JSON values, with None for NaN."""
        values = [[None if np.isnan(value) else value for value in row] for row in self.values.tolist()]
        return asdict(self) | {"names_x": list(self.names_x), "names_y": list(self.names_y), "values": values}

    def __str__(self) -> str:
        margin, width = max(map(len, self.names_x)), max(5, *map(len, self.names_y)) + 2
        left_out = f" ({self.left_out} left out)" if self.left_out else ""
        title = f"{self.estimator} {self.kernel} CKA, images: {self.images}{left_out}, batches: {self.batches}"
        lines = [title, " " * margin + "".join(f"{name:>{width}}" for name in self.names_y)]
        for name, row in zip(self.names_x, self.values, strict=True):
            lines.append(f"{name:<{margin}}" + "".join(f"{value:>{width}.2f}" for value in row))
        return "\n".join(lines)


def cka(
    x: Activations, y: Activations, *, estimator: str = "unbiased", kernel: str = "linear", bandwidth: float = 0.5
) -> float:
    """Compare two columns of activations, all images at once.

    Args:
        x: Activations of any floating type, on any device, of shape (n, ...); axes after the first are flattened.
        y: Activations of the same images in the same order, of shape (n, ...).
        estimator: ``"unbiased"``, which needs 4 images, or ``"biased"``, which needs 2.
        kernel: ``"linear"``, or ``"rbf"`` for ``exp(-d² / (2 σ²))``.
        bandwidth: ``σ`` of the RBF kernel, as a share of the (lower) median distance of two different images.

    Returns:
        At most 1 in size, but for rounding. NaN, with a `CKAWarning`, if a column does not tell the images apart.

    Raises:
        InputError: As `cka_matrix`.
    """
    matrix = cka_matrix({"x": x}, {"y": y}, estimator=estimator, kernel=kernel, bandwidth=bandwidth, batch_size=None)
    return float(matrix.values[0, 0])


def cka_matrix(
    columns_x: Mapping[str, Activations],
    columns_y: Mapping[str, Activations] | None = None,
    *,
    estimator: str = "unbiased",
    kernel: str = "linear",
    bandwidth: float = 0.5,
    batch_size: int | None = 256,
) -> CKAMatrix:
    """Compare all pairs of columns, in batches of images, as `CKAAccumulator` does.

    Every row is used: they are cut, in their order, into as few batches of at most ``batch_size`` as possible, of equal
    size give or take a row (into fewer where these would be too small for the estimator). Shuffle rows that are sorted
    by class first: a batch of one class does not show what separates the classes.

    Args:
        columns_x: Activations by name, each of shape (n, ...).
        columns_y: What to compare them with; None compares them with one another.
        estimator: ``"unbiased"``, whose expected HSIC is the same for any batches, or ``"biased"``.
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: Of the RBF kernel, as a share of the median distance in the first batch.
        batch_size: Rows in a batch, whose square each column needs in memory; None takes all, in whatever order.

    Returns:
        The matrix. What is undefined is NaN in it, and a `CKAWarning` names the columns.

    Raises:
        InputError: If there are too few rows or different numbers of them, an activation is not finite, or a name or
            option makes no sense.
    """
    sides = [columns_x] if columns_y is None else [columns_x, columns_y]
    sums = CKAAccumulator(*map(tuple, sides), estimator=estimator, kernel=kernel, bandwidth=bandwidth)
    rows = _same_rows([column for side in sides for column in side.values()])
    most = rows if batch_size is None else batch_size
    check_options(estimator, rows=min(rows, most))
    batches = min(-(-rows // most), rows // ROWS_NEEDED[estimator])
    for start, stop in pairwise(rows * index // batches for index in range(batches + 1)):
        sums.update(*({name: column[start:stop] for name, column in side.items()} for side in sides))
    return sums.result()


class CKAAccumulator:
    """CKA of all pairs of columns from a stream of batches, which are never in memory together.

    HSIC is averaged over the batches, and the ratio is taken of the averages (Nguyen et al. 2010.15327): an average of
    ratios keeps the bias of a single batch, however many there are. A batch counts by its rows, a ragged last one as
    well: weights by size alone leave an average of unbiased estimates unbiased, and the variance of HSIC between
    dependent columns falls as one over the rows. Batches smaller than the estimator needs are left out.

    A column's unit of length is set by the first batch in which its rows differ: their mean distance from the centre,
    or the width of the RBF kernel. It has to stay, or batches would differ in kernel and be weighted by their scale.

    The options are those of `cka_matrix`. Without ``names_y`` the columns are compared with one another.
    """

    def __init__(
        self,
        names_x: Sequence[str],
        names_y: Sequence[str] | None = None,
        *,
        estimator: str = "unbiased",
        kernel: str = "linear",
        bandwidth: float = 0.5,
    ) -> None:
        check_options(estimator, kernel, bandwidth)
        for names in (names_x, names_y):
            if names is not None and (not names or not all(names) or len(set(names)) < len(names)):
                raise InputError(f"Columns need names, none of them empty or used twice; got {list(names)}.")
        self._estimator, self._kernel, self._bandwidth = estimator, kernel, bandwidth
        self._needed = ROWS_NEEDED[estimator]
        self._names_x, self._names_y = tuple(names_x), None if names_y is None else tuple(names_y)
        # Both sides are columns of one list: their products with one another are among those of all pairs.
        self._labels = [*map(repr, self._names_x), *(f"{name!r} of the second side" for name in self._names_y or ())]
        self._units: list[float | None] = [None] * len(self._labels)
        self._sums = torch.zeros(len(self._labels), len(self._labels), dtype=torch.float64)
        self._images = self._left_out = self._batches = 0

    def update(self, batch_x: Mapping[str, Activations], batch_y: Mapping[str, Activations] | None = None) -> None:
        """Add a batch of images.

        Args:
            batch_x: Activations by name, each of shape (rows, ...).
            batch_y: Activations of the same images in the columns of the second side, if there is one.

        Raises:
            InputError: If columns are missing, unknown or differ in rows, or an activation is not finite; then nothing
                is added.
        """
        columns = _flat(batch_x, self._names_x) + _flat(batch_y or {}, self._names_y or ())
        rows = _same_rows(columns)
        for label, column in zip(self._labels, columns, strict=True):
            if not (finite := column.isfinite().all(dim=1)).all():
                row = self._images + self._left_out + int(finite.int().argmin())
                raise InputError(f"{label} is not finite in row {row} (from 0). If float16 overflowed, use float32.")
        if rows < self._needed:
            self._left_out += rows
            return
        by_features = self._kernel == "linear" and sum(column.shape[1] for column in columns) < rows
        if by_features:
            products = hsic_of_features([self._scaled(*item) for item in enumerate(columns)], self._estimator)
        else:
            products = hsic_of_grams([self._gram(*item) for item in enumerate(columns)], self._estimator)
        self._sums += products.cpu() * rows
        self._images += rows
        self._batches += 1

    def result(self) -> CKAMatrix:
        """Take the ratio for all batches so far; more may follow.

        Raises:
            InputError: If no batch had enough rows.
        """
        if not self._batches:
            raise InputError(f"No batch had the {self._needed} rows that {self._estimator} HSIC needs: enlarge them.")
        own = self._sums.diagonal()
        if undefined := [self._why(index) for index in (own <= 0).nonzero().flatten().tolist()]:
            warnings.warn(f"CKA is undefined, and NaN, for {', '.join(undefined)}.", CKAWarning, stacklevel=2)
        roots = own.where(own > 0, torch.nan).sqrt()
        values = self._sums / torch.outer(roots, roots)
        return CKAMatrix(
            names_x=self._names_x,
            names_y=self._names_y or self._names_x,
            values=values[: len(self._names_x), len(self._names_x) if self._names_y else 0 :].numpy(),
            images=self._images,
            left_out=self._left_out,
            batches=self._batches,
            estimator=self._estimator,
            kernel=self._kernel,
            bandwidth=self._bandwidth if self._kernel == "rbf" else None,
        )

    def _gram(self, index: int, column: Tensor) -> Tensor:
        if self._kernel == "linear":
            features = self._scaled(index, column)
            return features @ features.T
        # Differences of rows, not the quicker |x|² + |y|² - 2xy, in which equal images are no longer equal.
        distances = torch.pdist(shifted(column))
        gram = distances.new_ones(len(column), len(column))
        i, j = torch.triu_indices(len(column), len(column), offset=1, device=gram.device)
        gram[i, j] = gram[j, i] = (distances / self._unit(index, distances)).square().div(-2).exp()
        return gram

    def _scaled(self, index: int, column: Tensor) -> Tensor:
        features = shifted(column)
        return features / self._unit(index, features.norm(dim=1))

    def _unit(self, index: int, lengths: Tensor) -> float:
        """The column's unit of length. It is infinite, so that all images are equal, as long as there is none."""
        if self._units[index] is None and lengths.any():
            unit = lengths.mean() if self._kernel == "linear" else self._bandwidth * lengths.median()
            self._units[index] = float(unit)
        return self._units[index] or inf

    def _why(self, index: int) -> str:
        """Which column has no CKA, and why: it has no unit, or nothing is left of it when its images are compared."""
        no_unit = {None: "constant", 0.0: "its median distance is 0, which leaves the RBF kernel no width"}
        why = no_unit.get(self._units[index], "all images but one are alike, or none is like another")
        return f"{self._labels[index]} ({why})"


def _same_rows(columns: Sequence[Activations]) -> int:
    if len(rows := {len(column) for column in columns}) > 1:
        raise InputError(f"Row i of every column must be image i, but there are columns of {sorted(rows)} rows.")
    return rows.pop()


def _flat(batch: Mapping[str, Activations], names: Sequence[str]) -> list[Tensor]:
    """The named columns of a batch, one row for each image."""
    if set(batch) != set(names):
        raise InputError(f"A batch must have the columns {list(names)}; got {list(batch)}.")
    # Arrays are copied: torch warns of read-only ones, such as memory maps.
    columns = [torch.as_tensor(np.array(c) if isinstance(c, np.ndarray) else c) for c in map(batch.__getitem__, names)]
    return [column.detach().reshape(len(column), prod(column.shape[1:])) for column in columns]
