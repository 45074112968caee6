"""Reading a synthetic set: its classes, its images, and of each image all that it was made from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int
from PIL import Image

from diffsight.data.decoding import DEFAULT_LIMITS, open_image
from diffsight.data.readers import UNREADABLE
from diffsight.data.sources import Source
from diffsight.errors import ImageError, InputError, SourceError
from diffsight.store.disk import digest
from diffsight.synthesis.folder import CARD, IMAGES, MANIFEST, RUN, SHARDS

NEWEST = 1
COLUMNS = (
    "file", "class", "label", "index", "attempt", "prompt", "guidance_scale", "seed", "trick", "domain", "steps",
    "sampler", "model", "weights", "width", "height", "resize", "flags", "sha256", "rows", "place",
)  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticSet:
    """A finished set; made by `read_synthetic`.

    Attributes:
        path: Its directory.
        classes: Class names; a label is an index into them.
        rows: ``manifest.parquet``: a row for each image, ordered by class and number.
        card: ``dataset.json``: settings, model, what is missing.
    """

    path: Path
    classes: tuple[str, ...]
    rows: pa.Table = field(repr=False)
    card: Mapping[str, Any] = field(repr=False)

    def __len__(self) -> int:
        return self.rows.num_rows

    @property
    def format(self) -> str:
        """``"folder"`` or ``"wds"``."""
        return str(self.card["format"])

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Of each image its path below the directory; of one in a shard the shard's, a colon and its name in it."""
        return tuple(self.rows.column("file").to_pylist())

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of the images.

        Raises:
            InputError: If they are packed in shards, where `image` and `source` read them.
        """
        if self.format != "folder":
            raise InputError(f"The images of {self.path} are packed in shards: read them by image() or source().")
        return tuple(self.path / file for file in self.files)

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of each image."""
        return self.rows.column("label").to_numpy().astype(np.int64)

    def row(self, number: int) -> dict[str, Any]:
        """All that one image was made from, and where it is.

        Raises:
            InputError: If there are not so many.
        """
        if not 0 <= number < len(self):
            raise InputError(f"{self.path} has {len(self)} images, from 0 to {len(self) - 1}; got {number}.")
        return self.rows.slice(number, 1).to_pylist()[0]

    def find(self, file: str | Path) -> int:
        """The number of an image by its file, below the directory or wherever that is.

        Raises:
            InputError: If it is no image of the set.
        """
        text = Path(file).as_posix()
        known = {name: number for number, name in enumerate(self.files)}
        own = self.path.resolve().as_posix() + "/"
        for name in (text, f"{IMAGES}/{text}", Path(file).absolute().as_posix().removeprefix(own)):
            if name in known:
                return known[name]
        raise InputError(f"{file} is no image of {self.path}. Its files look like {self.files[0]!r}.")

    def image(self, number: int) -> Image.Image:
        """One image in RGB.

        Raises:
            ImageError: If it is missing or damaged.
        """
        return open_image(self._bytes(self.files[number]), limits=DEFAULT_LIMITS, name=self.files[number])

    def source(self) -> Source:
        """The images as every other part of this package takes them: ids, labels, names and what reads them."""
        return Source(
            name=f"synthetic:{self.path.resolve().name}",
            ids=self.files,
            read=lambda id: open_image(self._bytes(id), limits=DEFAULT_LIMITS, name=id),
            digest=self._digest,
            labels=tuple(self.labels.tolist()),
            class_names=self.classes,
        )

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        if self.format == "folder":
            return {}
        columns = (self.rows.column(name).to_pylist() for name in ("offset", "length"))
        return dict(zip(self.files, zip(*columns, strict=True), strict=True))

    def _bytes(self, file: str) -> bytes:
        try:
            if self.format == "folder":
                return (self.path / file).read_bytes()
            offset, length = self._places[file]
            with (self.path / file.partition(":")[0]).open("rb") as shard:
                shard.seek(offset)
                return shard.read(length)
        except OSError as error:
            raise ImageError(f"Image {file} of {self.path} cannot be read: {error.strerror}.") from error

    def _digest(self, file: str) -> bytes:
        try:
            return bytes.fromhex(digest(self._bytes(file)))
        except ImageError:
            return UNREADABLE


def read_synthetic(out: Path | str) -> SyntheticSet:
    """Open a set that ``diffsight synthesize`` has finished.

    Raises:
        SourceError: If there is none, it is not finished, or its files are not what was written.
    """
    path = Path(out)
    if not (path / CARD).is_file():
        unfinished = (path / RUN).is_dir()
        raise SourceError(
            f"{path} is not finished: the command that made it goes on from where it stood."
            if unfinished
            else f"{path} is no synthetic set: it has no {CARD}."
        )
    try:
        card = json.loads((path / CARD).read_bytes())
        if card["schema"] > NEWEST:
            raise SourceError(f"{path / CARD} has schema {card['schema']}; this diffsight knows {NEWEST}. Upgrade it.")
        classes = tuple(str(entry["name"]) for entry in card["classes"])
        if card["synthetic"] is not True or card["format"] not in ("folder", "wds"):
            raise ValueError("it does not say that the images are synthetic, and in which format")
        with pq.ParquetFile(path / MANIFEST) as file:
            rows = file.read()
        needed = [*COLUMNS, *(("offset", "length") if card["format"] == "wds" else ())]
        if missing := [name for name in needed if name not in rows.column_names]:
            raise ValueError(f"{MANIFEST} has no column {missing[0]!r}")
        labels = rows.column("label").to_numpy()
        if not rows.num_rows or labels.min() < 0 or labels.max() >= len(classes):
            raise ValueError(f"{MANIFEST} has no rows, or labels of no class")
        folders = {IMAGES} if card["format"] == "folder" else {SHARDS}
        if strange := next((name for name in rows.column("file").to_pylist() if _leads_out(name, folders)), None):
            raise ValueError(f"{strange!r} is no file of a set")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise SourceError(f"{path} is damaged: {error}. Restore it, or give its command again.") from error
    return SyntheticSet(path=path, classes=classes, rows=rows, card=card)


def _leads_out(name: str, folders: set[str]) -> bool:
    parts = name.partition(":")[0].split("/")
    return parts[0] not in folders or ".." in parts or len(parts) < 2
