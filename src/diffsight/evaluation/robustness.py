"""What a model bears: the same images clean and corrupted, a run for each, and what they say together.

Hendrycks & Dietterich (1903.12261): 15 types of corruption in 5 severities. A directory holds an ordinary run for the
clean images (``clean``) and for each corruption (``fog-3``), of one model on the same images; each can be continued, be
re-scored and be shown like any other.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from diffsight.data.corruptions import CORRUPTIONS, SEVERITIES, Corruption, split_change
from diffsight.data.sources import open_source
from diffsight.errors import InputError, RunError, nearest
from diffsight.evaluation.metrics.corruption import Corrupted, CorruptionMetrics, summarize_corruptions
from diffsight.evaluation.metrics.paired import Answers, read_answers
from diffsight.evaluation.runner import Job
from diffsight.evaluation.trained import TrainedJob
from diffsight.store.disk import make, put, to_json, writing

log = logging.getLogger(__name__)

CLEAN, RESULT = "clean", "robustness.json"
SomeJob = TypeVar("SomeJob", Job, TrainedJob)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Which corruptions, each in which severities.

    Attributes:
        types: Names of corruptions; all 15 by default.
        severities: From 1 to 5; all by default.

    Raises:
        InputError: If one is unknown, or named twice.
    """

    types: tuple[str, ...] = CORRUPTIONS
    severities: tuple[int, ...] = SEVERITIES

    def __post_init__(self) -> None:
        for what, given in (("type", self.types), ("severity", self.severities)):
            if not given or len({*given}) < len(given):
                raise InputError(f"Each {what} of corruption is named once, and at least one; got {list(given)}.")
        for name in self.types:
            if name not in CORRUPTIONS:
                raise InputError(f"Unknown type of corruption {name!r}. {nearest(name, CORRUPTIONS)}")
        if unknown := [severity for severity in self.severities if severity not in SEVERITIES]:
            raise InputError(f"Unknown severity of corruption {unknown[0]}. It is a number from 1 to 5.")

    @property
    def corruptions(self) -> tuple[Corruption, ...]:
        """All of them, one type after another."""
        return tuple(Corruption(name, severity) for name in self.types for severity in self.severities)


def changed(job: SomeJob, corruption: Corruption, *, root: Path | None = None) -> SomeJob:
    """The same question about the same images, corrupted.

    Args:
        job: On clean images, from `make_job`, `make_trained_job` or `make_baseline_job`.
        corruption: What is done to them.
        root: Where the data set lies, if not in a standard place.

    Raises:
        InputError: If something is done to the images already.
    """
    task = job.task
    if split_change(task.source)[1] is not None:
        raise InputError(f"Something is done to the images of {task.name} already: give the task as it is.")
    task = replace(task, name=f"{task.name}@{corruption.spec}", source=f"{task.source}@{corruption.spec}")
    source = open_source(task.source, root=root, split=task.split)
    places = {id: place for place, id in enumerate(source.ids)}
    source = source.select([places[f"{id}@{corruption.spec}"] for id in job.source.ids])
    return replace(job, task=task, source=source)


def sweep(
    job: SomeJob,
    out: Path | str,
    evaluate: Callable[[SomeJob, Path], object],
    asked: Sweep,
    *,
    root: Path | None = None,
) -> None:
    """Make all runs of a directory, or what is left of them.

    Args:
        job: On clean images.
        out: The directory.
        evaluate: Takes a job into a run; `runner.evaluate` and `evaluate_trained` do.
        asked: Which corruptions.
        root: Where the data set lies, if not in a standard place.

    Raises:
        RunError: If the directory is a run itself.
    """
    if (Path(out) / "manifest.json").exists():
        raise RunError(f"{out} is a run or a comparison: it cannot hold runs of others. Give another directory.")
    evaluate(job, Path(out) / CLEAN)
    for corruption in asked.corruptions:
        evaluate(changed(job, corruption, root=root), Path(out) / _folder(corruption))


