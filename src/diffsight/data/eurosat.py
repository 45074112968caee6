"""EuroSAT in parts that lie apart from each other; the data have none of their own, and random parts leak.

Its 27,000 patches of 64 × 64 pixels (640 m) are cut from Sentinel-2 images, many side by side. The JPEG files do
not say where they lie; their multispectral twins of the same names, GeoTIFFs, do. So there are two ways:

* ``eurosat``: torchgeo's published division by longitude (60, 20 and 20 %), which is three short lists. It is what
  others compare on. It leaves no strip free between the parts.
* ``eurosat-cells``: cells of 100 km, about the width of one product of Sentinel-2, and no image to learn from within
  10 km of one to test with. It needs the places of all images. One overflight can still have seen both sides of a
  cell's edge, for the files do not say when they were taken.

Nothing is downloaded.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from diffsight.data.geotiff import COLUMNS, Place, places_of
from diffsight.data.readers import data_roots
from diffsight.data.spatial import SpatialSplit, split_by_place
from diffsight.data.tables import load_csv, load_parquet
from diffsight.data.torchvision_sets import TORCHVISION
from diffsight.errors import InputError, SourceError, nearest

log = logging.getLogger(__name__)

SPATIAL: Mapping[str, tuple[str, ...]] = {"eurosat": ("test", "train", "val"), "eurosat-cells": ("test", "train")}
SHARE, CELL, BUFFER, SEED = 0.2, 100.0, 10.0, 0  # `split_by_place` for "eurosat-cells"; part of the task's version

_FOLDER, _IMAGES = "eurosat", "2750"
_LIST = "eurosat-spatial-{split}.txt"
_LISTS_AT = "https://huggingface.co/datasets/torchgeo/eurosat"
_TABLES = ("places.csv", "places.parquet")
# What the archives of the GeoTIFFs unpack to, and what people call it.
_TIFFS = ("ds/images/remote_sensing/otherDatasets/sentinel_2/tif", "EuroSAT_MS", "EuroSATallBands", "tif")
_LARGEST_LIST = 2**24


def images_folder(name: str, *, root: Path | str | None = None, split: str = "test") -> Path:
    """The folder of the JPEG files' class folders, as torchvision's EuroSAT has them.

    Args:
        name: A key of `SPATIAL`.
        root: Where ``eurosat`` lies; without it, the places of `open_source`.
        split: One that the division has.

    Raises:
        SourceError: If name or split is unknown, or there is no such folder.
    """
    if name not in SPATIAL:
        raise SourceError(f"Unknown spatial set {name!r}. {nearest(name, SPATIAL)}")
    if split not in SPATIAL[name]:
        raise SourceError(f"spatial:{name} has no split {split!r}. {nearest(split, SPATIAL[name])}")
    places = [each / _FOLDER / _IMAGES for each in data_roots(root)]
    for place in places:
        if place.is_dir():
            return place
    raise SourceError(
        f"spatial:{name} is not here; looked for {' and '.join(map(str, places))}. Say where it is (root or "
        f"$DIFFSIGHT_DATA), or unpack EuroSAT.zip of {_LISTS_AT} in {places[0].parent}, which makes {_IMAGES}/."
    )


def class_labels(folders: Sequence[str], folder: Path) -> list[int]:
    """The label of each class folder.

    Raises:
        SourceError: If one is no class of EuroSAT.
    """
    known = TORCHVISION["eurosat"].folders or ()
    if strangers := [each for each in folders if each not in known]:
        raise SourceError(f"{folder} has a class folder {strangers[0]!r}. {nearest(strangers[0], known)} Remove it.")
    return [known.index(each) for each in folders]


def part_of(
    name: str, split: str, ids: Sequence[str], labels: Sequence[int], folder: Path
) -> tuple[Int[np.ndarray, " n"], str]:
    """Which images a part has, ascending.

    Args:
        name: A key of `SPATIAL`.
        split: One that the division has.
        ids: The images, as paths; only the name of a file counts, without its ending.
        labels: The class of each.
        folder: From `images_folder`; lists, tables and GeoTIFFs lie beside it.

    Returns:
        Positions in ``ids``, and what there is to say about the division.

    Raises:
        SourceError: If lists or places are missing, or do not fit the images.
    """
    if name == "eurosat":
        return _listed(folder.parent / _LIST.format(split=split), ids)
    divided = divide(ids, labels, folder)
    names = TORCHVISION["eurosat"].folders or ()
    return (divided.train if split == "train" else divided.test), divided.describe(labels, names)


def divide(ids: Sequence[str], labels: Sequence[int], folder: Path) -> SpatialSplit:
    """The division of ``eurosat-cells``; arguments and errors as of `part_of`."""
    where = _located(ids, find_places(folder.parent))
    try:
        return split_by_place(where, labels, share=SHARE, cell=CELL, buffer=BUFFER, seed=SEED)
    except InputError as error:
        raise SourceError(f"{folder}: {error} This takes all of EuroSAT.") from error


def find_places(beside: Path) -> dict[str, Place]:
    """Where images lie, by their names without folder and ending: from a table, or from the tags of GeoTIFFs.

    Args:
        beside: The folder of ``places.csv``, ``places.parquet`` or the GeoTIFFs.

    Raises:
        SourceError: If there is none of these, or it is damaged.
    """
    for table in (beside / each for each in _TABLES):
        if table.is_file():
            return _read_table(table)
    for tiffs in (beside / each for each in _TIFFS):
        if tiffs.is_dir():
            log.info("the places are read from all files in %s; diffsight.data.geotiff.write_places keeps them", tiffs)
            return places_of(tiffs)
    raise SourceError(
        f"The JPEG files of EuroSAT do not say where they lie, and nothing beside them does; looked in {beside} for "
        f"{', '.join((*_TABLES, *_TIFFS))}. Unpack EuroSATallBands.zip of {_LISTS_AT} there (GeoTIFFs of the same "
        f"names; 2 GB), or give a table with the columns {', '.join(COLUMNS)}, which "
        "diffsight.data.geotiff.write_places makes of GeoTIFFs. Or take the task eurosat-spatial, which needs lists "
        "alone."
    )


def _read_table(path: Path) -> dict[str, Place]:
    def check(columns: Sequence[str]) -> None:
        if missing := [each for each in COLUMNS if each not in columns]:
            raise SourceError(f"{path} has no column {missing[0]!r}; it needs {', '.join(COLUMNS)}.")

    rows = load_csv(path, check) if path.suffix == ".csv" else load_parquet(path, check)
    found: dict[str, Place] = {}
    for where, row in rows:
        if isinstance(row, InputError):
            raise SourceError(f"{path}, {where}: {row}")
        try:
            id, place = Path(str(row["id"])).stem, (float(row["lon"]), float(row["lat"]))
        except (TypeError, ValueError) as error:
            raise SourceError(f"{path}, {where}: longitude and latitude must be numbers ({error}).") from error
        if not (abs(place[0]) <= 180 and abs(place[1]) <= 90):
            raise SourceError(f"{path}, {where}: {place} is no longitude from -180 to 180 and latitude from -90 to 90.")
        if id in found:
            raise SourceError(f"{path}, {where}: {id!r} is there already.")
        found[id] = place
    return found


def _located(ids: Sequence[str], places: Mapping[str, Place]) -> Float[np.ndarray, "n 2"]:
    """The places in the order of the images; GeoTIFFs without a JPEG file are no matter."""
    stems = [Path(id).stem for id in ids]
    if lost := [stem for stem in stems if stem not in places]:
        raise SourceError(
            f"{len(lost):,} of {len(ids):,} images have no place ({lost[0]!r}, …). Give the places of all of them, or "
            "remove the images."
        )
    return np.array([places[stem] for stem in stems], dtype=np.float64).reshape(-1, 2)


def _listed(path: Path, ids: Sequence[str]) -> tuple[Int[np.ndarray, " n"], str]:
    if not path.is_file():
        raise SourceError(
            f"The list {path} is missing. Get {_LIST.format(split='train')}, -val and -test of {_LISTS_AT}, and put "
            "them there."
        )
    places = {Path(id).stem: place for place, id in enumerate(ids)}
    found: dict[str, int] = {}
    for number, name in _names(path):
        stem = Path(name).stem
        if stem not in places:
            raise SourceError(f"{path}, line {number} names {name[:80]!r}, and there is no such image. Unpack all.")
        if stem in found:
            raise SourceError(f"{path}, line {number} names {name!r} again. Get the list again.")
        found[stem] = places[stem]
    if not found:
        raise SourceError(f"{path} names no image. Get the list again.")
    return np.sort(np.array([*found.values()], dtype=np.int64)), f"{len(found):,} images of torchgeo's list {path.name}"


def _names(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.stat().st_size > _LARGEST_LIST:
            raise SourceError(f"{path} has more than {_LARGEST_LIST:,} bytes, too many for a list.")
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    yield from ((number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip())
