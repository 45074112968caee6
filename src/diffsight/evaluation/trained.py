"""Networks on a task: the same metrics as for a diffusion model, and their cost as images per second."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffsight.data.corruptions import Change, split_change
from diffsight.data.sources import Sample, Source
from diffsight.errors import ImageError, InputError
from diffsight.evaluation.cues import cues_of_run
from diffsight.evaluation.metrics.cost import speed
from diffsight.evaluation.metrics.summary import summary
from diffsight.evaluation.recognisers import Recogniser, device_of
from diffsight.evaluation.task import Task, first_images
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run
from diffsight.synthesis.trained import TrainedClassifier
from diffsight.synthesis.training_set import match_classes

GROUP = 256
COMMIT_EVERY = 2048


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainedJob:
    """A task with its data, and a network.

    Attributes:
        task: What is asked.
        source: The images, already limited.
        model: The network.
        classes: The task's.
        order: Where each of them is among the network's.
        kind: What sort of network it is.
        name: What it is called, if it has a name.
        learnt: Whether the network was trained on these very images, so that this measures memory.
    """

    task: Task
    source: Source
    model: Recogniser
    classes: tuple[str, ...]
    order: tuple[int, ...]
    kind: str = "trained network"
    name: str | None = None
    learnt: bool = False

    def manifest(self) -> Manifest:
        """The run's fingerprint, and what else is worth recording."""
        fields = {
            "kind": self.kind,
            "task": {"name": self.task.name, "version": self.task.version, "metric": self.task.metric},
            "data": {"source": self.source.name, "images": len(self.source), "ids": self.source.fingerprint()},
            "classes": list(self.classes),
            "model": self.model.identity(),
        }
        facts = {"device": device_of(self.model), "label": self.model.label} | (
            {"model": self.name} if self.name else {}
        )
        return Manifest(fields, session(("torchvision",), **facts))


def make_trained_job(
    task: Task, model: Recogniser, *, limit: int | None = None, root: Path | None = None
) -> TrainedJob:
    """Open a task's data, and match its classes with the network's.

    Args:
        task: From `load_task` or `folder_task`.
        model: From `recognisers.load_recognisers`.
        limit: Only the first images.
        root: Where the data set lies, if not in a standard place.

    Raises:
        SourceError: If the data is not there.
        InputError: If the limit is not positive, or task and network do not have the same classes.
        PromptError: If the task has no class names.
    """
    whole = task.open(root=root)
    source = first_images(whole, limit)
    classes = task.names(source.class_names)
    order = match_classes(classes, model.class_names, of="The network")
    learnt = _learnt(model, whole, split_change(task.source)[1])
    return TrainedJob(task=task, source=source, model=model, classes=classes, order=tuple(order), learnt=learnt)


