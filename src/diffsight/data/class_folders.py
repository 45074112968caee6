"""Images of data sets whose classes are folders and known beforehand (`folder_sets.py`): ImageNet and others.

Nothing is downloaded. Labels come from the list of the classes and not from what lies there, so that a class whose
folder is missing leaves the others their labels; a folder of no class is refused, for it shows that this is other data.

Every split can be asked for with few images of each class: ``val/4`` is the first four by name of each, as many as Li
et al. take of ImageNet (which ones they took is not known).
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffsight.data.decoding import DEFAULT_LIMITS, SUFFIXES, ImageLimits
from diffsight.data.folder_sets import CLASS_FOLDERS, FolderSet
from diffsight.data.imagenet import imagenet_classes
from diffsight.data.prompts import PromptSet
from diffsight.data.readers import FolderReader, data_roots
from diffsight.data.sources import Source
from diffsight.errors import SourceError, nearest

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InnerReader:
    """Images without their border.

    Attributes:
        files: Reads them whole.
        border: Pixels to leave out at each edge.
    """

    files: FolderReader
    border: int

    def __call__(self, id: str) -> Image.Image:
        """The image in RGB; raises ImageError."""
        image, edge = self.files(id), self.border
        if min(image.size) <= 2 * edge:
            return image
        return image.crop((edge, edge, image.width - edge, image.height - edge))

    def digest(self, id: str) -> bytes:
        """A hash of the file, not of its name."""
        return self.files.digest(id)


def open_class_folders(
    name: str, *, root: str | Path | None = None, split: str = "test", limits: ImageLimits = DEFAULT_LIMITS
) -> Source:
    """List the images of a set without opening them.

    Args:
        name: A key of `CLASS_FOLDERS`.
        root: Where the set lies, or the folder of its class folders; without it, the places of `open_source`.
        split: One of its own, with ``/N`` at the end for the first N images of each class.
        limits: What images to refuse for their size.

    Raises:
        SourceError: If name or split is unknown, or the data are absent or other than they should be.
    """
    part, per_class = _split(name, split)
    known = CLASS_FOLDERS[name]
    folder = _find(name, part, root)
    classes = known.classes(folder)
    tops = {each.partition("/")[0] for each in classes.folders} | classes.others
    strangers = sorted(each.name for each in os.scandir(folder) if each.is_dir() and each.name[0] not in "._")
    if strangers := [each for each in strangers if each not in tops]:
        raise SourceError(
            f"{folder} has a folder {strangers[0]!r} ({len(strangers):,} such), which is no class of {name}. Is this "
            f"other data? {known.obtain}"
        )
    found = [list(_images(folder, each))[:per_class] for each in classes.folders]
    if empty := [each for each, images in zip(classes.folders, found, strict=True) if not images]:
        if len(empty) == len(found):
            raise SourceError(f"There is no image in the class folders of {folder}. {known.obtain}")
        log.warning("%s: %s of %s classes have no image: %s, …", name, len(empty), len(found), empty[0])
    whole = FolderReader(folder, limits)
    reader = InnerReader(whole, known.border) if known.border else whole
    return Source(
        name=f"class-folders:{name}/{split}",
        ids=tuple(id for images in found for id in images),
        read=reader,
        digest=reader.digest,
        labels=tuple(label for label, images in enumerate(found) for _ in images),
        class_names=classes.names,
    )


def class_ids(
    source: str, *, root: str | Path | None = None, split: str = "test"
) -> tuple[tuple[int, ...], ...] | None:
    """ImageNet's labels of each class of a source: what a model of ImageNet's 1,000 class ids is asked for.

    Args:
        source: As for `open_source`.
        root: As for `open_source`.
        split: As for `open_source`.

    Returns:
        One or more for each class; None if the source is not of ImageNet's classes.

    Raises:
        SourceError: If the data are not there.
    """
    scheme, _, name = source.partition("@")[0].partition(":")
    if scheme != "class-folders" or name not in CLASS_FOLDERS:
        return None
    ids = CLASS_FOLDERS[name].class_ids
    return None if ids is None else ids(_find(name, _split(name, split)[0], root))


def id_prompts(
    names: Sequence[str], known: Sequence[str], source: str, *, root: str | Path | None = None, split: str = "test"
) -> PromptSet | None:
    """What a model of ImageNet's class ids is asked for a source of ImageNet's classes: the ids, one or more a class.

    Args:
        names: What the source's classes are called.
        known: The model's own class names, in the order of its ids.
        source: As for `open_source`.
        root: As for `open_source`.
        split: As for `open_source`.

    Returns:
        None if the model or the source is not of ImageNet's classes.

    Raises:
        SourceError: If the data are not there.
    """
    classes = imagenet_classes()
    if len(known) != len(classes) or known[0].split(",")[0] not in ("0", classes[0].name):
        return None
    ids = class_ids(source, root=root, split=split)
    if ids is None:
        return None
    owner = tuple(label for label, each in enumerate(ids) for _ in each)
    return PromptSet(tuple(names), tuple(str(id) for each in ids for id in each), owner)


def _split(name: str, split: str) -> tuple[str, int | None]:
    """The split itself, and how many images of each class, if not all."""
    if name not in CLASS_FOLDERS:
        raise SourceError(f"Unknown set of class folders {name!r}. {nearest(name, CLASS_FOLDERS)}")
    part, slash, count = split.partition("/")
    if part not in CLASS_FOLDERS[name].splits:
        raise SourceError(f"class-folders:{name} has no split {part!r}. {nearest(part, CLASS_FOLDERS[name].splits)}")
    if slash and not (count.isascii() and count.isdigit() and 0 < int(count) < 10**6):
        raise SourceError(
            f"The split {split!r} must end in a number of images from 1, such as {part}/4; got {count!r}."
        )
    return part, int(count) if slash else None


def _find(name: str, split: str, root: str | Path | None) -> Path:
    known = CLASS_FOLDERS[name]
    places = [place / each for place in data_roots(root) for each in known.splits[split]]
    flat: list[Path] = []
    for place in places:
        entries = [entry for entry in os.scandir(place) if entry.name[0] not in "._"] if place.is_dir() else []
        if any(entry.is_dir() for entry in entries):
            return place.resolve()
        if any(Path(entry.name).suffix.lower() in SUFFIXES for entry in entries):
            flat.append(place)
    if root is not None and _fits(known, Path(root).expanduser()):  # A root may hold other sets instead.
        return Path(root).expanduser().resolve()
    loose = f"{flat[0]} has images and no class folders; sort them into those first. " if flat else ""
    raise SourceError(
        f"class-folders:{name} ({split}) is not here; looked for {' and '.join(map(str, places))}. {loose}Say where it "
        f"is (root or $DIFFSIGHT_DATA), or get it: {known.obtain}"
    )


def _fits(known: FolderSet, place: Path) -> bool:
    try:
        return any((place / folder).is_dir() for folder in known.classes(place).folders)
    except (SourceError, OSError):
        return False


def _images(top: Path, folder: str) -> Iterator[str]:
    """The images right in a class folder, by name."""
    try:
        entries = sorted(os.scandir(top / folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    except OSError as error:
        raise SourceError(f"The folder {top / folder} cannot be read: {error.strerror}.") from error
    if not Path(os.path.realpath(top / folder)).is_relative_to(top):
        raise SourceError(f"{top / folder} leads out of {top}. Copy the images in.")
    for entry in entries:
        if entry.name[0] in "._" or Path(entry.name).suffix.lower() not in SUFFIXES or entry.is_dir():
            continue
        if entry.is_symlink() and not Path(os.path.realpath(entry)).is_relative_to(top):
            raise SourceError(f"{entry.path} is a link out of {top}. Copy the image in.")
        yield f"{folder}/{entry.name}"
