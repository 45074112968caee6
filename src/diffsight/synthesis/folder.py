"""A synthetic set on disk: images that are whole or absent, and nothing outside the set's own directory.

::

    images/cat/00007.png          an ordinary folder of images, one sub-folder for each class; or
    shards/00003.tar              the same as webdataset's shards: NUMBER.png, NUMBER.cls and NUMBER.json of each
    manifest.parquet              a row for each image: all that it was made from
    dataset.json, README.md       what the set is, for programs and for people
    contact-base.png              a picture of pictures for each trick
    run/                          what makes the set continuable: settings, decisions, failures
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffsight.errors import RunError
from diffsight.store.disk import digest, make, put, writing
from diffsight.synthesis.classes import Classes

IMAGES, SHARDS, RUN = "images", "shards", "run"
MANIFEST, CARD, README = "manifest.parquet", "dataset.json", "README.md"
PER_SHARD = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A file that is in place."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """Where images go.

    Attributes:
        out: The set's directory.
        classes: Whose folders there are.
        note: What every file says of itself.
    """

    out: Path
    classes: Classes
    note: str

    def prepare(self) -> None:
        """Make the folders of the classes, and remove what a killed process left unfinished in them.

        Raises:
            RunError: If a folder leads out of the directory, or the disk refuses.
        """
        with writing(self.out):
            for folder in self.classes.folders:
                path = self.out / IMAGES / folder
                refuse_links_out(self.out, path)
                make(path)
                for left in path.glob(".*.png.tmp"):
                    left.unlink(missing_ok=True)

    def path(self, label: int, index: int) -> Path:
        """Where an image lies."""
        return self.out / IMAGES / self.name(label, index)

    def name(self, label: int, index: int) -> str:
        """Folder and file of an image."""
        return f"{self.classes.folders[label]}/{index:05d}.png"

    def write(self, label: int, index: int, pixels: UInt8[np.ndarray, "h w 3"]) -> Written:
        """Put an image in place, whole or not at all; one that is there is replaced.

        Raises:
            RunError: If the disk refuses; nothing half-written is left.
        """
        data = encode(pixels, self.note)
        with writing(self.out):
            put(self.path(label, index), data)
        return Written(sha256=digest(data), bytes=len(data))

    def remove(self, label: int, index: int) -> None:
        """Take an image away that is not kept after all."""
        with writing(self.out):
            self.path(label, index).unlink(missing_ok=True)

    def has(self, label: int, index: int, size: int) -> bool:
        """Whether an image is there with as many bytes as were written."""
        path = self.path(label, index)
        return path.is_file() and path.stat().st_size == size


def encode(pixels: UInt8[np.ndarray, "h w 3"], note: str) -> bytes:
    """A picture as PNG, with a line of text in it that says that it is synthetic."""
    said = PngInfo()
    said.add_itxt("Comment", note)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=said)
    return buffer.getvalue()


def shard_name(number: int) -> str:
    """File of a shard."""
    return f"{SHARDS}/{number:05d}.tar"


def pack(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write a tar file, whole or not at all; the same members give the same bytes.

    Raises:
        RunError: If the disk refuses.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    with writing(path):
        make(path.parent)
        put(path, buffer.getvalue())


def sample_members(key: str, image: bytes, row: Mapping[str, Any]) -> list[tuple[str, bytes]]:
    """One sample of a shard as webdataset has them: image, label, and all else."""
    text = json.dumps(dict(row), ensure_ascii=False, sort_keys=True)
    return [(f"{key}.png", image), (f"{key}.cls", str(row["label"]).encode()), (f"{key}.json", text.encode())]


def find_members(path: Path) -> dict[str, tuple[int, int]]:
    """Where the images in a shard begin, and how long they are, by name.

    Raises:
        RunError: If it is no tar file.
    """
    try:
        with tarfile.open(path) as tar:
            return {each.name: (each.offset_data, each.size) for each in tar if each.name.endswith(".png")}
    except (OSError, tarfile.TarError) as error:
        raise RunError(
            f"{path} is damaged: it is no tar file ({error}). Remove it: the same command makes it."
        ) from error


def refuse_foreign(out: Path) -> None:
    """Refuse a directory that holds something else, or links out of itself.

    Raises:
        RunError: If it does.
    """
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Give a directory for the images.")
    there = sorted(os.listdir(out)) if out.is_dir() else []
    if there and not (out / RUN).is_dir():
        raise RunError(f"{out} holds {there[0]!r} and is no set that diffsight made. Give an empty or a new directory.")
    for name in (RUN, IMAGES, SHARDS):
        refuse_links_out(out, out / name)


def refuse_links_out(out: Path, path: Path) -> None:
    """Refuse to write where a link leads out of a set's directory.

    Raises:
        RunError: If it does.
    """
    if not path.resolve().is_relative_to(out.resolve()):
        raise RunError(f"{path} is a link out of {out}. Remove it: a set is written inside its directory only.")


def drop_empty(out: Path, classes: Sequence[str]) -> None:
    """Remove the folders of images that have all been packed."""
    for folder in [*(out / IMAGES / name for name in classes), out / IMAGES]:
        if folder.is_dir() and not os.listdir(folder):
            folder.rmdir()
