"""Runs a task with a model into a run directory that can be killed at any moment and continued."""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffsight.backbones.base import Backbone
from diffsight.backbones.encoding import Encoded, encode_images
from diffsight.backbones.models.classes import refuse_unconditional
from diffsight.data.class_folders import id_prompts
from diffsight.data.prompts import PromptSet
from diffsight.data.sources import Source
from diffsight.evaluation.cues import cues_of_run
from diffsight.evaluation.metrics.cost import speed
from diffsight.evaluation.metrics.summary import summary
from diffsight.evaluation.task import Task
from diffsight.scoring.engine import Engine, Scored
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run
from diffsight.zero_shot.settings import Settings, Setup, prepare
from diffsight.zero_shot.verdict import decide

GROUP = 16


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Job:
    """A task with its data, a model and settings: what a run's numbers depend on.

    Attributes:
        task: What is asked.
        source: The images, already limited.
        setup: How they are scored.
    """

    task: Task
    source: Source
    setup: Setup

    def manifest(self, batch_size: int) -> Manifest:
        """The run's fingerprint, and what else is worth recording."""
        fields = {
            "task": {"name": self.task.name, "version": self.task.version, "metric": self.task.metric},
            "data": {"source": self.source.name, "images": len(self.source), "ids": self.source.fingerprint()},
            **self.setup.fingerprint(),
        }
        backbone = self.setup.backbone
        facts = {"batch_size": batch_size, "model": backbone.name, "device": str(backbone.device)}
        return Manifest(fields, session(("diffusers", "transformers"), **facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a job will cost, from a pilot on its first images.

    Attributes:
        images: In the whole job.
        pilot_images: That were really scored.
        calls_per_image: Mean of the pilot.
        calls_per_second: Of the pilot, without loading.
        bytes_per_call: On disk, roughly.
    """

    images: int
    pilot_images: int
    calls_per_image: float
    calls_per_second: float
    bytes_per_call: float = 14.0

    @property
    def calls(self) -> float:
        """Denoiser calls of the whole job."""
        return self.images * self.calls_per_image

    @property
    def seconds(self) -> float:
        """Wall time of the whole job."""
        return self.calls / self.calls_per_second

    @property
    def megabytes(self) -> float:
        """Disk space of the stored errors."""
        return self.calls * self.bytes_per_call / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, for a progress bar."""

    images: int
    total: int
    calls: int


def make_job(
    task: Task,
    backbone: Backbone,
    *,
    settings: Settings | None = None,
    templates: Sequence[str] | None = None,
    limit: int | None = None,
    root: Path | None = None,
) -> Job:
    """Open a task's data and encode its prompts.

    Args:
        task: From `load_task` or `folder_task`.
        backbone: The model.
        settings: How to score; by default the best that we can show.
        templates: Instead of the task's own.
        limit: Only the first images.
        root: Where the data set lies, if not in a standard place.

    Raises:
        SourceError: If the data is not there.
        InputError: If the limit is not positive, or the task has no class names.
        PromptError: If the model is unconditional, or does not know a class.
    """
    refuse_unconditional(backbone)
    source = task.open(limit=limit, root=root)
    names = task.names(source.class_names)
    templates = tuple(templates or task.templates)
    prompts = None
    if backbone.class_names is not None:
        prompts = id_prompts(names, backbone.class_names, task.source, root=root, split=task.split)
        templates = ("{}",)
    prompts = prompts or PromptSet.from_templates(names, templates)
    return Job(task=task, source=source, setup=prepare(backbone, prompts, settings or Settings()))


def estimate(job: Job, *, images: int = 8, batch_size: int = 256) -> Estimate:
    """Score the first images and extrapolate; nothing is written."""
    images = min(images, len(job.source))
    engine = job.setup.engine(batch_size)
    stream = encode_images(job.setup.backbone, _openers(job.source, range(images)), group=GROUP)
    encoded = list(stream)
    started = time.perf_counter()
    for _ in engine.run(iter(encoded)):
        pass
    seconds = max(time.perf_counter() - started, 1e-9)
    readable = max(1, sum(image.failure is None for image in encoded))
    return Estimate(
        images=len(job.source),
        pilot_images=images,
        calls_per_image=engine.calls / readable,
        calls_per_second=engine.calls / seconds,
    )


def evaluate(
    job: Job,
    out: Path | str,
    *,
    batch_size: int = 256,
    commit_every: int = 50,
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Run a job into a directory, continuing what is there.

    Args:
        job: From `make_job`.
        out: The run's directory.
        batch_size: Denoiser rows per call; does not change results beyond rounding.
        commit_every: Batches between two commits: what a killed process can lose.
        progress: Called after each batch.

    Returns:
        The metrics of `summary`, which are also in ``metrics.json``; and ``speed``, of all sessions up to their last
        commits, with reading and encoding the images and without loading the model.

    Raises:
        RunError: If the directory belongs to another job, is damaged, in use, or the disk refuses. What was committed
            is safe.
    """
    with Run.open(out, job.manifest(batch_size)) as run:
        engine = job.setup.engine(batch_size)
        if state := run.state():
            engine.restore(state)
        if run.commits == 0:
            run.commit({"schedule": _schedule_table(job.setup)}, progress={"finished": 0, "seconds": 0.0})
        images, spent = run.progress["finished"], run.progress.get("seconds")
        finished: list[Scored] = []
        labels = dict(zip(job.source.ids, job.source.labels or itertools.repeat(None), strict=False))

        def commit() -> None:
            nonlocal images, spent, began
            finished.extend(engine.drain())
            images += len(finished)
            now = time.perf_counter()
            spent = None if spent is None else spent + now - began
            _commit(run, job.setup, engine, finished, labels, progress={"finished": images, "seconds": spent})
            finished.clear()
            began = time.perf_counter()  # the disk does not count

        began = time.perf_counter()
        for batch, scored in enumerate(engine.run(_stream(job, engine.admitted)), start=1):
            finished.extend(scored)
            if progress is not None:
                progress(Progress(images=images + len(finished), total=len(job.source), calls=engine.calls))
            if batch % commit_every == 0:
                commit()
        if finished:
            commit()
        metrics = _metrics(run, job)
        run.finish(metrics)
        return metrics


def _stream(job: Job, start: int) -> Iterator[Encoded]:
    """Encoded images from position ``start``, in the same groups as if from 0."""
    aligned = start // GROUP * GROUP
    openers = _openers(job.source, range(aligned, len(job.source)))
    return itertools.islice(encode_images(job.setup.backbone, openers, group=GROUP), start - aligned, None)


def _openers(source: Source, positions: range) -> Iterator[tuple[str, Callable[[], Any]]]:
    for position in positions:
        sample = source[position]
        yield sample.id, sample.load


def _commit(
    run: Run,
    setup: Setup,
    engine: Engine,
    finished: Sequence[Scored],
    labels: Mapping[str, int | None],
    progress: Mapping[str, Any],
) -> None:
    good = [scored for scored in finished if scored.failure is None]
    run.commit(
        {"errors": _error_table(good, engine.scorer.losses), "predictions": _prediction_table(good, setup, labels)},
        failures=[{"id": s.id, "reason": s.failure, "calls": s.calls} for s in finished if s.failure is not None],
        state=engine.snapshot(),
        progress={**progress, "calls": engine.calls},
    )


def _error_table(scored: Sequence[Scored], losses: Sequence[str]) -> pa.Table:
    """One row per denoiser call: image, draw, arm and all losses, in eps-space and unweighted."""
    where = [np.nonzero(np.isfinite(s.errors[:, :, 0])) for s in scored]
    values = [s.errors[index] for s, index in zip(scored, where, strict=True)]
    ids = pa.array(np.repeat([s.id for s in scored], [len(v) for v in values]).tolist(), pa.string())
    joined = np.concatenate(values) if values else np.zeros((0, len(losses)), np.float32)
    draws = np.concatenate([index[0] for index in where]) if where else np.zeros(0)
    arms = np.concatenate([index[1] for index in where]) if where else np.zeros(0)
    columns = {"id": ids.dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string()))}
    columns |= {"draw": pa.array(draws.astype(np.int32)), "arm": pa.array(arms.astype(np.int32))}
    columns |= {name: pa.array(joined[:, i].astype(np.float32)) for i, name in enumerate(losses)}
    return pa.table(columns)


def _prediction_table(scored: Sequence[Scored], setup: Setup, labels: Mapping[str, int | None]) -> pa.Table:
    verdicts = [decide(s, setup.contest) for s in scored]
    return pa.table(
        {
            "id": pa.array([s.id for s in scored], pa.string()),
            "label": pa.array([labels[s.id] for s in scored], pa.int32()),
            "prediction": pa.array([v.label for v in verdicts], pa.int32()),
            "tie": pa.array([v.tie for v in verdicts], pa.bool_()),
            "calls": pa.array([s.calls for s in scored], pa.int64()),
            "scores": pa.array([v.scores.tolist() for v in verdicts], pa.list_(pa.float64())),
            "probabilities": pa.array([v.probabilities.tolist() for v in verdicts], pa.list_(pa.float64())),
            "alive": pa.array([s.alive.tolist() for s in scored], pa.list_(pa.bool_())),
        }
    )


def _schedule_table(setup: Setup) -> pa.Table:
    """What re-scoring needs of the model: its noise levels."""
    schedule = setup.backbone.schedule
    return pa.table(
        {"alpha": schedule.alpha.numpy(), "sigma": schedule.sigma.numpy(), "timestep": schedule.timesteps.numpy()}
    )


def _metrics(run: Run, job: Job) -> dict[str, Any]:
    table, classes = run.read("predictions"), job.setup.prompts.class_names
    probabilities = np.array(table["probabilities"].to_pylist()).reshape(table.num_rows, len(classes))
    report = summary(
        labels=table["label"].to_pylist(),
        predictions=table["prediction"].to_pylist(),
        probabilities=probabilities,
        ties=table["tie"].to_pylist(),
        calls=table["calls"].to_pylist(),
        failures=len(run.failures()),
        class_names=classes,
        metric=job.task.metric,
    )
    cues = cues_of_run(job.task.source, table.select(["id", "prediction", "tie"]).to_pydict(), classes)
    spent = speed(run.progress.get("seconds"), table.num_rows, str(job.setup.backbone.device))
    return report | cues | {"speed": spent}
