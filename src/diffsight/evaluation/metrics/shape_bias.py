"""Shape or texture: what decides on images whose two cues contradict each other (Geirhos et al. 2019, 1811.12231).

Two numbers that papers call alike are kept apart. The **shape bias** is the share of shape decisions among the images
that were given their shape's or their texture's class (1811.12231, §2): a model that is nearly always wrong can have a
bias of 100 %. The **shape accuracy** is the share of shape decisions among all images: what Clark & Jaini report
(2303.15233, table 2).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Int

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Estimate, wilson


@dataclass(frozen=True, slots=True, kw_only=True)
class CueConflict:
    """Decisions on cue-conflict images; the intervals are Wilson's.

    Attributes:
        images: With two different cues.
        same_cue: That were left out, as both cues are of one class: any right answer would be both.
        shape: How many were given the class of their shape.
        texture: How many were given the class of their texture.
        other: How many got a third class, no answer, or a tie.
        level: Confidence level of the intervals.
        by_class: The same for the images of each shape, by the class's name; empty in these.
    """

    images: int
    same_cue: int
    shape: int
    texture: int
    other: int
    level: float
    by_class: dict[str, "CueConflict"]

    @property
    def shape_bias(self) -> Estimate | None:
        """Share of shape decisions among those for shape or texture; None without such a decision."""
        decided = self.shape + self.texture
        return wilson(self.shape, decided, level=self.level) if decided else None

    @property
    def shape_accuracy(self) -> Estimate | None:
        """Share of shape decisions among all images; None without an image."""
        return wilson(self.shape, self.images, level=self.level) if self.images else None

    @property
    def texture_accuracy(self) -> Estimate | None:
        """Share of texture decisions among all images; None without an image."""
        return wilson(self.texture, self.images, level=self.level) if self.images else None

    @property
    def mean_class_bias(self) -> float | None:
        """Mean of the biases of the classes in which there is one: each class counts alike."""
        biases = [part.shape_bias.value for part in self.by_class.values() if part.shape_bias is not None]
        return float(np.mean(biases)) if biases else None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        counts = ("images", "same_cue", "shape", "texture", "other")
        values: dict[str, Any] = {name: getattr(self, name) for name in counts}
        for name in ("shape_bias", "shape_accuracy", "texture_accuracy"):
            estimate = getattr(self, name)
            values[name] = None if estimate is None else asdict(estimate)
        if self.by_class:
            values["mean_class_bias"] = self.mean_class_bias
            values["by_class"] = {name: part.to_dict() for name, part in self.by_class.items()}
        return values


def cue_conflict(
    *,
    predictions: Sequence[int | None],
    shapes: Sequence[int],
    textures: Sequence[int],
    class_names: Sequence[str],
    ties: Sequence[bool] | None = None,
    level: float = 0.95,
) -> CueConflict:
    """Count what decided.

    Args:
        predictions: Class of each image; None where there is no answer.
        shapes: Class of each image's shape.
        textures: Class of each image's texture.
        class_names: The classes.
        ties: Which images have no single best class; these count as neither.
        level: Confidence level of the intervals.

    Raises:
        InputError: If the lengths differ, or a class is none of ``class_names``.
    """
    lengths = {"predictions": len(predictions), "shapes": len(shapes), "textures": len(textures)}
    if ties is not None:
        lengths["ties"] = len(ties)
    if len(set(lengths.values())) > 1:
        raise InputError(f"There must be one of each for every image; got {lengths}.")
    shape = _classes(shapes, class_names, "shape")
    texture = _classes(textures, class_names, "texture")
    answer = np.array([-1 if one is None else one for one in predictions], dtype=np.int64)
    if len(answer) and (answer.min() < -1 or answer.max() >= len(class_names)):
        raise InputError(f"Predictions must be classes from 0 to {len(class_names) - 1}, or None; got {predictions!r}.")
    if ties is not None:
        answer[np.array(ties, dtype=bool)] = -1
    parts = {
        name: _count(answer[here], shape[here], texture[here], level)
        for name, here in ((name, shape == index) for index, name in enumerate(class_names))
        if here.any()
    }
    return _count(answer, shape, texture, level, parts)


def _count(
    answer: np.ndarray,
    shape: np.ndarray,
    texture: np.ndarray,
    level: float,
    by_class: dict[str, CueConflict] | None = None,
) -> CueConflict:
    conflict = shape != texture
    by_shape, by_texture = int((conflict & (answer == shape)).sum()), int((conflict & (answer == texture)).sum())
    images = int(conflict.sum())
    return CueConflict(
        images=images,
        same_cue=len(shape) - images,
        shape=by_shape,
        texture=by_texture,
        other=images - by_shape - by_texture,
        level=level,
        by_class=by_class or {},
    )


def _classes(values: Sequence[int], class_names: Sequence[str], what: str) -> Int[np.ndarray, " n"]:
    classes = np.array(values, dtype=np.int64)
    bad = np.flatnonzero((classes < 0) | (classes >= len(class_names)))
    if len(bad):
        raise InputError(
            f"The {what} of image {bad[0]} is {classes[bad[0]]}, but there are {len(class_names)} classes, counted "
            "from 0."
        )
    return classes
