"""Where on Earth the patches of GeoTIFF files lie: from their tags alone, which Pillow reads; no pixel is decoded.

Known are files whose axes follow the map's (tags ModelTiepoint and ModelPixelScale), in a zone of UTM on WGS 84, as
Sentinel-2's products are, or in longitude and latitude.
"""

import csv
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from diffsight.errors import SourceError
from diffsight.store.disk import put, writing

Place = tuple[float, float]

COLUMNS = ("id", "lon", "lat")
ENDINGS = (".tif", ".tiff")
_WIDTH, _HEIGHT, _SCALE, _TIE_POINT, _KEYS = 256, 257, 33550, 33922, 34735
_GEOGRAPHIC, _PROJECTED = 2048, 3072  # keys in the directory of `_KEYS`: which of EPSG's systems
_LARGEST = 2**28
_BIG, _BYTES = 43, 16  # what says that a file is a BigTIFF, and the longest header


def place_of(path: Path | str) -> Place:
    """The middle of an image.

    Args:
        path: A GeoTIFF.

    Returns:
        Longitude and latitude in degrees (WGS 84).

    Raises:
        SourceError: If it is no GeoTIFF, or in a coordinate system that is not known here.
    """
    tags = _tags(Path(path))
    try:
        width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
        across, down = (float(value) for value in tags[_SCALE][:2])
        column, row, _, x, y = (float(value) for value in tags[_TIE_POINT][:5])
        system = _system(tuple(tags[_KEYS]))
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path} does not say where it lies: it has no size, ModelTiepoint (33922), ModelPixelScale (33550) and "
            f"GeoKeyDirectory (34735) that can be used ({error!r}). Give the GeoTIFF files as their authors made them."
        ) from error
    x, y = x + (width / 2 - column) * across, y - (height / 2 - row) * down
    if system == 4326:
        lon, lat = x, y
    elif 1 <= system % 100 <= 60 and system // 100 in (326, 327):
        lon, lat = from_utm(x, y, zone=system % 100, south=system // 100 == 327)
    else:
        raise SourceError(
            f"{path} is in the coordinate system EPSG:{system}; known here are UTM zones (326xx and 327xx) and 4326. "
            f"Give a table with the columns {', '.join(COLUMNS)} instead."
        )
    if not (-180 <= lon <= 180 and -90 <= lat <= 90):
        raise SourceError(f"{path} lies at longitude {lon:g} and latitude {lat:g}, which is nowhere. Restore the file.")
    return lon, lat


def places_of(folder: Path | str) -> dict[str, Place]:
    """Where all GeoTIFFs below a folder lie, by their names without folder and ending.

    Raises:
        SourceError: If there is none, two have the same name, one leads out of the folder, or one has no place.
    """
    top = Path(folder).expanduser().resolve()
    found: dict[str, Place] = {}
    for path in sorted(top.rglob("*")):
        if path.suffix.lower() not in ENDINGS or path.name.startswith(".") or not path.is_file():
            continue
        if path.is_symlink() and not path.resolve().is_relative_to(top):
            raise SourceError(f"{path} is a link out of {top}. Copy the file in.")
        if path.stem in found:
            raise SourceError(f"Two files below {top} are called {path.stem!r}; they must have a name each.")
        found[path.stem] = place_of(path)
    if not found:
        raise SourceError(f"There is no file that ends in {' or '.join(ENDINGS)} below {top}.")
    return found


def write_places(folder: Path | str, out: Path | str) -> int:
    """Write where all GeoTIFFs below a folder lie as a CSV file, so that the files need not be kept or read again.

    Args:
        folder: Of GeoTIFFs.
        out: A file, with the columns id, lon and lat.

    Returns:
        How many there are.

    Raises:
        SourceError: As `places_of`.
        RunError: If the file cannot be written; nothing half-written is left.
    """
    places = places_of(folder)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    rows.writerows((id, f"{lon:.6f}", f"{lat:.6f}") for id, (lon, lat) in places.items())
    with writing(Path(out)):
        put(Path(out), text.getvalue().encode())
    return len(places)


def from_utm(east: float, north: float, *, zone: int, south: bool = False) -> Place:
    """Longitude and latitude of a point in a zone of UTM on WGS 84, to less than a millimetre within the zone.

    Args:
        east: Metres, of which the zone's middle has 500,000.
        north: Metres from the equator, on the southern half plus 10,000,000.
        zone: From 1 to 60.
        south: Whether it is on the southern half.

    References:
        Krüger's series in the third flattening, to the third order: https://epsg.org, method 9807; Karney,
        arXiv:1002.1417
    """
    flattening = 1 / 298.257223563
    n = flattening / (2 - flattening)
    scale = 0.9996 * 6378137 / (1 + n) * (1 + n**2 / 4 + n**4 / 64)
    xi, eta = (north - 1e7 * south) / scale, (east - 5e5) / scale
    back = (n / 2 - 2 * n**2 / 3 + 37 * n**3 / 96, n**2 / 48 + n**3 / 15, 17 * n**3 / 480)
    twice = [(j * 2, b) for j, b in enumerate(back, start=1)]
    xi, eta = (
        xi - sum(b * math.sin(j * xi) * math.cosh(j * eta) for j, b in twice),
        eta - sum(b * math.cos(j * xi) * math.sinh(j * eta) for j, b in twice),
    )
    conformal = math.asin(math.sin(xi) / math.cosh(eta))
    up = (2 * n - 2 * n**2 / 3 - 2 * n**3, 7 * n**2 / 3 - 8 * n**3 / 5, 56 * n**3 / 15)
    lat = conformal + sum(d * math.sin(2 * j * conformal) for j, d in enumerate(up, start=1))
    return zone * 6 - 183 + math.degrees(math.atan2(math.sinh(eta), math.cos(xi))), math.degrees(lat)


def _tags(path: Path) -> Mapping[int, Any]:
    """The first directory of a TIFF. `Image.open` would refuse its 13 channels."""
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:  # To open a pipe would wait for its writer.
            raise SourceError(f"{path} is missing, no file, or larger than {_LARGEST:,} bytes.")
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags; those that are needed will be missing
            header = file.read(8)
            if header[2:3] == bytes([_BIG]) or header[3:4] == bytes([_BIG]):
                header += file.read(_BYTES - 8)
            directory = ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
            return dict(directory)
    except SourceError:
        raise
    except Exception as error:  # Damaged files make Pillow raise almost anything.
        raise SourceError(f"{path} is damaged or no TIFF: {error or type(error).__name__}.") from error


def _system(keys: tuple[int, ...]) -> int:
    """EPSG's number of the coordinate system; each key is four numbers, of which the last is the value."""
    values = {keys[start]: keys[start + 3] for start in range(4, len(keys) - 3, 4) if not keys[start + 1]}
    return int(values[_PROJECTED] if _PROJECTED in values else values[_GEOGRAPHIC])
