"""Training an ordinary network on images, in a directory that the same command continues after any interruption."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffsight.errors import InputError, ModelError
from diffsight.store.disk import make, put, to_json, writing
from diffsight.synthesis.batches import readers
from diffsight.synthesis.fitting import fit
from diffsight.synthesis.learner import Learner
from diffsight.synthesis.material import Material, gather
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.placement import place
from diffsight.synthesis.trained import CARD, TrainedClassifier
from diffsight.synthesis.training_set import TrainingSet

_PILOT = 3
SUMMARY, FORMAT = "training.json", "diffsight-training"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands.

    Attributes:
        what: What is counted.
        done: How many are done.
        total: Of how many.
        note: The epoch and its results so far.
    """

    what: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a training takes, from a few steps of it.

    Attributes:
        images: That are learnt from.
        held_out: That decide.
        failed: That cannot be read.
        network: Its settings, and how its first layers are.
        parameters: How many numbers are learnt.
        steps: Of all epochs and seeds; early stopping can make them fewer.
        seconds: For all steps.
        megabytes: On the disk while it trains, for one seed.
    """

    images: int
    held_out: int
    failed: int
    network: dict[str, Any]
    parameters: int
    steps: int
    seconds: float
    megabytes: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trained:
    """What came out of `train`.

    Attributes:
        classifiers: One for each seed, in order.
        summary: All that is reported, as JSON values; also in ``training.json``.
        folder: Where it all is.
        leads: Whether this process is the one that wrote it.
    """

    classifiers: tuple[TrainedClassifier, ...]
    summary: dict[str, Any]
    folder: Path
    leads: bool = True


def train(
    training: TrainingSet | Sequence[TrainingSet],
    out: Path | str,
    *,
    settings: TrainSettings | None = None,
    validation: TrainingSet | None = None,
    protocol: str = "zero-shot",
    seeds: int = 1,
    seed: int = 0,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a network once or several times, continuing what is there.

    Args:
        training: Images and targets, from `open_training_set`; several sets of the same classes are joined.
        out: The directory. Each seed has a folder in it with the network, and with the training's run, which is
            committed between epochs.
        settings: How; by default the best that we can show.
        validation: Images that decide instead of held-out ones: which epoch is kept, and when to stop.
        protocol: What is learnt from: ``"zero-shot"`` (generated images alone), ``"distilled"``, ``"oracle"`` or
            ``"supervised"``.
        seeds: How often, with seeds that follow one another.
        seed: The first of them: of weights, order, augmentation, and which images are held out.
        device: Where; by default CUDA where there is one. Several GPUs: ``accelerate launch -m diffsight train …``.
        workers: Threads that prepare images; changes no result.
        progress: Called after each image that is read and after each step.

    Raises:
        InputError: If the protocol does not allow the images, they are too few, or a setting does not fit them.
        ModelError: If a package is missing, or pre-trained weights cannot be had.
        NumericsError: If a training diverged.
        RunError: If the directory belongs to other data or settings, is damaged, in use, or the disk refuses.
    """
    settings, out = settings or TrainSettings(), Path(out)
    if seeds < 1 or seed < 0:
        raise InputError(f"At least one seed is needed, from 0; got {seeds}, from {seed}.")
    where = place(device, settings.amp)
    tell = progress if progress is not None and where.leads else lambda _: None
    material = gather(
        training,
        settings=settings,
        validation=validation,
        protocol=protocol,
        progress=lambda what, done, total: tell(Progress(what, done, total)),
    )
    numbers = range(seed, seed + seeds)
    with readers([each for each in (material.pictures, material.validation_pictures) if each], workers) as threads:
        classifiers = [
            fit(
                material,
                out / f"seed-{number}",
                seed=number,
                placement=where,
                readers=threads,
                progress=lambda done, total, note, number=number: tell(
                    Progress(f"steps of seed {number}", done, total, note)
                ),
            )
            for number in numbers
        ]
    summary = _summary(material, classifiers, numbers)
    if where.leads:
        with writing(out):
            make(out)
            put(out / SUMMARY, to_json(summary, "A training", indent=2).encode())
    return Trained(classifiers=tuple(classifiers), summary=summary, folder=out, leads=where.leads)


def estimate(
    training: TrainingSet | Sequence[TrainingSet],
    *,
    settings: TrainSettings | None = None,
    validation: TrainingSet | None = None,
    protocol: str = "zero-shot",
    seeds: int = 1,
    device: str | torch.device | None = None,
    workers: int | None = None,
) -> Cost:
    """Read all images, try a few steps, and say what `train` would take; nothing is written. Raises as `train`."""
    settings = settings or TrainSettings()
    where = place(device, settings.amp)
    material = gather(training, settings=settings, validation=validation, protocol=protocol)
    part, held = material.parts(0)
    few = np.arange(min(len(part), _PILOT * settings.batch_size))
    pilot = replace(part, rows=part.rows[few], targets=part.targets[few])
    learner = Learner(material.plan, settings, material.preprocessing, where, 0)
    with readers([material.pictures], workers) as threads:
        learner.epoch(pilot, 0, threads)  # the first steps are slow
        began = time.perf_counter()
        learner.epoch(pilot, 0, threads)
        each = (time.perf_counter() - began) / settings.steps(len(pilot), where.processes)
    steps = seeds * settings.epochs * settings.steps(len(part), where.processes)
    kept = sum(array.nbytes for array in learner.state().values())
    kept += sum(array.nbytes for key, array in learner.state().items() if key.startswith("network."))
    return Cost(
        images=len(part),
        held_out=len(held) if held is not None else 0,
        failed=len(material.failures),
        network=material.plan.to_dict(),
        parameters=sum(parameter.numel() for parameter in learner.network.parameters()),
        steps=steps,
        seconds=steps * each,
        megabytes=kept / 1e6,
    )


def load_trained(folder: Path | str, *, device: str | torch.device | None = None) -> tuple[TrainedClassifier, ...]:
    """The networks of all seeds from a directory of `train`, or the one from a folder of a seed.

    Raises:
        ModelError: If there is none, or one is damaged.
    """
    folder = Path(folder)
    if (folder / CARD).exists() or not (folder / SUMMARY).exists():
        return (TrainedClassifier.load(folder, device=device),)
    try:
        names = [f"seed-{int(entry['seed'])}" for entry in json.loads((folder / SUMMARY).read_bytes())["seeds"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(f"{folder / SUMMARY} is damaged ({error!r}). Give the folder of one seed.") from error
    return tuple(TrainedClassifier.load(folder / name, device=device) for name in names)


def _summary(material: Material, classifiers: Sequence[TrainedClassifier], seeds: range) -> dict[str, Any]:
    metrics = [classifier.notes["metrics"] for classifier in classifiers]
    found = [each["validation"]["accuracy"] for each in metrics if each["validation"] is not None]
    return {
        "format": FORMAT,
        "protocol": material.protocol,
        "label": classifiers[0].label,
        "network": material.plan.to_dict(),
        "classes": list(material.training.class_names),
        "failed": [{"id": failure.id, "reason": failure.reason} for failure in material.failures],
        "seeds": [{"seed": seed, **each} for seed, each in zip(seeds, metrics, strict=True)],
        "validation": None
        if not found
        else {
            "of": material.decides,
            "mean": float(np.mean(found)),
            "sd": float(np.std(found, ddof=1)) if len(found) > 1 else None,
        },
    }
