"""A source with something done to its images: corrupted, or at a lower resolution."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from diffsight.data.corruptions import RENDERING, Change, Resolution
from diffsight.data.readers import UNREADABLE
from diffsight.data.sources import Source

LARGEST = 256  # pixels: the side to which ImageNet-C's images are resized first


def changed(source: Source, change: Change) -> Source:
    """The same images after a change, each decoded and changed when it is asked for.

    Ids get the change appended (``test/00001@fog:3``), so that no result of clean images can be taken for one of these;
    the random numbers of an image are addressed by its own id, the same in every copy of the data. Name and ids are
    part of a run's fingerprint, and the name has the version of the rendering.

    Corruptions are defined at the size at which networks see images. An image whose shorter side is over 256 pixels is
    first resized to that (bicubic), as ImageNet-C's are before they are cropped to 224: otherwise the noise of large
    photographs would vanish when they are resized for the network. A `Resolution` sees images as they are.

    Args:
        source: Of clean images.
        change: From `parse_change`.
    """
    end = f"@{change.spec}"
    reader = _Reader(read=source.read, inner=source.digest, change=change)
    version = "" if isinstance(change, Resolution) else f" (rendering {RENDERING})"
    return replace(
        source,
        name=f"{source.name}{end}{version}",
        ids=tuple(id + end for id in source.ids),
        read=reader,
        digest=reader.digest if source.digest is not None else None,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads and changes images by their new ids."""

    read: Callable[[str], Image.Image]
    inner: Callable[[str], bytes] | None
    change: Change

    def __call__(self, id: str) -> Image.Image:
        """The changed image in RGB; raises ImageError."""
        own = self._own(id)
        image = self.read(own).convert("RGB")
        short = min(image.size)
        if not isinstance(self.change, Resolution) and short > LARGEST:
            width, height = (max(1, round(side * LARGEST / short)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        return Image.fromarray(self.change(np.asarray(image), image_id=own))

    def digest(self, id: str) -> bytes:
        """A hash of what is stored of the clean image, and of what is done to it."""
        stored = self.inner(self._own(id)) if self.inner is not None else UNREADABLE
        if stored == UNREADABLE:
            return UNREADABLE
        return hashlib.sha256(f"{self.change.spec} {RENDERING} ".encode() + stored).digest()

    def _own(self, id: str) -> str:
        return id.removesuffix(f"@{self.change.spec}")