def summarize_sweep(
    out: Path | str, asked: Sweep, *, reference: Path | str | None = None, seed: int = 0
) -> CorruptionMetrics:
    """What the runs of a directory say together; also kept in its ``robustness.json``.

    Args:
        out: From `sweep`.
        asked: Which corruptions.
        reference: Such a directory of another model on the same images: errors are then also given as a share of its
            own (mCE; in the paper it is AlexNet). Where it makes no error at all there is no mCE, and a warning.
        seed: Of the bootstrap.

    Raises:
        RunError: If a run is missing or damaged.
        InputError: If a run is not finished, or the reference was asked something else.
    """
    _, found = read_sweep(out, asked)
    theirs = None
    if reference is not None:
        check_reference(out, reference)
        _, theirs = read_sweep(reference, asked)
    if theirs is not None and (perfect := _without_errors(theirs)):
        log.warning(
            "%s makes no error under %s, of which a share could be taken: no mCE. Take more images, or another "
            "reference.",
            reference,
            " and ".join(perfect),
        )
        theirs = None
    metrics = summarize_corruptions(found, reference=theirs, seed=seed)
    values = {"severities": list(asked.severities), "reference": None if reference is None else str(reference)}
    path = Path(out) / RESULT
    with writing(path):
        make(path.resolve().parent)
        put(path, to_json(metrics.to_dict() | values, "Robustness", indent=2).encode())
    return metrics


def check_reference(out: Path | str, reference: Path | str) -> None:
    """See by the clean runs whether a directory can be the reference of another.

    Raises:
        RunError: If a clean run is missing or damaged.
        InputError: If the two were asked something else, or a run is not finished.
    """
    mine, other = (read_answers(_there(path, CLEAN)) for path in (out, reference))
    if different := [key for key, value in mine.asked.items() if other.asked.get(key) != value]:
        raise InputError(
            f"{reference} cannot be the reference of {out}: they differ in {' and '.join(different)}. "
            "Give the same task, images and --limit."
        )
    if mine.labels.keys() != other.labels.keys():
        raise InputError(f"{reference} cannot be the reference of {out}: not the same images have answers.")


def read_sweep(out: Path | str, asked: Sweep) -> tuple[Answers, Corrupted]:
    """The answers of a directory's clean run, and which images were right in all of its runs.

    Raises:
        RunError: If a run is missing or damaged.
        InputError: If one is not finished or is about other images, or no image has a label and an answer.
    """
    clean = read_answers(_there(out, CLEAN))
    ids = sorted(clean.labels)  # A diffusion model has finished them in another order.
    if not ids:
        raise InputError(f"No image of {clean.name} has a label and an answer: there is nothing to be lost.")
    rows = []
    for corruption in asked.corruptions:
        answers = read_answers(_there(out, _folder(corruption)))
        # The id of a changed image says how it was changed.
        correct = {id.removesuffix(f"@{corruption.spec}"): right for id, right in answers.correct.items()}
        if surplus := correct.keys() - {*ids, *clean.failed}:
            raise InputError(f"{answers.name} has images that the clean run has not, such as {min(surplus)!r}.")
        # No answer to a corrupted image is a wrong one.
        rows.append([correct.get(id, False) for id in ids])
    shape = (len(asked.types), len(asked.severities), len(ids))
    right = np.array([clean.correct[id] for id in ids], dtype=bool)
    return clean, Corrupted(types=asked.types, correct=np.array(rows, dtype=bool).reshape(shape), clean=right)


def parse_sweep(types: Sequence[str] | None, severities: str | None) -> Sweep:
    """Read the corruptions of a command line.

    Args:
        types: Names; None for all.
        severities: Numbers with commas between them; None for all.

    Raises:
        InputError: If one is unknown.
    """
    chosen = SEVERITIES
    if severities is not None:
        parts = [part.strip() for part in severities.split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) == 1 for part in parts):
            raise InputError(f"Severities are numbers from 1 to 5 with commas between them; got {severities!r}.")
        chosen = tuple(map(int, parts))
    return Sweep(types=tuple(types) if types else CORRUPTIONS, severities=chosen)


def _without_errors(found: Corrupted) -> list[str]:
    """Types of corruption under which all answers are right."""
    return [name for name, right in zip(found.types, found.correct, strict=True) if right.all()]


def _folder(corruption: Corruption) -> str:
    return f"{corruption.name}-{corruption.severity}"


def _there(out: Path | str, name: str) -> Path:
    path = Path(out) / name
    if not path.is_dir():
        raise RunError(f"{out} has no run {name!r}. Give the command again that made the directory.")
    return path
