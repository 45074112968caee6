"""Data sets that torchvision knows, as a table, and how they are opened. Nothing is downloaded.

torchvision reads CIFAR's Python files with pickle: files that come from outside. It does so only after their MD5 sums
turned out to be those of the authors' own files, and anything else is refused before it is opened; who has the binary
version (`cifar.py`) needs no pickle at all, and it comes first.
"""

import gzip
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsight.data.cifar import CIFAR, find_binary, read_binary
from diffsight.data.decoding import DEFAULT_LIMITS, ImageLimits, open_image
from diffsight.data.pcam import PCAM_NAMES, read_pcam
from diffsight.data.readers import data_roots
from diffsight.errors import SourceError, nearest

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_DIGITS = tuple("0123456789")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchvisionSet:
    """How to open one of torchvision's data sets.

    Attributes:
        cls: Name of the class in ``torchvision.datasets``.
        place: What must lie in the root for it to be there; ``{split}`` is filled in.
        splits: Options of the class for each split.
        labels: Attribute that holds the labels, or tuples that end with one; without meaning for idx.
        stored: Attribute that holds the images as they are stored: arrays, paths, or tuples that begin with a path.
        names: Class names where torchvision has none, or none fit for a prompt.
        renamed: Single class names to replace.
        folders: What the folders of the classes are called, in the order of their labels, where not as the classes.
        is_idx: Whether it is in MNIST's format, which is read here.
        obtain: How to get it where torchvision cannot download it; for errors.
    """

    cls: str
    place: str
    splits: Mapping[str, Mapping[str, Any]]
    labels: str = "_labels"
    stored: str = "_image_files"
    names: tuple[str, ...] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] | None = None
    is_idx: bool = False
    obtain: str | None = None


