"""Queries of image–text matching: which of these texts fits this image, which of these images fits this text."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffsight.data.decoding import open_image
from diffsight.errors import ImageError, InputError


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image in a file, read when it is asked for.

    Attributes:
        path: The file.
        box: Left, top, right and bottom in pixels of the upright image; right and bottom are outside of the part.

    Raises:
        InputError: If the box is empty.
    """

    path: Path
    box: tuple[int, int, int, int]

    def __post_init__(self) -> None:
        left, top, right, bottom = self.box
        if left >= right or top >= bottom:
            raise InputError(f"The box {self.box} of {self.path} is empty. Give left, top, right and bottom in pixels.")

    def load(self) -> Image.Image:
        """Read the part. Where the box reaches over the edge it ends there: Pillow's black margin is no photograph.

        Raises:
            ImageError: If the file cannot be read, or the box lies outside of it.
        """
        image = open_image(self.path)
        left, top, right, bottom = self.box
        inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            raise ImageError(
                f"The box {self.box} lies outside of {self.path} ({image.width}×{image.height} pixels). Is it the file "
                "that the boxes were made for?"
            )
        return image.crop(inside)


Picture = Path | str | Image.Image | Crop


def picture_identity(picture: Picture) -> str:
    """What is equal for pictures that show the same: the file, whole or in parts and links resolved, or the pixels.

    Raises:
        ImageError: If it is a picture in memory that cannot be read.
    """
    if isinstance(picture, Crop):
        picture = picture.path
    if not isinstance(picture, Image.Image):
        return f"file {os.path.realpath(picture)}"
    rgb = open_image(picture)
    return f"pixels {rgb.size} {hashlib.blake2b(rgb.tobytes(), digest_size=16).hexdigest()}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Query:
    """Candidates of which one is right.

    One image and several texts, one text and several images, or as many texts as images, of which the first belongs to
    the first and so on (as in Winoground).

    Attributes:
        id: Its name, unique in its data set.
        images: Files, parts of files, or pictures. Paths given as text become paths.
        texts: Captions.
        positive: Place of the right candidate, or None where it is not known; for several of both always None.
        tags: What kind of query it is, for results by kind.

    Raises:
        InputError: If there is nothing to choose from, a candidate is there twice, or ``positive`` is no candidate.
    """

    id: str
    images: tuple[Picture, ...]
    texts: tuple[str, ...]
    positive: int | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        files = tuple(Path(image) if isinstance(image, str) else image for image in self.images)
        object.__setattr__(self, "images", files)
        if not self.images or not self.texts or len(self.images) * len(self.texts) == 1:
            raise InputError(
                f"Query {self.id!r} has {len(self.images)} image(s) and {len(self.texts)} text(s): nothing to choose "
                "from. Give at least two candidates."
            )
        if self.form == "grid" and len(self.images) != len(self.texts):
            raise InputError(
                f"Query {self.id!r} has {len(self.images)} images and {len(self.texts)} texts. Give one image, one "
                "text, or as many texts as images, in the same order."
            )
        for text in self.texts:
            if self.texts.count(text) > 1:
                raise InputError(f"Query {self.id!r} has the text {text!r} twice. Give every candidate once.")
        files = [image for image in self.images if not isinstance(image, Image.Image)]
        for file in files:
            if files.count(file) > 1:
                raise InputError(f"Query {self.id!r} has the image {file} twice. Give every candidate once.")
        if self.positive is not None and self.form == "grid":
            raise InputError(f"Query {self.id!r} has a positive, but with several images and texts each has its own.")
        if self.positive is not None and not 0 <= self.positive < self.count:
            raise InputError(
                f"Query {self.id!r} has the positive {self.positive}, but its candidates are 0 to {self.count - 1}."
            )

    @property
    def form(self) -> str:
        """``texts``: choose among texts; ``images``: among images; ``grid``: pair them up."""
        if len(self.images) == 1:
            return "texts"
        return "images" if len(self.texts) == 1 else "grid"

    @property
    def count(self) -> int:
        """How many candidates there are."""
        return max(len(self.images), len(self.texts))
