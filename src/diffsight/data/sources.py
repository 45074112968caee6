"""Sources of samples: folders and torchvision's data sets, as ids, labels and class names; images come one by one.

An id names an image in every machine's copy of the data. Nothing is decoded before it is asked for.
"""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from diffsight.data.decoding import DEFAULT_LIMITS, SUFFIXES, ImageLimits, open_image
from diffsight.data.torchvision_sets import TORCHVISION, read_set
from diffsight.errors import ImageError, SourceError, nearest

log = logging.getLogger(__name__)

SCHEMES = ("folder", "torchvision")


@dataclass(frozen=True, slots=True)
class Sample:
    """One image that has not been decoded yet.

    Attributes:
        id: Stable name of the image in its source.
        label: Index of its class, if known.
        load: Gives the image in RGB; raises ImageError.
    """

    id: str
    label: int | None
    load: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A sequence of samples.

    Attributes:
        name: What it is called in reports.
        ids: Stable names of the images, each once.
        read: Gives the image of an id in RGB; raises ImageError.
        labels: Class index of each image, if known.
        class_names: What the classes are called in prompts, if known.

    Raises:
        SourceError: If ids repeat, or labels do not fit the ids or the classes.
    """

    name: str
    ids: tuple[str, ...] = field(repr=False)
    read: Callable[[str], Image.Image] = field(repr=False, compare=False)
    labels: tuple[int, ...] | None = field(default=None, repr=False)
    class_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        repeated = [id for id, count in Counter(self.ids).most_common(1) if count > 1]
        if repeated:
            raise SourceError(f"{self.name}: two images have the id {repeated[0]!r}.")
        if self.labels is None:
            return
        if len(self.labels) != len(self.ids):
            raise SourceError(f"{self.name}: {len(self.ids)} images but {len(self.labels)} labels.")
        limit = len(self.class_names) if self.class_names is not None else None
        for id, label in zip(self.ids, self.labels, strict=True):
            if label < 0 or (limit is not None and label >= limit):
                raise SourceError(f"{self.name}: {id} has the label {label}, and there are {limit} classes.")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        id = self.ids[index]
        return Sample(id, self.labels[index] if self.labels is not None else None, partial(self.read, id))

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: Sequence[int]) -> "Source":
        """Give some of the samples, in the order of ``indices``; ids stay what they are."""
        labels = tuple(self.labels[index] for index in indices) if self.labels is not None else None
        return replace(self, ids=tuple(self.ids[index] for index in indices), labels=labels)

    def fingerprint(self) -> str:
        """A hash of ids and labels in their order; not of where the data lies."""
        return hashlib.sha256(json.dumps([self.ids, self.labels]).encode()).hexdigest()[:16]


def open_source(
    uri: str, *, root: str | Path | None = None, split: str = "test", limits: ImageLimits = DEFAULT_LIMITS
) -> Source:
    """Open data by name. Labels are read, images are not.

    Args:
        uri: ``folder:DIR``: a folder of images, or of class folders, whose names with spaces for underscores are the
            class names. ``torchvision:NAME``: a data set that torchvision knows; see `TORCHVISION`.
        root: What DIR is relative to, or where torchvision's data lie. Without it those are looked for in
            ``$DIFFSIGHT_DATA`` and ``~/.cache/diffsight``, Fashion-MNIST also where Debian puts it.
        split: Of torchvision's data sets; a folder is taken whole. EuroSAT has no splits, and all of it is ``test``.
        limits: What images to refuse for their size.

    Raises:
        SourceError: If the data are not there, or not in the form that they should have.
    """
    scheme, colon, name = uri.partition(":")
    if colon and scheme == "folder":
        return _open_folder(name, root, limits)
    if colon and scheme == "torchvision":
        return _open_torchvision(name, root, split, limits)
    if scheme in TORCHVISION:
        hint = f"Did you mean 'torchvision:{scheme}'?"
    elif not colon:
        hint = f"Did you mean 'folder:{uri}'?"
    else:
        hint = nearest(scheme, SCHEMES)
    raise SourceError(f"Unknown source {uri!r}. {hint}")


@dataclass(frozen=True, slots=True)
class _FolderReader:
    folder: Path
    limits: ImageLimits

    def __call__(self, id: str) -> Image.Image:
        return open_image(self.folder / id, limits=self.limits)


@dataclass(frozen=True, slots=True)
class _ItemReader:
    items: Any
    limits: ImageLimits

    def __call__(self, id: str) -> Image.Image:
        try:
            item = self.items[int(id.rpartition("/")[2])]
        except ImageError:
            raise
        except Exception as error:  # torchvision lets through whatever its readers raise.
            raise ImageError(f"Image {id} is missing or damaged: {error or type(error).__name__}") from error
        return open_image(item[0] if isinstance(item, tuple) else item, limits=self.limits, name=id)


def _open_torchvision(name: str, root: str | Path | None, split: str, limits: ImageLimits) -> Source:
    items, labels, class_names = read_set(name, root=root, split=split, limits=limits)
    return Source(
        name=f"torchvision:{name}/{split}",
        ids=tuple(f"{name}/{split}/{index:05d}" for index in range(len(items))),
        read=_ItemReader(items, limits),
        labels=labels,
        class_names=class_names,
    )


def _open_folder(where: str, root: str | Path | None, limits: ImageLimits) -> Source:
    if not where:
        raise SourceError("'folder:' needs a folder after the colon.")
    folder = (Path(root or ".").expanduser() / Path(where).expanduser()).resolve()
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder." if folder.exists() else f"There is no folder {folder}.")
    skipped: Counter[str] = Counter()
    ids = tuple(_image_files(folder, "", folder, skipped))
    if skipped:
        kinds = ", ".join(f"{count} {kind}" for kind, count in skipped.most_common())
        log.info("folder:%s: skipped %s", where, kinds)
    if not ids:
        found = f" (only {', '.join(kind for kind, _ in skipped.most_common(5))})" if skipped else ""
        raise SourceError(f"There is no image in {folder}{found}. Known endings: {' '.join(sorted(SUFFIXES))}.")
    classes = tuple(dict.fromkeys(id.partition("/")[0] for id in ids if "/" in id))
    name = f"folder:{folder.name}"
    reader = _FolderReader(folder, limits)
    if not classes:
        return Source(name=name, ids=ids, read=reader)
    loose = [id for id in ids if "/" not in id]
    if loose:
        raise SourceError(
            f"{folder} holds both class folders ({classes[0]!r}, …) and {len(loose)} images beside them "
            f"({loose[0]!r}, …); move the images into class folders, or name the folder of one class."
        )
    empty = sorted(
        {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False) and _visible(entry)}
        - {*classes}
    )
    if empty:
        raise SourceError(f"Without images in {folder}: {', '.join(map(repr, empty))}; fill or remove them.")
    index = {label: number for number, label in enumerate(classes)}
    return Source(
        name=name,
        ids=ids,
        read=reader,
        labels=tuple(index[id.partition("/")[0]] for id in ids),
        class_names=tuple(label.replace("_", " ").strip() for label in classes),
    )


def _image_files(folder: Path, prefix: str, top: Path, skipped: Counter[str]) -> Iterator[str]:
    """Walk in natural order; give POSIX paths relative to ``top``, and count what is not an image."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: _natural(entry.name))
    except OSError as error:
        raise SourceError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for entry in entries:
        id = prefix + entry.name
        if entry.is_symlink() and not Path(target := os.path.realpath(entry)).is_relative_to(top):
            raise SourceError(f"{top / id} is a link to {target}, outside the folder. Copy it in.")
        if not _visible(entry):
            skipped["hidden"] += 1
        elif entry.is_dir(follow_symlinks=False):
            yield from _image_files(folder / entry.name, f"{id}/", top, skipped)
        elif os.path.isdir(entry):  # `entry.is_dir()` raises for a link to itself.
            skipped["linked folders"] += 1
        elif Path(entry).suffix.lower() not in SUFFIXES:
            skipped[Path(entry).suffix.lower() or "without ending"] += 1
        elif not (entry.is_symlink() or entry.is_file()):  # A dangling link is an image that fails, and is reported.
            skipped["special files"] += 1
        elif not _is_text(id):
            raise SourceError(f"The file name {os.fsencode(id)!r} in {top} is not UTF-8; rename it.")
        else:
            yield id


def _visible(entry: os.DirEntry[str]) -> bool:
    return not entry.name.startswith((".", "__MACOSX"))


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _natural(name: str) -> tuple[list[tuple[bool, int, str]], str]:
    """Sort img2 before img10; the name itself decides what is otherwise equal, such as img2 and IMG02."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name.casefold())
    return [(False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts], name