def _named(*splits: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": split} for split in splits}


_BY_FLAG = {"test": {"train": False}, "train": {"train": True}}
_PREFIX = {"test": "t10k", "train": "train"}

TORCHVISION: Mapping[str, TorchvisionSet] = {
    "aircraft": TorchvisionSet(
        cls="FGVCAircraft", place="fgvc-aircraft-2013b", splits=_named("test", "train", "val", "trainval")
    ),
    "cars": TorchvisionSet(
        cls="StanfordCars",
        place="stanford_cars",
        splits=_named("test", "train"),
        labels="_samples",
        stored="_samples",
        obtain="a copy of what the authors gave away, with stanford_cars/cars_train, cars_test, devkit and "
        "cars_test_annos_withlabels.mat; their page is gone, see https://github.com/pytorch/vision/issues/7545",
    ),
    "cifar10": TorchvisionSet(
        cls="CIFAR10", place="cifar-10-batches-py", splits=_BY_FLAG, labels="targets", stored="data"
    ),
    "cifar100": TorchvisionSet(
        cls="CIFAR100", place="cifar-100-python", splits=_BY_FLAG, labels="targets", stored="data"
    ),
    "dtd": TorchvisionSet(cls="DTD", place="dtd", splits=_named("test", "train", "val")),
    "eurosat": TorchvisionSet(
        cls="EuroSAT",
        place="eurosat",
        splits={"test": {}},
        labels="targets",
        stored="samples",
        folders=(
            *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
            *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
        ),
        names=(  # In the order of the folders; the words are CLIP's.
            "annual crop land",
            "forest",
            "brushland or shrubland",
            "highway or road",
            "industrial buildings or commercial buildings",
            "pasture land",
            "permanent crop land",
            "residential buildings or homes or apartments",
            "river",
            "lake or sea",
        ),
    ),
    "fashion-mnist": TorchvisionSet(cls="FashionMNIST", place="FashionMNIST/raw", splits=_BY_FLAG, is_idx=True),
    "flowers102": TorchvisionSet(
        cls="Flowers102",
        place="flowers-102",
        splits=_named("test", "train", "val"),
        renamed={  # To the names in CLIP's and Li et al.'s prompts.
            "globe-flower": "globe flower",
            "pink-yellow dahlia?": "pink and yellow dahlia",
            "ball moss": "air plant",
        },
    ),
    "food101": TorchvisionSet(cls="Food101", place="food-101", splits=_named("test", "train")),
    "mnist": TorchvisionSet(cls="MNIST", place="MNIST/raw", splits=_BY_FLAG, names=_DIGITS, is_idx=True),
    "pcam": TorchvisionSet(cls="PCAM", place="pcam", splits=_named("test", "train", "val"), names=PCAM_NAMES),
    "pets": TorchvisionSet(
        cls="OxfordIIITPet", place="oxford-iiit-pet", splits=_named("test", "trainval"), stored="_images"
    ),
    "stl10": TorchvisionSet(
        cls="STL10",
        place="stl10_binary",
        splits=_named("test", "train"),
        labels="labels",
        stored="data",
        names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    ),
    "svhn": TorchvisionSet(
        cls="SVHN",
        place="{split}_32x32.mat",
        splits=_named("test", "train"),
        labels="labels",
        stored="data",
        names=_DIGITS,
    ),
}


def read_set(
    name: str, *, root: str | Path | None = None, split: str = "test", limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[Any, Any, tuple[int, ...], tuple[str, ...]]:
    """Open a split of a data set: labels are read, images only where they are stored in one piece with them.

    Args:
        name: A key of `TORCHVISION`.
        root: Where the data lie; without it, the places of `open_source`.
        split: One of the set's own.
        limits: What images to refuse for their size.

    Returns:
        A sequence that gives each image by its index (alone, or first in a tuple), what is stored of them (see
        `ItemReader`), the labels, and the class names.

    Raises:
        SourceError: If name or split is unknown, or the data are absent or damaged.
    """
    if name not in TORCHVISION:
        raise SourceError(f"Unknown torchvision set {name!r}. {nearest(name, TORCHVISION)}")
    known = TORCHVISION[name]
    if split not in known.splits:
        raise SourceError(f"torchvision:{name} has no split {split!r}. {nearest(split, known.splits)}")
    import torchvision  # Slow, and needed only here.

    cls = getattr(torchvision.datasets, known.cls)
    places = [place / known.place.format(split=split) for place in data_roots(root)]
    binary = find_binary(name, data_roots(root))
    if binary is not None:
        items, labels, own_names = read_binary(name, binary, split)
        stored = items
    elif known.is_idx:
        if root is not None:
            places.append(Path(root).expanduser())
        elif name == "fashion-mnist":
            places.append(DEBIAN_FASHION_MNIST)
        items, labels = _read_idx_pair(_locate(name, split, places, f"{_PREFIX[split]}-images-idx3-ubyte*"), split)
        stored = items
        own_names = cls.classes
    elif name == "pcam":
        items, labels = read_pcam(_locate(name, split, places, "camelyonpatch_*.h5"), split)
        stored, own_names = None, PCAM_NAMES
    else:
        place = _locate(name, split, places)
        options: dict[str, Any] = dict(known.splits[split])
        if "loader" in signature(cls).parameters:  # Else torchvision decodes by itself, without our checks.
            options["loader"] = partial(open_image, limits=limits)
        try:
            items = cls(str(place.parent), **options)
            labels = [label[-1] if isinstance(label, tuple) else label for label in getattr(items, known.labels)]
        except Exception as error:
            raise SourceError(f"torchvision:{name} in {place} is incomplete or damaged: {error}") from error
        stored = _stored(items, known.stored, place)
        own_names = getattr(items, "classes", None)
        if known.folders is not None:  # A folder that is missing would else give all after it another label.
            labels = _labels_by_folder(known.folders, items.classes, labels, place)
    names = known.names or own_names
    if not names:
        raise SourceError(f"This torchvision ({torchvision.__version__}) has no class names for {name}; upgrade it.")
    class_names = tuple(known.renamed.get(label, label).replace("_", " ") for label in names)
    return items, stored, tuple(int(label) for label in labels), class_names


def _labels_by_folder(known: Sequence[str], found: Sequence[str], labels: Sequence[int], place: Path) -> list[int]:
    if strangers := [folder for folder in found if folder not in known]:
        raise SourceError(f"{place} has a class folder {strangers[0]!r}; there are {', '.join(known)}. Remove it.")
    return [known.index(found[label]) for label in labels]


def _stored(items: Any, attribute: str, place: Path) -> Sequence[str | Path] | NDArray[Any] | None:  # noqa: ANN401
    """Arrays or paths from where torchvision keeps them; None, so that images are decoded, if it does no more."""
    held = getattr(items, attribute, None)
    if held is None or len(held) != len(items):
        return None
    if isinstance(held, np.ndarray):
        return held
    paths = [os.path.normpath(item[0] if isinstance(item, tuple) else item) for item in held]
    top = os.path.join(os.path.normpath(place), "")
    for path in paths:
        if not path.startswith(top):  # torchvision joins what stands in a list to the folder, "../" and "/" included.
            raise SourceError(f"The lists in {place} name the file {path}, which is outside of it.")
    return paths


def _locate(name: str, split: str, places: Sequence[Path], pattern: str = "") -> Path:
    """The first place that exists and, if there is a pattern, holds a file of it."""
    for place in places:
        if any(place.glob(pattern)) if pattern else place.exists():
            return place
    known = TORCHVISION[name]
    options = "".join(f"{key}={value!r}, " for key, value in known.splits[split].items())
    root = str(places[0]).removesuffix(known.place.format(split=split)).rstrip("/")
    package = ", or as Debian's package dataset-fashion-mnist" if name == "fashion-mnist" else ""
    if name in CIFAR:
        package = f", or unpack {CIFAR[name].archive} there, which needs no pickle"
    command = f'python -c "import torchvision.datasets as d; d.{known.cls}({root!r}, {options}download=True)"'
    raise SourceError(
        f"torchvision:{name} ({split}) is not here; looked for {' and '.join(map(str, places))}. Say where it is (root "
        f"or $DIFFSIGHT_DATA), or get {known.obtain or f'it with: {command}{package}'}."
    )


def _read_idx_pair(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    images = _read_idx(folder / f"{_PREFIX[split]}-images-idx3-ubyte", dimensions=3)
    labels = _read_idx(folder / f"{_PREFIX[split]}-labels-idx1-ubyte", dimensions=1)
    if len(images) != len(labels):
        raise SourceError(f"{folder} holds {len(images)} {split} images but {len(labels)} labels.")
    return images, labels


def _read_idx(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    """Read bytes in MNIST's idx format, compressed (as torchvision cannot) or not."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
        magic, *shape = (int(word) for word in np.frombuffer(data, ">u4", count=1 + dimensions))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise SourceError(f"{path} (or {packed.name}) cannot be read: {error}.") from error
    offset = 4 * (1 + dimensions)
    if magic != 0x0800 + dimensions or len(data) != offset + prod(shape):
        raise SourceError(f"{path} (or {packed.name}) is no idx file of {dimensions} dimensions, or is cut off.")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape)
