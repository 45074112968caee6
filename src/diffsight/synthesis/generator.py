"""`synthesize`: class names and a text-to-image model to a training set; `recreate`: any image of it again.

It can be killed at any moment, and the same call goes on. A batch counts once its images are in place and its rows are
committed; what lies beyond the last commit is drawn again and is the same.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from diffsight.backbones import Backbone, load
from diffsight.backbones.sampling import Sampler
from diffsight.errors import InputError, ModelError
from diffsight.store.run import Run
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.dataset import SyntheticSet, read_synthetic
from diffsight.synthesis.filters import Judge, Scorer, content_of, perceptual_hash
from diffsight.synthesis.finishing import finish, manifest_of
from diffsight.synthesis.folder import RUN, Store, Written, refuse_foreign
from diffsight.synthesis.ledger import TABLE, Attempt, Ledger, table_of
from diffsight.synthesis.painting import Order, Painted, Painter, resized
from diffsight.synthesis.plan import Plan, SynthesisSettings, make_plan
from diffsight.synthesis.tricks import Prescription

SECONDS_BETWEEN_COMMITS = 10.0
_WRITERS = 4
_NOT_WRITTEN = Written(sha256="", bytes=0)


def synthesize(
    model: Backbone | str | Path,
    classes: Classes | Sequence[str],
    out: Path | str,
    *,
    settings: SynthesisSettings | None = None,
    scorer: Scorer | None = None,
    batch_size: int = 32,
    notes: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSet:
    """Draw a training set (Shipard et al. 2302.03298), or go on with one.

    Args:
        model: A text-to-image or class-conditional model, or what `diffsight.load` takes.
        classes: What of; see `Classes.parse`.
        out: The set's directory: absent, empty, or a set of the same settings.
        settings: How; by default the best that we can show.
        scorer: What checks the labels, if the filters name one.
        batch_size: Images drawn at once; it does not decide what they show.
        notes: Sentences for the set's card, such as what the model was trained on.
        progress: Called with (images that are kept so far, denoiser calls of this session).

    Returns:
        The set. Images that were given up after ``max_attempts`` are missing in it, and its card counts them.

    Raises:
        InputError: If the model cannot draw that, or a class or prompt is wrong.
        RunError: If ``out`` holds something else or a set of other settings (the differences are listed), is in use or
            damaged, or the disk refuses. What was finished is safe.
        NumericsError: If the model draws something that is not a number.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is a number of images from 1; got {batch_size}.")
    backbone = load(model) if isinstance(model, str | Path) else model
    plan = make_plan(backbone, classes, settings)
    session = _Session(plan=plan, out=Path(out), judge=Judge(plan.settings.filters, scorer), progress=progress)
    refuse_foreign(session.out)
    with Run.open(session.out / RUN, manifest_of(plan, batch_size)) as run:
        session.store.prepare()
        ledger = session.take_up(run)
        wanted = [(label, index) for label in range(len(plan.classes)) for index in range(plan.settings.per_class)]
        for number in itertools.count():
            open_ = ledger.open(wanted, number)
            if not open_:
                break
            done = ledger.done(number)
            session.draw(run, ledger, [key for key in open_ if key not in done], number, batch_size)
        finish(run, plan, ledger, session.store, session.painter, notes=notes)
    return read_synthetic(session.out)


