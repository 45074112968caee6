"""Which images are not kept, and are drawn again with other noise.

What can be found: a picture without content; one picture for two different noises, which is what a safety checker's
replacement looks like; pictures that a user knows and does not want, such as the stock photograph that CompVis's script
puts in (fact sheet A.5.10); pictures too like another of their class; and pictures that a scorer takes for another
class. This package runs no safety checker and writes no watermark into what it draws, so none has to be found in it; an
invisible watermark of images from elsewhere is not looked for.
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy.fft import dctn

from diffsight.data.sources import open_source
from diffsight.errors import ImageError, InputError, SourceError

FLAT, REPEATED, UNWANTED, NEAR, LABEL = "flat", "repeated", "unwanted", "near-duplicate", "label"
REASONS: Mapping[str, str] = {
    FLAT: "a picture without content",
    REPEATED: "the same picture as for another noise",
    UNWANTED: "a picture of the folder of unwanted ones",
    NEAR: "too like another of its class",
    LABEL: "taken for another class by the scorer",
}
BITS = 256  # Of a perceptual hash.
_SIDE, _KEPT = 32, 16
# Two pictures with fewer different bits show the same. A photograph and itself, enlarged or saved as JPEG, differ in
# fewer, and two photographs in more than twice as many: tests/synthesis/test_filters.py.
SAME = 12


@runtime_checkable
class Scorer(Protocol):
    """Says how well images fit the classes: a zero-shot classifier, CLIP, or anything else."""

    @property
    def name(self) -> str:
        """What it is, for the manifest: all that changes its answers."""
        ...

    def __call__(self, images: Sequence[Image.Image]) -> Float[np.ndarray, "n classes"]:
        """A number for each image and class; the greatest of an image is its class."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is looked for.

    Attributes:
        flat: Images whose grey levels deviate less than this (of 255) are without content; 0 keeps them.
        repeated: Whether to drop pictures that come twice.
        unwanted: Perceptual hashes of pictures that are not wanted, as hexadecimal text; see `read_unwanted`.
        near_duplicates: How many of `BITS` bits of their perceptual hashes two pictures of a class must differ in; 0
            keeps all.
        scorer: Name of what checks the labels, or None.
        max_attempts: How often an image is drawn before it is given up.

    Raises:
        InputError: If a number is out of range.
    """

    flat: float = 2.0
    repeated: bool = True
    unwanted: tuple[str, ...] = ()
    near_duplicates: int = SAME
    scorer: str | None = None
    max_attempts: int = 5

    def __post_init__(self) -> None:
        if not 0 <= self.flat <= 128:
            raise InputError(f"flat is a deviation of grey levels from 0 to 128; got {self.flat}.")
        if not 0 <= self.near_duplicates <= BITS // 2:
            raise InputError(f"near_duplicates is a number of bits from 0 to {BITS // 2}; got {self.near_duplicates}.")
        if not 1 <= self.max_attempts <= 1000:
            raise InputError(f"max_attempts must be from 1 to 1000; got {self.max_attempts}.")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values."""
        return {
            "flat": self.flat,
            "repeated": self.repeated,
            "unwanted": hashlib.sha256(" ".join(self.unwanted).encode()).hexdigest() if self.unwanted else None,
            "near_duplicates": self.near_duplicates,
            "scorer": self.scorer,
            "max_attempts": self.max_attempts,
        }


@dataclass(slots=True, eq=False)
class Judge:
    """Decides on images in their order; it remembers what it has seen of each class.

    Attributes:
        filters: What is looked for.
        scorer: What checks labels, if the filters ask for it.
    """

    filters: Filters
    scorer: Scorer | None = None
    _seen: set[str] = field(default_factory=set)
    # Hashes one after another: they are compared with every new image, and would be copied each time from a list.
    _kept: defaultdict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    _unwanted: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        if (self.scorer.name if self.scorer else None) != self.filters.scorer:
            raise InputError(f"The filters name the scorer {self.filters.scorer!r}, and another one was given.")
        self._unwanted = _rows(b"".join(map(bytes.fromhex, self.filters.unwanted)))

    def remember(self, content: str, bits: str, label: int, *, kept: bool) -> None:
        """Take up an image that was decided on before an interruption."""
        self._seen.add(content)
        if kept:
            self._kept[label] += bytes.fromhex(bits)

    def decide(
        self,
        pixels: UInt8[np.ndarray, "b h w 3"],
        labels: Sequence[int],
        contents: Sequence[str],
        hashes: Sequence[str],
    ) -> list[str]:
        """Say of each image why it is not kept; empty text for one that is.

        Args:
            pixels: The images.
            labels: The class of each.
            contents: What each is, as `content_of` gives it.
            hashes: Their perceptual hashes, as `perceptual_hash` gives them.
        """
        fits = self._fits(pixels, labels)
        reasons = []
        for row, label in enumerate(labels):
            reason = self._reason(pixels[row], label, contents[row], hashes[row]) or ("" if fits[row] else LABEL)
            reasons.append(reason)
            self.remember(contents[row], hashes[row], label, kept=not reason)
        return reasons

    def _reason(self, pixels: np.ndarray, label: int, content: str, bits: str) -> str:
        wanted = self.filters
        if wanted.flat and grey(pixels).std() < wanted.flat:
            return FLAT
        if nearest_of(self._unwanted, bits) < SAME:
            return UNWANTED
        if wanted.repeated and content in self._seen:
            return REPEATED
        return NEAR if nearest_of(_rows(self._kept[label]), bits) < wanted.near_duplicates else ""

    def _fits(self, pixels: np.ndarray, labels: Sequence[int]) -> Bool[np.ndarray, " b"]:
        if self.scorer is None:
            return np.ones(len(labels), dtype=bool)
        scores = self.scorer([Image.fromarray(image) for image in pixels])
        return scores.argmax(axis=1) == np.asarray(labels)


def content_of(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """What a picture is, to the bit."""
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:32]


def perceptual_hash(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A hash that like pictures share most bits of: signs of the low frequencies of the cosine transform.

    The picture is made grey and 32×32; of its transform the 16×16 lowest frequencies are compared with their median.
    The mean grey level decides nothing.
    """
    small = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    low = np.asarray(dctn(np.asarray(small, dtype=np.float64), norm="ortho"))[:_KEPT, :_KEPT].ravel()
    low[0] = 0
    return np.packbits(low > np.median(low)).tobytes().hex()


def nearest_of(others: UInt8[np.ndarray, "n bytes"], bits: str) -> int:
    """In how many bits a perceptual hash differs from the nearest of others; in all of them if there is none."""
    different = np.bitwise_count(others ^ _rows(bytes.fromhex(bits))).sum(axis=1)
    return int(different.min(initial=BITS))


def _rows(hashes: bytes | bytearray) -> UInt8[np.ndarray, "n bytes"]:
    return np.frombuffer(hashes, dtype=np.uint8).reshape(-1, BITS // 8)


def grey(pixels: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w"]:
    """Grey levels, from 0 to 255."""
    return pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def read_unwanted(folder: Path | str) -> tuple[str, ...]:
    """Perceptual hashes of the pictures in a folder, which are not wanted wherever they appear and in whatever size.

    Raises:
        InputError: If there is no picture in it, or one cannot be read.
    """
    try:
        source = open_source(f"folder:{Path(folder).resolve()}")
        return tuple(sorted({perceptual_hash(np.asarray(each.load())) for each in source}))
    except (SourceError, ImageError) as error:
        raise InputError(f"The folder of unwanted pictures cannot be used: {error}") from error
