"""Cue conflicts: images whose shape says one class and whose texture says another (Geirhos et al. 2019, 1811.12231).

What a model answers shows which of the two it goes by. Each image has two labels, over the same classes:

* **shape bias** = shape decisions / (shape decisions + texture decisions): answers that are neither do not count;
* **shape accuracy** = shape decisions / all images: what Clark & Jaini (2303.15233) compare.

A model that is mostly wrong can have a high bias, so that the two are kept apart. Images whose shape and texture are of
one class tell nothing, and are in none of the sets:

``cue-conflict:geirhos``        the published images, 16 classes, read from a local copy
``cue-conflict:shapes``         scenes for ``tiny-shapes``: a class is a shape with its colour, and they are exchanged
``cue-conflict:stripes``        the same with a shape and its being plain or striped; two classes
``cue-conflict:fashion-mnist``  silhouettes of one garment, filled with patches of another

As a `Source` the label of an image is its shape, so that the accuracy of any run is the shape accuracy. `cue_labels`
gives both labels by the ids, which are of the form of the published file names: ``cat/cat7-elephant1``.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from diffsight.data.decoding import DEFAULT_LIMITS, ImageLimits
from diffsight.data.readers import FolderReader, data_roots
from diffsight.data.sources import Source
from diffsight.errors import SourceError, nearest

log = logging.getLogger(__name__)

SETS = ("fashion-mnist", "geirhos", "shapes", "stripes")
# What is painted may change with it.
RENDERING = 1
GEIRHOS_CLASSES = (
    *("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat"),
    *("chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck"),
)
_FOLDERS = ("texture-shape-cue-conflict", "style-transfer-preprocessed-512")
_FORM = re.compile(r"([a-z_]+)([0-9]+)-([a-z_]+)([0-9]+)(\.png)?")
_PUBLISHED, _CONFLICTS = 1280, 1200


@dataclass(frozen=True, slots=True, kw_only=True)
class CueImage:
    """One image with two labels.

    Attributes:
        id: Stable name of the image in its set.
        shape: Class that its shape says.
        texture: Class that its texture (or colour) says; another one.
        load: Gives the image in RGB; raises ImageError.
    """

    id: str
    shape: int
    texture: int
    load: Callable[[], Image.Image] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CueConflicts:
    """A set of cue conflicts.

    Attributes:
        name: What it is called in reports.
        class_names: Of both labels.
        ids: Stable names of the images.
        shapes: Class that the shape of each says.
        textures: Class that the texture of each says; never the same.
        read: Gives the image of an id in RGB; raises ImageError.
        digest: As of a `Source`.

    Raises:
        SourceError: If an image has the same class twice.
    """

    name: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...] = field(repr=False)
    shapes: tuple[int, ...] = field(repr=False)
    textures: tuple[int, ...] = field(repr=False)
    read: Callable[[str], Image.Image] = field(repr=False, compare=False)
    digest: Callable[[str], bytes] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for id, shape, texture in zip(self.ids, self.shapes, self.textures, strict=True):
            if shape == texture:
                both = self.class_names[shape]
                raise SourceError(f"{self.name}: {id} is no conflict, its shape and texture are both {both!r}.")

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[CueImage]:
        for id, shape, texture in zip(self.ids, self.shapes, self.textures, strict=True):
            yield CueImage(id=id, shape=shape, texture=texture, load=partial(self.read, id))

    def source(self) -> Source:
        """The same as images with one label: the shape's."""
        return Source(
            name=self.name,
            ids=self.ids,
            read=self.read,
            labels=self.shapes,
            class_names=self.class_names,
            digest=self.digest,
        )