@dataclass(slots=True, eq=False, kw_only=True)
class _Session:
    """What one call of `synthesize` works with."""

    plan: Plan
    out: Path
    judge: Judge
    progress: Callable[[int, int], None] | None
    painter: Painter = field(init=False)
    store: Store = field(init=False)
    kept: int = 0

    def __post_init__(self) -> None:
        backbone, settings = self.plan.backbone, self.plan.settings
        self.painter = Painter(backbone=backbone, sampler=settings.sampler, seed=settings.seed)
        note = f"Synthetic image, drawn by {backbone.name} with diffsight."
        self.store = Store(out=self.out, classes=self.plan.classes, note=note)

    def take_up(self, run: Run) -> Ledger:
        """Remember what was decided before an interruption."""
        filters = self.plan.settings.filters
        ledger = Ledger.of(run, withdraws=filters.repeated, max_attempts=filters.max_attempts)
        for each in ledger.attempts:
            self.judge.remember(each.content, each.likeness, each.label, kept=not each.reason)
        self.kept = len(ledger.kept())
        return ledger

    def draw(self, run: Run, ledger: Ledger, open_: Sequence[tuple[int, int]], number: int, batch_size: int) -> None:
        """Draw one round, or what is left of it."""
        made = ledger.made()
        waiting: list[tuple[Attempt, Future[Written] | None]] = []
        last = time.monotonic()
        batches = list(self.plan.batches(open_, batch_size))
        with ThreadPoolExecutor(_WRITERS) as pool:
            for position, batch in enumerate(batches):
                painted = list(self.painter.paint([self._order(key, made[key]) for key in batch]))
                for attempt, pixels in self._judged(painted, number):
                    writing = None if attempt.reason else pool.submit(self._write, attempt, pixels)
                    waiting.append((attempt, writing))
                    self.kept += not attempt.reason
                if position + 1 == len(batches) or time.monotonic() - last > SECONDS_BETWEEN_COMMITS:
                    self._commit(run, ledger, waiting)
                    last = time.monotonic()
                if self.progress is not None:
                    self.progress(self.kept, self.painter.calls)

    def _order(self, key: tuple[int, int], attempt: int) -> Order:
        label, index = key
        return Order(
            label=label,
            name=self.plan.classes.names[label],
            index=index,
            attempt=attempt,
            prescription=self.plan.prescription(label, index),
        )

    def _judged(self, painted: Sequence[Painted], number: int) -> Iterator[tuple[Attempt, np.ndarray]]:
        """Decide on a batch, and give each picture as it will be written."""
        pixels = np.stack([one.pixels for one in painted])
        contents = [content_of(one.pixels) for one in painted]
        hashes = [perceptual_hash(one.pixels) for one in painted]
        reasons = self.judge.decide(pixels, [one.order.label for one in painted], contents, hashes)
        settings = self.plan.settings
        for one, reason, content, likeness in zip(painted, reasons, contents, hashes, strict=True):
            final = resized(one.pixels, settings.size, antialias=settings.antialias)
            asked = one.order.prescription
            attempt = Attempt(
                label=one.order.label,
                index=one.order.index,
                attempt=one.order.attempt,
                round=number,
                reason=reason,
                prompt=asked.prompt,
                guidance_scale=asked.guidance_scale,
                trick=asked.trick,
                domain=asked.domain,
                width=final.shape[1],
                height=final.shape[0],
                content=content,
                likeness=likeness,
                rows=one.rows,
                place=one.place,
                sha256="",
                bytes=0,
            )
            yield attempt, final

    def _write(self, attempt: Attempt, pixels: np.ndarray) -> Written:
        return self.store.write(attempt.label, attempt.index, pixels)

    def _commit(self, run: Run, ledger: Ledger, waiting: list[tuple[Attempt, Future[Written] | None]]) -> None:
        """Wait for the files, and only then say that they are there."""
        attempts = []
        for attempt, writing in waiting:
            written = _NOT_WRITTEN if writing is None else writing.result()
            attempts.append(replace(attempt, sha256=written.sha256, bytes=written.bytes))
        run.commit({TABLE: table_of(attempts)}, progress={"kept": self.kept})
        ledger.attempts.extend(attempts)
        waiting.clear()


def recreate(out: Path | str, image: int | str | Path, *, model: Backbone | None = None) -> Image.Image:
    """Draw an image of a set again, from its row alone; on the same machine it is the same to the bit.

    Args:
        out: The set's directory.
        image: Its number in ``manifest.parquet``, or its file.
        model: The model, loaded in the precision that the set was drawn with; by default by its name in the set.

    Raises:
        SourceError: If there is no finished set.
        ModelError: If the model is not the one that drew the set, or cannot be loaded.
        InputError: If there is no such image.
    """
    found = read_synthetic(out)
    row = found.row(image if isinstance(image, int) else found.find(image))
    known = found.card["model"]
    backbone = model or load(known["name"], dtype=_short(known["dtype"]))
    different = [key for key, value in backbone.identity().items() if known.get(key) != value and key != "revision"]
    if different:
        key = different[0]
        raise ModelError(
            f"{out} was drawn by {known['name']} with {key} {known.get(key)!r:.60}, and this model has "
            f"{backbone.identity()[key]!r:.60}. Load the one that drew it."
        )
    painter = Painter(backbone=backbone, sampler=Sampler(name=row["sampler"], steps=row["steps"]), seed=row["seed"])
    prescription = Prescription(
        prompt=row["prompt"], guidance_scale=row["guidance_scale"], trick=row["trick"], domain=row["domain"]
    )
    order = Order(
        label=row["label"], name=row["class"], index=row["index"], attempt=row["attempt"], prescription=prescription
    )
    pixels = painter.again(order, rows=row["rows"], place=row["place"])
    policy = row["resize"]
    size = int(policy.removesuffix("A")) if policy else None
    return Image.fromarray(resized(pixels, size, antialias=bool(policy and policy.endswith("A"))))


def _short(dtype: str) -> str:
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(dtype, dtype)
