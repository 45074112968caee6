"""What a comparison will cost, from a few images that are really scored, drawn and learnt from; nothing is written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from diffsight.data.sources import Source
from diffsight.errors import DiffsightError
from diffsight.evaluation import runner
from diffsight.evaluation.baselines import load_baseline
from diffsight.evaluation.comparing.rows import Entry, entries
from diffsight.evaluation.comparing.vectors import cost_of
from diffsight.evaluation.comparing.work import Work
from diffsight.evaluation.comparing.zero_label import scoring_job
from diffsight.evaluation.trained import TrainedJob, pace
from diffsight.synthesis import estimating, trainer
from diffsight.synthesis.training_set import TrainingSet

_PILOT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a row will take, if those before it are there.

    Attributes:
        key: The row's.
        method: Its method.
        model: Its baseline, if it has one.
        labels: Of each class.
        calls: Denoiser calls.
        seconds: Wall time without loading.
        failure: Why that is not known.
    """

    key: str
    method: str
    model: str | None
    labels: int
    calls: float = 0.0
    seconds: float = 0.0
    failure: str | None = None


def forecast(work: Work) -> list[Expected]:
    """Say what each row will take; what several rows share counts for the first of them.

    Raises:
        InputError: As `entries`.
    """
    shared: set[str] = set()
    found = []
    for entry in entries(work.settings, work.labels):
        row = Expected(key=entry.key, method=entry.method.name, model=entry.baseline, labels=entry.labels)
        try:
            calls, seconds = _cost(work, entry, shared)
        except DiffsightError as error:
            found.append(replace(row, failure=str(error)))
        else:
            found.append(replace(row, calls=calls, seconds=seconds))
    return found


def _cost(work: Work, entry: Entry, shared: set[str]) -> tuple[float, float]:
    question, method = work.question, entry.method.name
    images, classes, seeds = len(question.test), len(question.classes), work.settings.seeds
    if method == "diffusion":
        found = runner.estimate(scoring_job(work), images=_PILOT, batch_size=work.batch_size)
        return found.calls, found.seconds
    if entry.baseline is not None and entry.labels == 0:
        model = load_baseline(
            entry.baseline, question.classes, question.task.templates, device=work.device, dtype=work.dtype
        )
        job = TrainedJob(
            task=question.task,
            source=question.test,
            model=model,
            classes=question.classes,
            order=tuple(range(classes)),
        )
        return 0.0, images / pace(job, images=_PILOT)
    calls = seconds = 0.0
    if method in ("synthetic", "gdc") and "set" not in shared:
        drawn = estimating.estimate(work.plan(), work.batch_size)
        calls, seconds = calls + drawn.calls, seconds + drawn.seconds
        shared.add("set")
    if method == "network":
        return 0.0, seeds * _training(work, entry.labels * classes)
    if method == "synthetic":
        return calls, seconds + seeds * _training(work, work.settings.per_class * classes)
    embedder = work.embedder(entry)
    count = work.settings.per_class * classes if method == "gdc" else 0
    if embedder.name not in shared:
        shared.add(embedder.name)
        count += images
    if method != "gdc" and f"{embedder.name} train" not in shared:
        shared.add(f"{embedder.name} train")
        count += len(work.training_union())
    each = cost_of(embedder, question.test.select(range(min(_PILOT, images))))[0] or 0.0
    return calls + count * embedder.calls_per_image, seconds + count * each


def _training(work: Work, images: int) -> float:
    """Seconds of one training, from a few steps on black images of the test images' size."""
    settings, classes = work.settings.training, work.question.classes
    side = settings.size or min(224, *_first_size(work.question.test))
    black = Image.new("RGB", (side, side))
    few = max(4 * len(classes), min(images, 4 * settings.batch_size))
    source = Source(name="black images", ids=tuple(map(str, range(few))), read=lambda id: black)
    targets = np.arange(few) % len(classes)
    pilot = trainer.estimate(
        TrainingSet(source=source, class_names=classes, targets=targets, synthetic=True),
        settings=settings,
        device=work.device,
    )
    learnt = max(2, round(images * (1 - settings.validation_share)))
    return pilot.seconds / pilot.steps * settings.epochs * settings.steps(learnt)


def _first_size(source: Source) -> Sequence[int]:
    for sample in source:
        try:
            return sample.load().size
        except DiffsightError:
            continue
    return (224, 224)
