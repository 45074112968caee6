"""Fine-grained data sets that torchvision does not know, read from the files as their authors give them away.

Nothing is downloaded. The lists are data from outside: they may only name files below the folder of the images, and say
the same as the names of the class folders.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from diffsight.data.readers import data_roots
from diffsight.errors import SourceError, nearest

SPLITS = ("test", "train")
# The lists of CUB have 0.7 MB, those of Stanford Dogs less; what is much larger is something else.
_LARGEST_LIST, _MOST_IMAGES = 16 * 2**20, 1_000_000

Listed = Iterable[tuple[str, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FineGrained:
    """How to open one of these data sets.

    Attributes:
        folder: Name of its folder in the root.
        images: The folder of class folders in that.
        listed: Gives the images of a split as (path below `images`, class counted from 1), in the authors' order.
        class_name: From the name of a class folder to what the class is called in prompts.
        obtain: Where to get it, and how it must lie; for errors.
    """

    folder: str
    images: str
    listed: Callable[[Path, str], Listed]
    class_name: Callable[[str], str]
    obtain: str


def read_lists(
    name: str, *, root: str | Path | None = None, split: str = "test"
) -> tuple[Path, tuple[str, ...], tuple[int, ...], tuple[str, ...]]:
    """Read which images a split has, without opening them.

    Args:
        name: A key of `FINE_GRAINED`.
        root: Where the folder of the set lies, or that folder; without it, in the places of `open_source`.
        split: ``train`` or ``test``, as the authors divide it.

    Returns:
        The folder of the images, their paths below it, their labels, and the class names.

    Raises:
        SourceError: If name or split is unknown, or the data are absent, damaged or inconsistent.
    """
    if name not in FINE_GRAINED:
        raise SourceError(f"Unknown fine-grained set {name!r}. {nearest(name, FINE_GRAINED)}")
    if split not in SPLITS:
        raise SourceError(f"fine-grained:{name} has no split {split!r}. {nearest(split, SPLITS)}")
    known = FINE_GRAINED[name]
    places = [place / known.folder for place in data_roots(root)]
    if root is not None:
        places.append(Path(root).expanduser())
    found = [place.resolve() for place in places if (place / known.images).is_dir()]
    if not found:
        raise SourceError(
            f"fine-grained:{name} is not here; looked for {known.images}/ in {' and '.join(map(str, places))}. "
            f"Say where it is (root or $DIFFSIGHT_DATA), or get it: {known.obtain}"
        )
    images = (found[0] / known.images).resolve()
    listed = tuple(known.listed(found[0], split))
    folders = _class_folders(listed, images, where=f"fine-grained:{name} ({split}) in {found[0]}")
    class_names = tuple(known.class_name(folder) for folder in folders)
    return images, tuple(path for path, _ in listed), tuple(number - 1 for _, number in listed), class_names


def _class_folders(listed: tuple[tuple[str, int], ...], images: Path, *, where: str) -> list[str]:
    """The folder of each class in the order of their numbers, after checking that the lists make sense."""
    if not listed:
        raise SourceError(f"{where}: the lists name no image. Unpack the archive again.")
    folders: dict[int, str] = {}
    for path, number in listed:
        parts = path.split("/")
        named = len(parts) == 2 and not {"", ".", ".."} & {*parts} and not {"\\", "\0"} & {*path}
        if not named or not Path(os.path.realpath(images / path)).is_relative_to(images):  # A link may lead out, too.
            raise SourceError(f"{where}: the lists name {path!r}, which is no file in a class folder of {images}.")
        if folders.setdefault(number, parts[0]) != parts[0]:
            raise SourceError(f"{where}: class {number} is both {folders[number]!r} and {parts[0]!r}.")
    numbers = sorted(folders)
    if numbers != list(range(1, len(folders) + 1)) or len(set(folders.values())) != len(folders):
        raise SourceError(
            f"{where}: the lists have {len(folders)} classes numbered from {numbers[0]} to {numbers[-1]}, in "
            f"{len(set(folders.values()))} folders; they must be numbered 1, 2, …, each in a folder of its own."
        )
    return [folders[number] for number in numbers]


def _listed_in_cub(place: Path, split: str) -> Listed:
    """Both splits are in one list, and another says which image is in which."""
    images, training = (dict(_lines(place / name)) for name in ("images.txt", "train_test_split.txt"))
    if images.keys() != training.keys():
        (odd, *_) = sorted(images.keys() ^ training.keys())
        raise SourceError(f"{place}: image {odd} is in only one of images.txt and train_test_split.txt.")
    wrong = [number for number, value in training.items() if value not in ("0", "1")]
    if wrong:
        raise SourceError(f"{place}/train_test_split.txt: image {wrong[0]} has {training[wrong[0]]!r}, not 0 or 1.")
    for number, path in images.items():
        # Of the form 001.Black_footed_Albatross/….jpg.
        prefix = path.partition(".")[0]
        if not (prefix.isascii() and prefix.isdigit()):
            raise SourceError(f"{place}/images.txt: {path!r} does not begin with the number of a class.")
        if training[number] == ("1" if split == "train" else "0"):
            yield path, int(prefix)


def _lines(path: Path) -> Iterable[tuple[str, str]]:
    """Lines of a number and a value, each number once."""
    _check_size(path)
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
    seen: set[str] = set()
    for row, line in enumerate(lines, start=1):
        number, _, value = line.strip().partition(" ")
        if not (number.isascii() and number.isdigit()) or not value or number in seen:
            reason = "repeats a number" if number in seen else "is no number and value"
            raise SourceError(f"{path}, line {row} {reason}: {line[:80]!r}.")
        seen.add(number)
        yield number, value


def _listed_in_dogs(place: Path, split: str) -> Listed:
    """A list for each split, in Matlab's format."""
    import scipy.io  # Slow, and needed only here.

    path = place / f"{split}_list.mat"
    _check_size(path)
    try:
        # Sizes and types first: a small compressed file can hold large arrays, or things that are neither.
        kinds = {name: (prod(shape), kind) for name, shape, kind in scipy.io.whosmat(path)}
        count, kind = kinds["file_list"]
        if kind != "cell" or count > _MOST_IMAGES or kinds["labels"][0] != count:
            raise ValueError(f"file_list and labels are {kinds['file_list']} and {kinds['labels']}")
        values = scipy.io.loadmat(path, variable_names=("file_list", "labels"))
        files = [cell.item() for cell in values["file_list"].ravel()]
        labels = values["labels"].ravel().tolist()
        numbers = [int(label) for label in labels]
        if not all(isinstance(file, str) for file in files) or numbers != labels:
            raise ValueError("file_list must hold names, and labels whole numbers")
    except Exception as error:  # scipy lets through whatever damaged files make it raise.
        reason = f"{type(error).__name__}: {error}"
        raise SourceError(f"{path} is damaged or not the authors' list: {reason}. Unpack lists.tar again.") from error
    return zip(files, numbers, strict=True)