def evaluate_trained(
    job: TrainedJob,
    out: Path | str,
    *,
    commit_every: int = COMMIT_EVERY,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Run a job into a directory, continuing what is there.

    Args:
        job: From `make_trained_job`.
        out: The run's directory.
        commit_every: Images between two commits: what a killed process can lose.
        progress: Called with images that are done and all images.

    Returns:
        The metrics of `summary`, which are also in ``metrics.json``. An image costs no denoiser call; ``speed`` has, as
        well as the time with reading and resizing, ``images_per_second`` of the network alone, in batches of ``batch``.

    Raises:
        RunError: If the directory belongs to another job, is damaged, in use, or the disk refuses.
        NumericsError: If the network gives a logit that is not finite.
    """
    with Run.open(out, job.manifest()) as run:
        done = run.progress.get("finished", 0)
        spent = run.progress.get("seconds", {"network": 0.0, "all": 0.0})
        _warm(job)
        rows: list[dict[str, Any]] = []
        failures: list[dict[str, Any]] = []
        while done < len(job.source):
            stop = min(done + GROUP, len(job.source))
            began = time.perf_counter()
            found, failed, network = _recognise(job, range(done, stop))
            spent = {"network": spent["network"] + network, "all": spent["all"] + time.perf_counter() - began}
            rows, failures, done = rows + found, failures + failed, stop
            if progress is not None:
                progress(done, len(job.source))
            if done == len(job.source) or len(rows) + len(failures) >= commit_every:
                state = {"finished": done, "seconds": spent}
                run.commit({"predictions": _table(rows)}, failures=failures, progress=state)
                rows, failures = [], []
        metrics = _metrics(run, job)
        run.finish(metrics)
        return metrics


def adapted(job: TrainedJob) -> TrainedJob:
    """The same with BatchNorm adapted to the task's images, without their labels; those that fail are left out.

    Raises:
        InputError: If the network is an ONNX file, or has no BatchNorm.
    """
    if not isinstance(job.model, TrainedClassifier):
        raise InputError("BatchNorm can only be adapted in a folder of 'diffsight train', not in an ONNX file.")
    readable = [sample for sample in job.source if _is_readable(sample)]
    return replace(job, model=job.model.adapt_batch_norm(readable))


def _is_readable(sample: Sample) -> bool:
    try:
        sample.load()
    except ImageError:
        return False
    return True


def pace(job: TrainedJob, *, images: int = 64) -> float:
    """Images per second with reading and resizing, from the first ones; nothing is written."""
    _warm(job)
    began = time.perf_counter()
    positions = range(min(images, len(job.source)))
    _recognise(job, positions)
    return len(positions) / max(time.perf_counter() - began, 1e-9)


def over_seeds(metrics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of the first of several networks, with mean and deviation of what the task reports over all."""
    values = [each["value"] for each in metrics]
    known = all(value is not None for value in values)
    return {
        **metrics[0],
        "seeds": [{key: each[key] for key in ("value", "top1", "mean_per_class", "failed")} for each in metrics],
        "mean": float(np.mean(values)) if known else None,
        "sd": float(np.std(values, ddof=1)) if known and len(values) > 1 else None,
    }


def _warm(job: TrainedJob) -> None:
    """Let the network compute once, so that its first images do not count as slow."""
    side = job.model.preprocessing.size
    job.model.run(torch.zeros(2, 3, side, side, dtype=torch.uint8))


def _recognise(job: TrainedJob, positions: range) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """Answers and failures of some images, and how long the network took."""
    good, images, failed = [], [], []
    for position in positions:
        sample = job.source[position]
        try:
            images.append(job.model.preprocessing(sample.load()))
        except ImageError as error:
            failed.append({"id": sample.id, "reason": str(error), "calls": 0})
        else:
            good.append(sample)
    if not good:
        return [], failed, 0.0
    began = time.perf_counter()
    logits = job.model.run(torch.stack(images))
    seconds = time.perf_counter() - began
    logits = logits.double()[:, list(job.order)]
    probabilities = logits.softmax(dim=1)
    rows = [
        {
            "id": sample.id,
            "label": sample.label,
            "prediction": int(row.argmax()),
            "tie": int((row == row.max()).sum()) > 1,
            "logits": row.tolist(),
            "probabilities": chances.tolist(),
        }
        for sample, row, chances in zip(good, logits, probabilities, strict=True)
    ]
    return rows, failed, seconds


def _learnt(model: Recogniser, whole: Source, change: Change | None) -> bool:
    """Whether a network was trained on the images of which a task asks some, maybe changed."""
    data = model.notes.get("data", {}) if isinstance(model, TrainedClassifier) else {}
    used = [*data.get("training", ()), *([data["validation"]] if data.get("validation") else [])]
    end = "" if change is None else f"@{change.spec}"
    clean = replace(whole, ids=tuple(id.removesuffix(end) for id in whole.ids)).fingerprint()
    name = whole.name.rpartition(end)[0] if end else whole.name
    return any((each["name"], each["ids"]) == (name, clean) for each in used)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    types = {
        "id": pa.string(),
        "label": pa.int32(),
        "prediction": pa.int32(),
        "tie": pa.bool_(),
        "logits": pa.list_(pa.float64()),
        "probabilities": pa.list_(pa.float64()),
    }
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()})


def _metrics(run: Run, job: TrainedJob) -> dict[str, Any]:
    table = run.read("predictions")
    spent, scored = run.progress["seconds"], table.num_rows
    report = summary(
        labels=table["label"].to_pylist(),
        predictions=table["prediction"].to_pylist(),
        probabilities=np.array(table["probabilities"].to_pylist()).reshape(scored, len(job.classes)),
        ties=table["tie"].to_pylist(),
        calls=[0] * scored,
        failures=len(run.failures()),
        class_names=job.classes,
        metric=job.task.metric,
    )
    cues = cues_of_run(job.task.source, table.select(["id", "prediction", "tie"]).to_pydict(), job.classes)
    return (
        report
        | cues
        | {
            "label": job.model.label,
            "learnt": job.learnt,
            "speed": speed(spent["all"], scored, device_of(job.model))
            | {"images_per_second": scored / max(spent["network"], 1e-9), "batch": GROUP},
        }
    )