def cue_labels(ids: Sequence[str], class_names: Sequence[str]) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
    """The two labels of each image of a cue-conflict set, also after a change such as ``@fog:3``.

    With the predictions of a run they give its shape decisions (``predictions == shapes``) and texture decisions
    (``predictions == textures``).

    Args:
        ids: As a run keeps them.
        class_names: The classes, in the order of the labels.

    Returns:
        Class of each shape, and of each texture.

    Raises:
        SourceError: If an id is not of such a set, or names another class.
    """
    places = {slug(name): index for index, name in enumerate(class_names)}
    if len(places) != len(class_names):
        raise SourceError(f"Two of the classes {', '.join(map(repr, class_names))} have the same name in ids.")
    pairs = np.array([_pair(id, places) for id in ids], dtype=np.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def slug(name: str) -> str:
    """A class name as it stands in ids: ``t_shirt_top``."""
    return re.sub(r"[^a-z]+", "_", name.lower()).strip("_")


def open_cue_conflicts(
    name: str, *, root: str | Path | None = None, split: str = "test", limits: ImageLimits = DEFAULT_LIMITS
) -> CueConflicts:
    """Open a set.

    Args:
        name: One of `SETS`.
        root: Where the data lie, as for `open_source`; without effect for scenes, which are painted.
        split: ``test``; of Fashion-MNIST also ``train``.
        limits: What images to refuse for their size.

    Raises:
        SourceError: If the set or the split is unknown, or its data are absent or in another form.
    """
    from diffsight.data import conflicts  # It needs this module's names.

    if name not in SETS:
        raise SourceError(f"Unknown cue-conflict set {name!r}. {nearest(name, SETS)}")
    splits = ("test", "train") if name == "fashion-mnist" else ("test",)
    if split not in splits:
        raise SourceError(f"cue-conflict:{name} has no split {split!r}. {nearest(split, splits)}")
    match name:
        case "geirhos":
            return _read_published(root, limits)
        case "fashion-mnist":
            return conflicts.garments(root=root, split=split, limits=limits)
        case _:
            return conflicts.scenes(name)


def _read_published(root: str | Path | None, limits: ImageLimits) -> CueConflicts:
    places = [place / folder for place in data_roots(root) for folder in _FOLDERS]
    if root is not None:
        places.append(Path(root).expanduser())
    found = [place for place in places if (place / GEIRHOS_CLASSES[0]).is_dir()]
    if not found:
        raise SourceError(
            f"cue-conflict:geirhos is not here; looked for class folders (airplane/, …) in "
            f"{' and '.join(map(str, places))}. Say where it is (root or $DIFFSIGHT_DATA), or get the folder "
            f"stimuli/{_FOLDERS[1]} of github.com/rgeirhos/texture-vs-shape."
        )
    folder = found[0].resolve()
    if missing := [name for name in GEIRHOS_CLASSES if not (folder / name).is_dir()]:
        raise SourceError(f"{folder} has no folder {missing[0]!r}; the set has {len(GEIRHOS_CLASSES)} classes.")
    files = [path for name in GEIRHOS_CLASSES for path in sorted((folder / name).glob("*.png"))]
    ids = [path.relative_to(folder).as_posix() for path in files]
    shapes, textures = cue_labels(ids, GEIRHOS_CLASSES)
    for id, shape in zip(ids, shapes.tolist(), strict=True):
        if not id.startswith(f"{GEIRHOS_CLASSES[shape]}/"):
            raise SourceError(f"{folder / id} lies in the folder of another shape.")
    kept = np.flatnonzero(shapes != textures).tolist()
    if (len(ids), len(kept)) != (_PUBLISHED, _CONFLICTS):
        said = "cue-conflict:geirhos: %d images, %d of them conflicts; the published set has %d and %d"
        log.warning(said, len(ids), len(kept), _PUBLISHED, _CONFLICTS)
    reader = FolderReader(folder, limits)
    return CueConflicts(
        name="cue-conflict:geirhos",
        class_names=GEIRHOS_CLASSES,
        ids=tuple(ids[index] for index in kept),
        shapes=tuple(shapes[kept].tolist()),
        textures=tuple(textures[kept].tolist()),
        read=reader,
        digest=reader.digest,
    )


def numbers(id: str) -> tuple[int, int]:
    """The numbers of shape and texture in an id.

    Raises:
        SourceError: If the id is not of a cue-conflict set.
    """
    parts = _parts(id)
    return int(parts[2]), int(parts[4])


def _parts(id: str) -> re.Match[str]:
    parts = _FORM.fullmatch(id.partition("@")[0].rpartition("/")[2])
    if parts is None:
        raise SourceError(f"{id!r} is not of the form cat/cat7-elephant1 of cue-conflict images.")
    return parts


def _pair(id: str, places: dict[str, int]) -> tuple[int, int]:
    parts = _parts(id)
    for name in (parts[1], parts[3]):
        if name not in places:
            raise SourceError(f"{id!r} names the class {name!r}. {nearest(name, places)}")
    return places[parts[1]], places[parts[3]]
