"""CIFAR-10 and CIFAR-100 as their authors' binary files, which need no pickle to be read.

Each record is the label (of CIFAR-100 the superclass, then the class) and 3 × 32 × 32 bytes: red, green, blue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from diffsight.errors import SourceError

_PIXELS = 3 * 32 * 32
_LARGEST = 2**28  # CIFAR-100's train.bin has 154 MB.


@dataclass(frozen=True, slots=True, kw_only=True)
class Binary:
    """How one of the sets lies on disk.

    Attributes:
        archive: Where its authors give it away.
        folder: What the archive unpacks to.
        parts: The files of each split, in the order of the images.
        names: The file of class names, one on each line.
        classes: How many there are.
        labels: Bytes before the pixels, of which the last is the class.
    """

    archive: str
    folder: str
    parts: Mapping[str, tuple[str, ...]]
    names: str
    classes: int
    labels: int


CIFAR: Mapping[str, Binary] = {
    "cifar10": Binary(
        archive="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        parts={"test": ("test_batch.bin",), "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6))},
        names="batches.meta.txt",
        classes=10,
        labels=1,
    ),
    "cifar100": Binary(
        archive="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        parts={"test": ("test.bin",), "train": ("train.bin",)},
        names="fine_label_names.txt",
        classes=100,
        labels=2,
    ),
}


def find_binary(name: str, roots: Sequence[Path]) -> Path | None:
    """The folder of the binary files, if one of the roots has it."""
    places = (root / CIFAR[name].folder for root in roots) if name in CIFAR else ()
    return next((place for place in places if place.is_dir()), None)


def read_binary(
    name: str, folder: Path, split: str
) -> tuple[UInt8[np.ndarray, "n 32 32 3"], UInt8[np.ndarray, " n"], tuple[str, ...]]:
    """Read a split.

    Args:
        name: A key of `CIFAR`.
        folder: From `find_binary`.
        split: ``train`` or ``test``.

    Returns:
        The images, the class of each, and the class names.

    Raises:
        SourceError: If a file is missing, cut off or not what it should be.
    """
    known = CIFAR[name]
    names = _class_names(folder / known.names, known.classes)
    records = np.concatenate([_records(folder / part, known.labels + _PIXELS) for part in known.parts[split]])
    labels = records[:, known.labels - 1]
    if labels.max() >= known.classes:
        raise SourceError(
            f"{folder} ({split}): image {labels.argmax()} has the label {labels.max()}, and there are "
            f"{known.classes} classes. Unpack {known.archive} again."
        )
    return records[:, known.labels :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels, names


def _records(path: Path, length: int) -> UInt8[np.ndarray, "n bytes"]:
    data = np.frombuffer(_read(path), np.uint8)
    if not data.size or data.size % length:
        raise SourceError(f"{path} has {data.size:,} bytes, no multiple of {length:,}: it is cut off. Unpack it again.")
    return data.reshape(-1, length)


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(_read(path).decode().split())
    except UnicodeDecodeError as error:
        raise SourceError(f"{path} is no list of class names: {error}. Unpack it again.") from error
    if len(names) != count or len({*names}) != count:
        raise SourceError(f"{path} has {len({*names})} class names, not {count}. Unpack it again.")
    return names


def _read(path: Path) -> bytes:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:  # To open a pipe would wait for its writer.
            raise SourceError(f"{path} is missing, no file, or larger than {_LARGEST:,} bytes. Unpack it again.")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
