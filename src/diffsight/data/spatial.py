"""Parts of a set whose images lie somewhere on Earth, such that none of one part is near one of the other.

Neighbouring patches of one satellite image show the same fields on the same day. A random split puts them on both
sides, and what is measured then is in part how well a network knows them again. Here whole cells of a grid are for
testing, and images for training that lie near them are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.spatial import KDTree

from diffsight.data.splits import Labels, check_seed, random_order
from diffsight.errors import InputError

RADIUS = 6371.0088  # of the Earth, in km


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SpatialSplit:
    """Parts of a set, as positions in it, each ascending.

    Attributes:
        train: To learn from; no cell of these is one of ``test``, and all are farther away than the buffer.
        test: To test with.
        left_out: In neither part, for they lie within the buffer.
        cells: How many cells hold images, and how many of those are for testing.
    """

    train: Int[np.ndarray, " n"] = field(repr=False)
    test: Int[np.ndarray, " k"] = field(repr=False)
    left_out: Int[np.ndarray, " m"] = field(repr=False)
    cells: tuple[int, int]

    def balance(self, labels: Labels) -> dict[int, tuple[int, int, int]]:
        """Of each class the images for training, for testing, and left out."""
        array = np.asarray(labels)
        parts = (self.train, self.test, self.left_out)
        return {
            label: tuple(int((array[part] == label).sum()) for part in parts) for label in np.unique(array).tolist()
        }  # pyright: ignore[reportReturnType] - there are three

    def describe(self, labels: Labels, class_names: Sequence[str]) -> str:
        """The parts and how evenly the classes are among them, in a line."""
        shares = {label: test / (train + test + out) for label, (train, test, out) in self.balance(labels).items()}
        low, high = min(shares, key=shares.__getitem__), max(shares, key=shares.__getitem__)
        return (
            f"{len(self.train):,} images to learn from, {len(self.test):,} to test with in {self.cells[1]} of "
            f"{self.cells[0]} cells, {len(self.left_out):,} too near to these and left out; of each class "
            f"{shares[low]:.0%} ({class_names[low]}) to {shares[high]:.0%} ({class_names[high]}) are to test with"
        )


def split_by_place(
    places: Float[np.ndarray, "n 2"], labels: Labels, *, share: float, cell: float, buffer: float, seed: int
) -> SpatialSplit:
    """Divide images by the cells of a grid in which they lie.

    Cells come in random order, and one is for testing if that brings the share of each class in the test part nearer to
    what is asked for (the sum of the squared differences falls). So the classes are divided about evenly, as far as
    whole cells allow: look at `SpatialSplit.balance`.

    Args:
        places: Longitude and latitude of each image in degrees.
        labels: Class index of each image.
        share: Of each class for testing, about; between 0 and 1.
        cell: Height of a cell, and about its width, in km.
        buffer: In km; images for training that have one for testing within it are left out.
        seed: Chooses among the possible divisions.

    Raises:
        InputError: If all images are in one cell, none would be left to learn from, or an argument makes no sense.
    """
    array, where = np.asarray(labels), np.asarray(places, dtype=np.float64)
    check_seed(seed)
    if not len(where) or len(where) != len(array):
        raise InputError(f"Give a place and a label for each image; got {len(where)} places and {len(array)} labels.")
    if not (np.isfinite(where).all() and (np.abs(where) <= (180, 90)).all()):
        raise InputError("Longitudes are from -180 to 180 degrees, and latitudes from -90 to 90.")
    if not 0 < share < 1:
        raise InputError(f"share must be between 0 and 1 (0.2 is 20 %); got {share!r}.")
    if not (0 < cell < math.inf and 0 <= buffer < math.inf):
        raise InputError(f"cell must be over 0 km and buffer at least 0 km; got {cell!r} and {buffer!r}.")
    cells, cell_of = np.unique(_cells(where, cell), axis=0, return_inverse=True)
    chosen = _chosen(cell_of.ravel(), array, share, random_order(len(cells), f"places {seed}"))
    testing = chosen[cell_of.ravel()]
    if not testing.any() or testing.all():
        raise InputError(
            f"The {len(where)} images lie in {len(cells)} cells of {cell:g} km, which cannot be divided so that "
            f"about {share:.0%} are for testing. Take smaller cells."
        )
    near = _near(where, testing, buffer)
    train = np.flatnonzero(~testing & ~near)
    if not len(train):
        raise InputError(
            f"No image lies farther than {buffer:g} km from all that are for testing. Take a smaller buffer."
        )
    return SpatialSplit(
        train=train,
        test=np.flatnonzero(testing),
        left_out=np.flatnonzero(near & ~testing),
        cells=(len(cells), int(chosen.sum())),
    )


def _cells(places: NDArray[np.float64], size: float) -> NDArray[np.int64]:
    """Row and column of the cell of each place: rows of equal height, each of whole columns around the Earth."""
    height = math.degrees(size / RADIUS)
    rows = np.floor((places[:, 1] + 90) / height)
    around = 2 * math.pi * RADIUS * np.cos(np.radians(np.clip((rows + 0.5) * height - 90, -90, 90)))
    columns = np.maximum(1, np.round(around / size))
    return np.stack([rows, np.floor((places[:, 0] + 180) / 360 * columns) % columns], axis=1).astype(np.int64)


def _chosen(
    cell_of: NDArray[np.int64], labels: NDArray[np.int64], share: float, order: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which cells are for testing."""
    classes, class_of = np.unique(labels, return_inverse=True)
    counts = np.zeros((len(order), len(classes)))
    np.add.at(counts, (cell_of, class_of), 1)
    shares = counts / counts.sum(axis=0)
    chosen, reached = np.zeros(len(order), dtype=bool), np.zeros(len(classes))
    for place in order.tolist():
        if ((reached + shares[place] - share) ** 2).sum() < ((reached - share) ** 2).sum():
            chosen[place] = True
            reached += shares[place]
    return chosen


def _near(places: NDArray[np.float64], testing: NDArray[np.bool_], buffer: float) -> NDArray[np.bool_]:
    """Which places have one for testing within the buffer; measured straight through the Earth, which is exact."""
    lon, lat = np.radians(places).T
    points = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=1)
    chord = 2 * math.sin(min(buffer / RADIUS, math.pi) / 2)
    distance, _ = KDTree(points[testing]).query(points, distance_upper_bound=chord * (1 + 1e-9) + 1e-12)
    return np.isfinite(distance)
