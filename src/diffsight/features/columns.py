"""What heads are trained on: columns of feature maps, read a few rows at a time, and their standardisation.

A column is one layer at one noise level, named ``"layer@timestep"`` (``"dec.4@90"``). Its maps have the axes (rows,
views, channels, height, width): a row is an image, a view one of its noise draws or augmentations. Columns may be
larger than memory, so nothing here asks for more than a batch of rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.errors import InputError, nearest

Shape = tuple[int, int, int]

# A pass over maps that keeps nothing takes as many rows at once as have about this many values: 16 MB.
_VALUES_AT_ONCE = 2**22


@runtime_checkable
class Columns(Protocol):
    """Feature maps by column name, wherever they are kept."""

    @property
    def names(self) -> tuple[str, ...]:
        """The columns there are."""
        ...

    @property
    def views(self) -> int:
        """How many views of each row there are, in every column."""
        ...

    def __len__(self) -> int:
        """How many rows there are, in every column."""
        ...

    def shape(self, column: str) -> Shape:
        """Channels, height and width of a column's maps."""
        ...

    def rows(self, column: str, indices: Int[np.ndarray, " b"], view: int) -> Float[Tensor, "b c h w"]:
        """Read some rows of one column, fp32.

        Args:
            column: One of ``names``.
            indices: Rows from 0 to ``len(self) - 1``, ascending.
            view: From 0 to ``views - 1``.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ArrayColumns:
    """Columns in memory, or in memory-mapped arrays.

    Attributes:
        arrays: For each column an array or tensor of shape (rows, views, channels, height, width).

    Raises:
        InputError: If there is no column, or they differ in rows or views, or an array has other axes.
    """

    arrays: Mapping[str, np.ndarray | Tensor]

    def __post_init__(self) -> None:
        if not self.arrays:
            raise InputError("There is no column of features. Give at least one array.")
        for name, array in self.arrays.items():
            if array.ndim != 5 or 0 in array.shape[1:]:
                raise InputError(
                    f"Column {name!r} must have the axes (rows, views, channels, height, width), none of them empty; "
                    f"got shape {tuple(array.shape)}."
                )
        sizes = {name: tuple(array.shape[:2]) for name, array in self.arrays.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(f"Columns must agree in rows and views; got {sizes}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The columns in the order given."""
        return tuple(self.arrays)

    @property
    def views(self) -> int:
        """How many views of each row there are."""
        return next(iter(self.arrays.values())).shape[1]

    def __len__(self) -> int:
        return next(iter(self.arrays.values())).shape[0]

    def shape(self, column: str) -> Shape:
        """Channels, height and width of a column's maps."""
        channels, height, width = self.arrays[column].shape[2:]
        return channels, height, width

    def rows(self, column: str, indices: Int[np.ndarray, " b"], view: int) -> Float[Tensor, "b c h w"]:
        """Copy some rows of one column, fp32."""
        return torch.as_tensor(self.arrays[column][indices, view]).float()


@dataclass(frozen=True, slots=True, eq=False)
class Averaged:
    """Columns whose only view is the mean over the views of others.

    Attributes:
        columns: The others.
    """

    columns: Columns

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the others."""
        return self.columns.names

    @property
    def views(self) -> int:
        """One."""
        return 1

    def __len__(self) -> int:
        return len(self.columns)

    def shape(self, column: str) -> Shape:
        """As in the others."""
        return self.columns.shape(column)

    def rows(self, column: str, indices: Int[np.ndarray, " b"], view: int) -> Float[Tensor, "b c h w"]:
        """Read some rows and average them over all views."""
        views = [self.columns.rows(column, indices, each) for each in range(self.columns.views)]
        return torch.stack(views).mean(dim=0)


@dataclass(frozen=True, slots=True, eq=False)
class Subset:
    """Some rows of other columns, in their order there.

    Attributes:
        columns: The others.
        indices: Which of their rows, ascending.
    """

    columns: Columns
    indices: Int[np.ndarray, " n"]

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the others."""
        return self.columns.names

    @property
    def views(self) -> int:
        """As in the others."""
        return self.columns.views

    def __len__(self) -> int:
        return len(self.indices)

    def shape(self, column: str) -> Shape:
        """As in the others."""
        return self.columns.shape(column)

    def rows(self, column: str, indices: Int[np.ndarray, " b"], view: int) -> Float[Tensor, "b c h w"]:
        """Read some of the rows."""
        return self.columns.rows(column, self.indices[indices], view)


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Standardisation of one column: every channel to mean 0 and standard deviation 1.

    Attributes:
        mean: Of each channel, fp32.
        scale: Standard deviation of each channel, fp32; 1 for one that is constant.
    """

    mean: Float[Tensor, " c"]
    scale: Float[Tensor, " c"]

    def __call__(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Standardise maps on the device where they and this are."""
        return (maps - self.mean[:, None, None]) / self.scale[:, None, None]

    def to(self, device: torch.device) -> "Scaling":
        """The same on another device."""
        return Scaling(self.mean.to(device), self.scale.to(device))


