"""What a training works on: images that were read, targets, what is held out, and what the network takes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffsight.data.splits import hold_out
from diffsight.errors import InputError
from diffsight.synthesis.batches import Failure, Pictures, read_pictures
from diffsight.synthesis.learner import Part
from diffsight.synthesis.networks import NetworkPlan, build_network, normalisation_of, plan_network
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.preprocessing import IMAGENET, Preprocessing
from diffsight.synthesis.protocol import check_protocol
from diffsight.synthesis.training_set import TrainingSet, join, match_classes

LARGEST = 224


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Material:
    """Data and settings that fit together.

    Attributes:
        protocol: What the network learns from; a name in `protocol.PROTOCOLS`.
        settings: As they were asked for.
        plan: The network.
        preprocessing: What it takes.
        training: To learn from, and to hold out from.
        pictures: Its images.
        validation: Images of their own that decide, if there are.
        validation_pictures: Those images.
        failures: The images that cannot be read.
        facts: All of the data that numbers depend on, as JSON values.
    """

    protocol: str
    settings: TrainSettings
    plan: NetworkPlan
    preprocessing: Preprocessing
    training: TrainingSet
    pictures: Pictures
    validation: TrainingSet | None
    validation_pictures: Pictures | None
    failures: tuple[Failure, ...]
    facts: dict[str, Any]

    @property
    def decides(self) -> str:
        """Which images decide, in words."""
        if self.validation is not None:
            return f"{'generated' if self.validation.synthetic else 'real'} images of {self.validation.source.name}"
        return f"{'generated' if self.training.synthetic else 'real'} images that were held out"

    def parts(self, seed: int) -> tuple[Part, Part | None]:
        """What to learn from, and what decides, if anything does. A share is held out by the seed.

        Raises:
            InputError: If no class has an image to spare.
        """
        everything = _part(self.training, self.pictures)
        if self.validation is not None and self.validation_pictures is not None:
            order = match_classes(self.training.class_names, self.validation.class_names, of="The validation set")
            held = _part(self.validation, self.validation_pictures)
            return everything, Part(pictures=held.pictures, rows=held.rows, targets=held.targets[:, order].copy())
        if not self.settings.validation_share:
            return everything, None
        labels = everything.targets.argmax(axis=1)
        return tuple(  # pyright: ignore[reportReturnType] - there are two
            Part(pictures=self.pictures, rows=rows, targets=everything.targets[rows])
            for rows in hold_out(labels, share=self.settings.validation_share, seed=seed)
        )


def gather(
    training: TrainingSet | Sequence[TrainingSet],
    *,
    settings: TrainSettings,
    validation: TrainingSet | None = None,
    protocol: str = "zero-shot",
    progress: Callable[[str, int, int], None] | None = None,
) -> Material:
    """Read all images once, and fit network and preprocessing to them.

    Args:
        training: What to learn from: one set, or several of the same classes.
        settings: How.
        validation: What decides instead of held-out images.
        protocol: A name in `PROTOCOLS`.
        progress: Called with (what is read, images read, all images).

    Raises:
        InputError: If the protocol does not allow the images, they are too few, or the network cannot take them.
    """
    sets = [training] if isinstance(training, TrainingSet) else list(training)
    check_protocol(protocol, sets, validation)
    whole = join(sets)
    if validation is None and settings.validates and not settings.validation_share:
        raise InputError(
            "No image is held out (validation_share is 0), so that none can choose an epoch: say select 'last' and "
            "patience None, or hold some out."
        )
    if validation is not None:
        match_classes(whole.class_names, validation.class_names, of=validation.source.name)
    plan_network(settings.network, len(whole.class_names), settings.size or 32)  # before anything is read

    def told(what: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(what, done, total) if progress is not None else None

    pictures = read_pictures(whole.source, progress=told("images read"))
    _check_readable(whole, pictures)
    others = read_pictures(validation.source, progress=told("validation images read")) if validation else None
    if validation is not None and others is not None:
        _check_readable(validation, others)
    plan, preprocessing = _fitted(settings, whole, pictures)
    failures = [*pictures.failures, *(others.failures if others else ())]
    return Material(
        protocol=protocol,
        settings=settings,
        plan=plan,
        preprocessing=preprocessing,
        training=whole,
        pictures=pictures,
        validation=validation,
        validation_pictures=others,
        failures=tuple(failures),
        facts={
            "protocol": protocol,
            "classes": list(whole.class_names),
            "training": [each.fingerprint() for each in sets],
            "validation": None if validation is None else validation.fingerprint(),
        },
    )


def _fitted(settings: TrainSettings, training: TrainingSet, pictures: Pictures) -> tuple[NetworkPlan, Preprocessing]:
    size = settings.size or min(LARGEST, -(-min(pictures[0].size) // 4) * 4)  # ViTs want whole patches
    plan = plan_network(
        settings.network, len(training.class_names), size, stem=settings.stem, pretrained=settings.pretrained
    )
    mean, std = ((0.0,) * 3, (1.0,) * 3) if settings.normalize == "none" else IMAGENET
    if settings.normalize == "own":
        found = normalisation_of(build_network(plan, fetch=False))
        if found is None:
            raise InputError(f"{settings.network!r} has no mean and deviation of its own. Use normalize 'imagenet'.")
        mean, std = found
    return plan, Preprocessing(size=size, scale=max(size, settings.resize_to or size), mean=mean, std=std)  # pyright: ignore[reportArgumentType] - there are three


def _part(whole: TrainingSet, pictures: Pictures) -> Part:
    targets = whole.probabilities()[list(pictures.positions)]
    return Part(pictures=pictures, rows=np.arange(len(pictures)), targets=targets)


def _check_readable(whole: TrainingSet, pictures: Pictures) -> None:
    first = f" (the first: {pictures.failures[0].reason})" if pictures.failures else ""
    if not pictures.positions:
        raise InputError(f"None of the {len(whole.source)} images of {whole.source.name} can be read{first}.")
    if whole.soft:
        return
    empty = sorted(set(whole.labels.tolist()) ^ set(whole.labels[list(pictures.positions)].tolist()))
    absent = sorted(set(range(len(whole.class_names))) - set(whole.labels.tolist()))
    if empty or absent:
        name = whole.class_names[(empty or absent)[0]]
        raise InputError(f"{whole.source.name} has no image of {name!r} that can be read{first if empty else ''}.")
