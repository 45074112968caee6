"""What heads are trained on: columns of feature maps, read a few rows at a time, and the labels of the rows.

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
from torch.nn import functional

from diffsight.errors import InputError, nearest

Shape = tuple[int, int, int]


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
class Grids:
    """Columns averaged to several grids: ``"mid@90 2×2"`` is ``"mid@90"`` averaged to 2×2.

    Attributes:
        columns: The others.
        sizes: For each of their columns the sides of the grids; a map that is smaller stays as it is.
    """

    columns: Columns
    sizes: Mapping[str, Sequence[int]]

    @property
    def names(self) -> tuple[str, ...]:
        """Column by column, and for each its grids."""
        return tuple(grid_name(name, size) for name, sizes in self.sizes.items() for size in sizes)

    @property
    def views(self) -> int:
        """As in the others."""
        return self.columns.views

    def __len__(self) -> int:
        return len(self.columns)

    def shape(self, column: str) -> Shape:
        """As in the others, with the sides of the grid."""
        name, size = self._parts(column)
        channels, height, width = self.columns.shape(name)
        return channels, min(size, height), min(size, width)

    def rows(self, column: str, indices: Int[np.ndarray, " b"], view: int) -> Float[Tensor, "b c h w"]:
        """Read some rows and average them."""
        name, _ = self._parts(column)
        _, height, width = self.shape(column)
        return functional.adaptive_avg_pool2d(self.columns.rows(name, indices, view), (height, width))

    def _parts(self, column: str) -> tuple[str, int]:
        name, _, grid = column.rpartition(" ")
        return name, int(grid.partition("×")[0])


def grid_name(column: str, size: int) -> str:
    """What `Grids` calls a column averaged to a grid."""
    return f"{column} {size}×{size}"


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
