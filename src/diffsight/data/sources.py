"""Sources of samples: folders and known data sets, as ids, labels and class names; images come one by one.

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

from PIL import Image

from diffsight.data.corruptions import split_change
from diffsight.data.decoding import DEFAULT_LIMITS, SUFFIXES, ImageLimits
from diffsight.data.digits import read_digits
from diffsight.data.eurosat import class_labels, images_folder, part_of
from diffsight.data.fine_grained import FINE_GRAINED, read_lists
from diffsight.data.folder_sets import CLASS_FOLDERS
from diffsight.data.readers import FolderReader, ItemReader, image_digest
from diffsight.data.torchvision_sets import TORCHVISION, read_set
from diffsight.errors import SourceError, nearest

log = logging.getLogger(__name__)

SCHEMES = ("folder", "torchvision", "fine-grained", "class-folders", "sklearn", "spatial", "cue-conflict")


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
        digest: Gives a hash of what is stored of an image, where that is cheaper than decoding; never raises.

    Raises:
        SourceError: If ids repeat, or labels do not fit the ids or the classes.
    """

    name: str
    ids: tuple[str, ...] = field(repr=False)
    read: Callable[[str], Image.Image] = field(repr=False, compare=False)
    labels: tuple[int, ...] | None = field(default=None, repr=False)
    class_names: tuple[str, ...] | None = None
    digest: Callable[[str], bytes] | None = field(default=None, repr=False, compare=False)

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

    def content(self, progress: Callable[[int, int], None] | None = None) -> str:
        """A hash of what the images are, in their order; not of ids, labels or where the data lies.

        All that is stored is read, and decoded only where a source knows no `digest`. An image that cannot be read
        counts as such, whatever the reason. Files count by their bytes: the same picture saved anew is another.

        Args:
            progress: Called after each image with (images read, all images).
        """
        whole = hashlib.sha256(b"content-1")
        for number, id in enumerate(self.ids, start=1):
            whole.update(self.digest(id) if self.digest is not None else image_digest(self.read, id))
            if progress is not None:
                progress(number, len(self))
        return whole.hexdigest()[:32]


def open_source(
    uri: str, *, root: str | Path | None = None, split: str = "test", limits: ImageLimits = DEFAULT_LIMITS
) -> Source:
    """Open data by name. Labels are read, images are not.

    Args:
        uri: ``folder:DIR``: a folder of images, or of class folders, whose names with spaces for underscores are the
            class names. ``torchvision:NAME``: a data set that torchvision knows; see `TORCHVISION`.
            ``fine-grained:NAME``: one that it does not; see `FINE_GRAINED`. ``sklearn:digits``: see `read_digits`.
            ``class-folders:NAME``: ImageNet and others whose classes are known folders; see `CLASS_FOLDERS`.
            ``spatial:NAME``: a set in parts that lie apart on Earth; see `eurosat.py`. ``cue-conflict:NAME``: shape
            against texture; see `cue_conflict.py`. With ``@TYPE:SEVERITY`` or ``@resolution:PIXELS`` at its end, any of
            them with this done to its images; see `corruptions.py`.
        root: What DIR is relative to, or where data sets lie. Without it those are looked for in ``$DIFFSIGHT_DATA``
            and ``~/.cache/diffsight``, Fashion-MNIST also where Debian puts it.
        split: Of a data set; a folder is taken whole. EuroSAT has no splits, and all of it is ``test``; but see
            ``spatial:eurosat``.
        limits: What images to refuse for their size.

    Raises:
        SourceError: If the data are not there, or not in the form that they should have.
        InputError: If there is no such type or severity of corruption.
    """
    uri, change = split_change(uri)
    if change is not None:
        from diffsight.data.changed import changed  # It needs this module's names.

        return changed(open_source(uri, root=root, split=split, limits=limits), change)
    scheme, colon, name = uri.partition(":")
    if colon and scheme == "folder":
        return _open_folder(name, root, limits)
    if colon and scheme == "torchvision":
        return _open_torchvision(name, root, split, limits)
    if colon and scheme == "fine-grained":
        return _open_fine_grained(name, root, split, limits)
    if colon and scheme == "class-folders":
        from diffsight.data.class_folders import open_class_folders

        return open_class_folders(name, root=root, split=split, limits=limits)
    if colon and scheme == "sklearn":
        return _open_digits(name, split, limits)
    if colon and scheme == "spatial":
        return _open_spatial(name, root, split, limits)
    if colon and scheme == "cue-conflict":
        from diffsight.data.cue_conflict import open_cue_conflicts

        return open_cue_conflicts(name, root=root, split=split, limits=limits).source()
    known = {**dict.fromkeys(TORCHVISION, "torchvision"), **dict.fromkeys(FINE_GRAINED, "fine-grained")}
    known |= {**dict.fromkeys(CLASS_FOLDERS, "class-folders"), "digits": "sklearn", "eurosat-cells": "spatial"}
    if scheme in known:
        hint = f"Did you mean '{known[scheme]}:{scheme}'?"
    elif not colon:
        hint = f"Did you mean 'folder:{uri}'?"
    else:
        hint = nearest(scheme, SCHEMES)
    raise SourceError(f"Unknown source {uri!r}. {hint}")


def _open_torchvision(name: str, root: str | Path | None, split: str, limits: ImageLimits) -> Source:
    items, stored, labels, class_names = read_set(name, root=root, split=split, limits=limits)
    return _of_items(f"torchvision:{name}", split, ItemReader(items, limits, stored), labels, class_names)


def _open_digits(name: str, split: str, limits: ImageLimits) -> Source:
    if name != "digits":
        raise SourceError(f"Unknown scikit-learn set {name!r}. {nearest(name, ['digits'])}")
    images, labels, class_names = read_digits(split)
    return _of_items("sklearn:digits", split, ItemReader(images, limits, images), labels, class_names)


def _of_items(
    uri: str, split: str, reader: ItemReader, labels: tuple[int, ...], class_names: tuple[str, ...]
) -> Source:
    name = uri.partition(":")[2]
    return Source(
        name=f"{uri}/{split}",
        ids=tuple(f"{name}/{split}/{index:05d}" for index in range(len(reader.items))),
        read=reader,
        digest=reader.digest,
        labels=labels,
        class_names=class_names,
    )


def _open_fine_grained(name: str, root: str | Path | None, split: str, limits: ImageLimits) -> Source:
    folder, ids, labels, class_names = read_lists(name, root=root, split=split)
    reader = FolderReader(folder, limits)
    return Source(
        name=f"fine-grained:{name}/{split}",
        ids=ids,
        read=reader,
        digest=reader.digest,
        labels=labels,
        class_names=class_names,
    )


def _open_spatial(name: str, root: str | Path | None, split: str, limits: ImageLimits) -> Source:
    folder = images_folder(name, root=root, split=split)
    whole = _open_folder(str(folder), None, limits)
    index = class_labels(list(dict.fromkeys(id.partition("/")[0] for id in whole.ids)), folder)
    labels = tuple(index[label] for label in whole.labels or ())
    chosen, said = part_of(name, split, whole.ids, labels, folder)
    log.info("spatial:%s/%s: %s", name, split, said)
    whole = replace(whole, labels=labels, class_names=TORCHVISION["eurosat"].names)
    return replace(whole.select(chosen.tolist()), name=f"spatial:{name}/{split}")


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
    reader = FolderReader(folder, limits)
    if not classes:
        return Source(name=name, ids=ids, read=reader, digest=reader.digest)
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
        digest=reader.digest,
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
