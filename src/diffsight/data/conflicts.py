"""Cue conflicts that are made here, from the worlds of the embedded models; see `cue_conflict`."""

from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from PIL import Image

from diffsight.data.addressed import Draws
from diffsight.data.cue_conflict import RENDERING, CueConflicts, cue_labels, numbers, slug
from diffsight.data.decoding import ImageLimits
from diffsight.data.scenes import COLOURS, HELD_OUT, Scene, draw, random_scene
from diffsight.data.sources import Source

# Each class is a shape with a colour, or with a texture. None of these is a combination that tiny-shapes never saw.
SHAPES = {"shapes": ("circle", "square", "triangle", "cross"), "stripes": ("circle", "square")}
CUES = {"shapes": ("red", "green", "blue", "cyan"), "stripes": ("solid", "striped")}
IMAGES = 1000
PER_PAIR = 10  # garments
_DARK = 16  # of 255; Fashion-MNIST has a black background
_PATCH, _OVERLAP, _CANDIDATES = 7, 2, 24


def scenes(name: str) -> CueConflicts:
    """A thousand scenes of one thing, as ``tiny-shapes`` knows them.

    The classes are "red circle", "green square", "blue triangle" and "cyan cross" (``shapes``), or "solid circle" and
    "striped square" (``stripes``). An image shows the shape of one and the colour or texture of another. The other
    attributes are random; no shape has a colour that the model never saw it in, which leaves 10 of the 12 exchanges.

    Args:
        name: A key of `SHAPES`.
    """
    shapes, cues = SHAPES[name], CUES[name]
    class_names = tuple(f"{cue} {shape}" for shape, cue in zip(shapes, cues, strict=True))
    slugs = [slug(each) for each in class_names]
    pairs = [(a, b) for a, b in permutations(range(len(shapes)), 2) if (shapes[a], cues[b]) not in HELD_OUT]
    chosen = [(a, b, number) for number in range(IMAGES // len(pairs)) for a, b in pairs]
    return CueConflicts(
        name=f"cue-conflict:{name} (rendering {RENDERING})",
        class_names=class_names,
        ids=tuple(f"{slugs[a]}/{slugs[a]}{number}-{slugs[b]}{number}" for a, b, number in chosen),
        shapes=tuple(a for a, _, _ in chosen),
        textures=tuple(b for _, b, _ in chosen),
        read=_SceneReader(name, class_names),
    )


def conflicting_scene(name: str, shape: int, cue: int, number: int) -> Scene:
    """The number-th scene with the shape of one class and the colour or texture of another.

    Args:
        name: A key of `SHAPES`.
        shape: Class that the shape says.
        cue: Class that colour or texture says.
        number: Of the scene, from 0.
    """
    scene = random_scene(np.random.default_rng([number, shape, cue, sorted(SHAPES).index(name)]), count=1)
    thing = replace(scene.things[0], shape=SHAPES[name][shape])
    if name == "shapes":
        thing = replace(thing, colour=CUES[name][cue])
    else:
        seen = [colour for colour in COLOURS if (thing.shape, colour) not in HELD_OUT]
        colour = thing.colour if thing.colour in seen else seen[number % len(seen)]
        thing = replace(thing, texture=CUES[name][cue], colour=colour)
    return replace(scene, things=(thing,))


@dataclass(frozen=True, slots=True)
class _SceneReader:
    name: str
    class_names: tuple[str, ...]

    def __call__(self, id: str) -> Image.Image:
        (shape,), (cue,) = cue_labels([id], self.class_names)
        return draw(conflicting_scene(self.name, int(shape), int(cue), numbers(id)[0]))


def garments(*, root: str | Path | None, split: str, limits: ImageLimits) -> CueConflicts:
    """Silhouettes of one class of Fashion-MNIST filled with patches of another: ten images of each of the 90 pairs.

    No garment gives its shape twice, or its texture. In ids stand the numbers of both images in their split. The
    silhouettes of coat, pullover and shirt can hardly be told apart: the shape accuracy of a perfect reader of shapes
    is under 100 %.

    Args:
        root: Where Fashion-MNIST lies.
        split: ``test`` or ``train``.
        limits: What images to refuse for their size.

    Raises:
        SourceError: If the data are not there.
    """
    from diffsight.data.sources import open_source

    source = open_source("torchvision:fashion-mnist", root=root, split=split, limits=limits)
    names, labels = source.class_names or (), np.array(source.labels)
    slugs = [slug(each) for each in names]
    members = [np.flatnonzero(labels == label).tolist() for label in range(len(names))]
    chosen = [
        # Each class has nine others: the numbers of its images go round them.
        (a, b, members[a][turn + b - (b > a)], members[b][turn + a - (a > b)])
        for turn in range(0, PER_PAIR * (len(names) - 1), len(names) - 1)
        for a, b in permutations(range(len(names)), 2)
    ]
    return CueConflicts(
        name=f"cue-conflict:fashion-mnist/{split} (rendering {RENDERING})",
        class_names=names,
        ids=tuple(f"{split}/{slugs[a]}/{slugs[a]}{i}-{slugs[b]}{j}" for a, b, i, j in chosen),
        shapes=tuple(a for a, _, _, _ in chosen),
        textures=tuple(b for _, b, _, _ in chosen),
        read=_GarmentReader(source),
    )


@dataclass(frozen=True, slots=True)
class _GarmentReader:
    source: Source

    def __call__(self, id: str) -> Image.Image:
        shape, texture = (self._grey(number) for number in numbers(id))
        draws = Draws(seed=0, image_id=id, purpose="cue conflict")
        return Image.fromarray(refill(shape, texture, draws)).convert("RGB")

    def _grey(self, number: int) -> UInt8[np.ndarray, "h w"]:
        return np.asarray(self.source[number].load().convert("L"))


def silhouette(image: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a garment before black is: its largest connected part, without holes."""
    from scipy.ndimage import binary_fill_holes, label

    parts = np.zeros(image.shape, dtype=np.int32)
    if not label(image > _DARK, np.ones((3, 3)), output=parts):
        return parts > 0
    largest = 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    return np.asarray(binary_fill_holes(parts == largest))


def refill(
    shape: UInt8[np.ndarray, "h w"], texture: UInt8[np.ndarray, "h w"], draws: Draws
) -> UInt8[np.ndarray, "h w"]:
    """Fill the silhouette of one garment with patches from inside another.

    Patches are 7×7 pixels, or as large as fit into the other garment where it is not black. They are laid from left to
    right and from the top, each the one of 24 random ones that agrees best with what it overlaps, and blended there.

    Args:
        shape: The garment that gives its silhouette, before black.
        texture: The garment that gives its patches, before black.
        draws: Random numbers.
    """
    patches = _patches(texture)
    size = patches.shape[1]
    overlap = min(_OVERLAP, size - 1)
    step = size - overlap
    rows, columns = (-(-side // step) for side in shape.shape)
    canvas = np.zeros((rows * step + overlap, columns * step + overlap))
    known = np.zeros(canvas.shape, dtype=bool)
    picks = draws.below(len(patches), "patches", rows * columns * _CANDIDATES).reshape(rows, columns, _CANDIDATES)
    for row in range(rows):
        for column in range(columns):
            window = np.s_[row * step : row * step + size, column * step : column * step + size]
            old, seen = canvas[window], known[window]
            candidates = patches[picks[row, column]]
            best = candidates[int(np.argmin((((candidates - old) * seen) ** 2).sum(axis=(1, 2))))]
            canvas[window] = np.where(seen, (old + best) / 2, best)
            known[window] = True
    filled = canvas[: shape.shape[0], : shape.shape[1]]
    return np.rint(np.where(silhouette(shape), filled, 0)).astype(np.uint8)


def _patches(image: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "n k k"]:
    """All patches inside a garment, of the largest size of which some fit."""
    inside: NDArray[np.bool_] = silhouette(image) & (image > _DARK)
    windows = np.lib.stride_tricks.sliding_window_view
    for size in range(min(_PATCH, *image.shape), 0, -1):
        fits = windows(inside, (size, size)).all(axis=(2, 3))
        if fits.sum() >= size:
            return windows(image, (size, size))[fits].astype(np.float64)
    return np.zeros((1, 1, 1))