def _check_size(path: Path) -> None:
    if not path.is_file():
        raise SourceError(f"{path} is missing; unpack all of the archive.")
    size = path.stat().st_size
    if size > _LARGEST_LIST:
        raise SourceError(f"{path} has {size:,} bytes, over the limit of {_LARGEST_LIST:,} for a list.")


def _bird(folder: str) -> str:
    """From 001.Black_footed_Albatross."""
    return folder.partition(".")[2].replace("_", " ").strip().lower()


def _breed(folder: str) -> str:
    """From n02085620-Chihuahua."""
    return folder.partition("-")[2].replace("_", " ").strip()


FINE_GRAINED: Mapping[str, FineGrained] = {
    "cub": FineGrained(
        folder="CUB_200_2011",
        images="images",
        listed=_listed_in_cub,
        class_name=_bird,
        obtain="unpack CUB_200_2011.tgz of https://www.vision.caltech.edu/datasets/cub_200_2011/ in the root, which "
        "makes CUB_200_2011/images, CUB_200_2011/images.txt and CUB_200_2011/train_test_split.txt.",
    ),
    "dogs": FineGrained(
        folder="stanford_dogs",
        images="Images",
        listed=_listed_in_dogs,
        class_name=_breed,
        obtain="unpack images.tar and lists.tar of http://vision.stanford.edu/aditya86/ImageNetDogs/ in a folder "
        "stanford_dogs of the root, which makes stanford_dogs/Images, stanford_dogs/train_list.mat and "
        "stanford_dogs/test_list.mat.",
    ),
}