def scaled(
    maps: Mapping[str, Float[Tensor, "b _ _ _"]], scaling: Mapping[str, Scaling]
) -> Mapping[str, Float[Tensor, "b _ _ _"]]:
    """Standardise each column that has a scaling; with none at all, the maps as they are."""
    return {name: scale(maps[name]) for name, scale in scaling.items()} if scaling else maps


def read(columns: Columns, name: str, indices: Int[np.ndarray, " b"], view: int) -> Float[Tensor, "b c h w"]:
    """Read rows of a column and look at every value.

    Raises:
        InputError: If a value is not finite; the message names the row.
    """
    maps = columns.rows(name, indices, view)
    finite = maps.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        at = int((~finite).nonzero()[0])
        row = maps[at]
        value = "NaN" if row.isnan().any() else "inf"
        raise InputError(
            f"Column {name!r} holds {value} in row {indices[at]} (view {view}). Leave this image out, or extract its "
            "features again in fp32."
        )
    return maps


def check_columns(columns: Columns, names: Sequence[str]) -> dict[str, Shape]:
    """The shapes of some columns, in the order of ``names``.

    Raises:
        InputError: If there is no name or no row, a column is unknown, or named twice.
    """
    for name in names:
        if name not in columns.names:
            raise InputError(f"There is no column {name!r}. {nearest(name, columns.names)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"A head needs one column or several different ones; got {list(names)}.")
    if len(columns) == 0:
        raise InputError("There are 0 rows of features; at least 1 sample is needed.")
    return {name: columns.shape(name) for name in names}


def check_labels(
    labels: Int[np.ndarray, " _"], rows: int, classes: Sequence[Any] | None = None, *, least: int = 2
) -> tuple[Any, ...]:
    """The classes that labels stand for: those given, or the labels themselves up to the largest.

    Args:
        labels: Positions in the classes.
        rows: How many labels there must be.
        classes: What they stand for.
        least: How many different labels there must be.

    Raises:
        InputError: If there are more or fewer labels than rows, a label is no class, or too few differ.
    """
    if len(labels) != rows:
        raise InputError(f"There must be one label per row of features; got {len(labels)} labels and {rows} rows.")
    if len(np.unique(labels)) < least:
        raise InputError(f"A head needs rows of at least {least} classes; got {rows} rows, all of one class.")
    known = tuple(range(int(labels.max()) + 1) if classes is None else classes)
    if labels.min() < 0 or labels.max() >= len(known):
        raise InputError(f"Labels must be from 0 to {len(known) - 1}; got {labels.min()} to {labels.max()}.")
    return known


def spans(count: int, size: int) -> Iterator[Int[np.ndarray, " b"]]:
    """Row indices from 0 to ``count - 1`` in batches of ``size``; the last one may be shorter."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def rows_at_once(shape: Shape) -> int:
    """How many maps of a shape to hold in memory in a pass that keeps nothing."""
    return max(1, _VALUES_AT_ONCE // int(np.prod(shape)))


def fit_scaling(columns: Columns, names: Sequence[str]) -> dict[str, Scaling]:
    """Mean and standard deviation of each channel over rows, positions and views, in one pass and fp64.

    A channel whose spread is below fp32's resolution of its mean is constant but for rounding, and is only centred.

    Raises:
        InputError: If a value is not finite.
    """
    return {name: _fit_one(columns, name) for name in names}


def _fit_one(columns: Columns, name: str) -> Scaling:
    shape = columns.shape(name)
    count, mean, squares = 0, torch.zeros(shape[0], dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
    for indices in spans(len(columns), rows_at_once(shape)):
        for view in range(columns.views):
            values = read(columns, name, indices, view).to("cpu", torch.float64)
            more = values.numel() // shape[0]
            variance, centre = torch.var_mean(values, dim=(0, 2, 3), correction=0)
            # Merging means and squared deviations (Chan et al. 1979) loses no digits where the mean is large.
            step = centre - mean
            mean = mean + step * (more / (count + more))
            squares = squares + more * variance + step.square() * (count * more / (count + more))
            count += more
    deviation = (squares / count).sqrt()
    constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
    return Scaling(mean.float(), torch.where(constant, 1.0, deviation).float())
