"""How the images of a source are found and read by their ids, and what tells whether they are still the same."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffsight.data.decoding import ImageLimits, open_image
from diffsight.errors import ImageError

# Stands for an image that cannot be read: not its reason, in which the place of the data may stand.
UNREADABLE = hashlib.sha256(b"unreadable").digest()


def data_roots(root: str | Path | None) -> list[Path]:
    """Where data sets are looked for: in ``root``, or else in ``$DIFFSIGHT_DATA`` and ``~/.cache/diffsight``."""
    if root is not None:
        return [Path(root).expanduser()]
    own = os.environ.get("DIFFSIGHT_DATA")
    return [*([Path(own).expanduser()] if own else []), Path("~/.cache/diffsight").expanduser()]


def file_digest(path: Path, limits: ImageLimits) -> bytes:
    """A hash of a file's bytes, in constant memory; `UNREADABLE` if it is absent, too large or no regular file."""
    try:
        if not path.is_file() or path.stat().st_size > limits.max_bytes:  # To open a pipe would wait for its writer.
            return UNREADABLE
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return UNREADABLE


def array_digest(array: NDArray[Any]) -> bytes:
    """A hash of an array's values, type and shape."""
    return hashlib.sha256(f"{array.dtype.str} {array.shape}".encode() + array.tobytes()).digest()


def image_digest(read: Callable[[str], Image.Image], id: str) -> bytes:
    """A hash of the decoded pixels; `UNREADABLE` if there are none."""
    try:
        image = read(id)
    except ImageError:
        return UNREADABLE
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).digest()


@dataclass(frozen=True, slots=True)
class FolderReader:
    """Images whose ids are paths below a folder.

    Attributes:
        folder: Where they lie.
        limits: What to refuse for its size.
    """

    folder: Path
    limits: ImageLimits

    def __call__(self, id: str) -> Image.Image:
        """The image in RGB; raises ImageError."""
        return open_image(self.folder / id, limits=self.limits)

    def digest(self, id: str) -> bytes:
        """A hash of the file, not of its name."""
        return file_digest(self.folder / id, self.limits)


@dataclass(frozen=True, slots=True)
class ItemReader:
    """Images whose ids end in their number in a sequence.

    Attributes:
        items: Gives an image by its number, alone or first in a tuple.
        limits: What to refuse for its size.
        stored: What the items are made from, in the same order: an array or the path of a file for each. None if that
            is not known, so that only decoding tells what they are.
    """

    items: Any
    limits: ImageLimits
    stored: Sequence[str | Path] | NDArray[Any] | None = None

    def __call__(self, id: str) -> Image.Image:
        """The image in RGB; raises ImageError."""
        try:
            item = self.items[_number(id)]
        except ImageError:
            raise
        except Exception as error:  # torchvision lets through whatever its readers raise.
            raise ImageError(f"Image {id} is missing or damaged: {error or type(error).__name__}") from error
        return open_image(item[0] if isinstance(item, tuple) else item, limits=self.limits, name=id)

    def digest(self, id: str) -> bytes:
        """A hash of what is stored of it."""
        if self.stored is None:
            return image_digest(self, id)
        item = self.stored[_number(id)]
        return array_digest(item) if isinstance(item, np.ndarray) else file_digest(Path(item), self.limits)


def _number(id: str) -> int:
    return int(id.rpartition("/")[2])
