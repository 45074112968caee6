"""`compare`: every row in a directory of its own, so that the same call continues after any interruption."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from diffsight.backbones.base import Backbone, resolve_device
from diffsight.backbones.cards import honesty
from diffsight.errors import DiffsightError, RunError
from diffsight.evaluation.comparing.few_label import by_head, by_network
from diffsight.evaluation.comparing.measuring import peak_memory, weights_of
from diffsight.evaluation.comparing.question import Question, readable
from diffsight.evaluation.comparing.recommending import agreement, recommend, recommend_unlabelled
from diffsight.evaluation.comparing.rows import CompareSettings, Entry, Row, accuracy_of, entries, without_row
from diffsight.evaluation.comparing.work import Found, Report, Work
from diffsight.evaluation.comparing.zero_label import by_baseline, by_diffusion, by_gaussians, by_synthetic
from diffsight.store.disk import SCHEMA, lock, make, put, read_json, to_json, writing
from diffsight.store.manifest import Manifest, check_same, read_manifest, session, write_manifest
from diffsight.store.run import Run

log = logging.getLogger(__name__)

RESULT, ROW = "comparison.json", "row.json"
_OWN = {"manifest.json", "rows", "shared", RESULT, "comparison.html", ".lock"}
WAYS: dict[str, Callable[[Work, Entry], Found]] = {
    "diffusion": by_diffusion,
    "zero-shot": by_baseline,
    "pretrained": by_baseline,
    "synthetic": by_synthetic,
    "gdc": by_gaussians,
    "features": by_head,
    "pixels": by_head,
    "pixels-knn": by_head,
    "probe": by_head,
    "knn": by_head,
    "network": by_network,
}


def compare(
    question: Question,
    out: Path | str,
    *,
    labels: Sequence[int],
    backbone: Backbone | None = None,
    settings: CompareSettings | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    batch_size: int = 64,
    progress: Report | None = None,
    told: Callable[[Row], None] | None = None,
) -> dict[str, Any]:
    """Measure methods on the same images, each with as many labels as it may have.

    A method that fails is a row with its reason, and stops nothing; the next call tries it again. A directory can be
    given again with other methods, baselines or numbers of labels: rows that are there already are taken from it.

    Args:
        question: From `open_question`.
        out: The directory.
        labels: From `choose_labels`.
        backbone: The diffusion model, for the methods that need one.
        settings: Which methods, and how.
        device: Where other networks compute; by default CUDA where there is one.
        dtype: Of encoders.
        batch_size: Rows of the denoiser in one call; does not change results.
        progress: Called with (what is done, how many, of how many, denoiser calls so far).
        told: Called with each row as soon as it is there.

    Returns:
        All of it as JSON values, also in ``comparison.json``.

    Raises:
        InputError: If no method applies, or a baseline is none.
        RunError: If the directory holds something else, or a comparison of other images, models or settings (what
            differs is listed), is in use, or the disk refuses.
    """
    settings, out = settings or CompareSettings(), Path(out)
    wanted = entries(settings, labels)
    if idle := without_row(settings, wanted):
        log.warning(
            "Without a row: %s. No method asks them with these --methods, --baseline and --labels.", ", ".join(idle)
        )
    if any(entry.labels for entry in wanted):
        question = readable(question, max(labels), range(settings.seed, settings.seed + settings.seeds))
    work = Work(
        question=question,
        labels=tuple(labels),
        settings=settings,
        backbone=backbone,
        out=out,
        device=resolve_device(device),
        dtype=dtype,
        batch_size=batch_size,
        progress=progress,
    )
    with _held(out, _manifest(work)):
        rows: dict[str, Row] = {}
        for entry in sorted(wanted, key=lambda each: (each.baseline or "", each.labels)):  # a baseline's rows together
            rows[entry.key] = _row(work, entry)
            if told is not None:
                told(rows[entry.key])
        ordered = [rows[entry.key] for entry in wanted]
        result = _result(work, ordered)
        with writing(out):
            put(out / RESULT, to_json({"schema": SCHEMA, **result}, "A comparison", indent=1).encode())
    return result


def _manifest(work: Work) -> Manifest:
    question, settings = work.question, work.settings
    fields = {
        "kind": "comparison",
        **question.fields(),
        "train": None if question.train is None else {"ids": question.train.fingerprint()},
        "backbone": None if work.backbone is None else work.backbone.identity(),
        "templates": list(question.task.templates),
        "settings": {
            "scoring": settings.scoring.to_dict(),
            "training": settings.training.to_dict(),
            "per_class": settings.per_class,
            "seed": settings.seed,
        },
    }
    return Manifest(fields, session(("diffusers", "transformers"), device=str(work.device)))


@contextmanager
def _held(out: Path, manifest: Manifest) -> Iterator[None]:
    """Hold a directory that is new or of the same comparison."""
    file = out / "manifest.json"
    with writing(out):
        if out.exists() and not out.is_dir():
            raise RunError(f"{out} is a file. Give a directory for the comparison.")
        strangers = sorted(set(os.listdir(out)) - _OWN) if out.exists() else []
        if strangers and not file.exists():
            raise RunError(f"{out} holds {strangers[0]!r} and is no comparison. Give an empty or a new directory.")
        make(out)
        held = lock(out)
    try:
        stored, sessions = read_manifest(file) if file.exists() else (manifest, [])
        check_same(out, stored, manifest, what="comparison" if stored.fingerprint_fields.get("kind") else "run")
        with writing(out):
            write_manifest(file, stored, [*sessions, dict(manifest.recorded)])
        yield
    finally:
        held.close()


def _row(work: Work, entry: Entry) -> Row:
    """Take a row that is there, or fill it."""
    file = work.folder(entry) / ROW
    asked = {"key": entry.key, "seeds": list(work.seeds())}
    if file.exists():
        stored = read_json(file)
        if stored.get("asked") == asked:
            return Row(**stored["row"])
    row = _filled(work, entry)
    if row.failure is None:
        with writing(file):
            make(file.parent.resolve())
            value = {"schema": SCHEMA, "asked": asked, "row": row.to_dict()}
            put(file, to_json(value, "A row", indent=1).encode())
    return row


def _filled(work: Work, entry: Entry) -> Row:
    method, labels = entry.method.name, entry.labels
    own = work.backbone if entry.method.on == "model" else None
    loaded = weights_of(own) if own is not None else 0
    device = own.device if own is not None else work.device
    try:
        with peak_memory(device, loaded) as memory:
            found = WAYS[method](work, entry)
    except DiffsightError as error:
        log.warning("%s with %d labels: %s", method, labels, error)
        model = entry.baseline or (own.name if own is not None else None)
        return Row(
            key=entry.key, method=method, model=model, labels=labels, protocol=entry.protocol, failure=str(error)
        )
    return Row(
        key=entry.key,
        method=method,
        model=found.model,
        labels=labels,
        protocol=entry.protocol,
        said=found.said,
        **accuracy_of(found.metrics),
        calls=found.calls,
        seconds=found.seconds,
        flops=found.flops,
        memory=memory.peak,
        once=found.once,
        runs=[run.relative_to(work.out).as_posix() for run in found.runs],
    )


def _result(work: Work, rows: Sequence[Row]) -> dict[str, Any]:
    question = work.question
    answers = {row.key: _answers(work.out / row.runs[0]) for row in rows if row.failure is None and row.runs}
    agreed = agreement(answers)
    advice = (
        recommend(rows, work.labels, classes=len(question.classes))
        if question.labelled
        else recommend_unlabelled(rows, agreed)
    )
    names = [*([work.backbone.name] if work.backbone is not None else []), *work.settings.baselines]
    notes = [note for name in names if (note := honesty(name)) is not None]
    if question.twice:
        notes.append(f"{question.twice} images are also among the test images, and no labels were drawn from them.")
    train = question.train
    return {
        "kind": "comparison",
        **question.fields(),
        "labelled": question.labelled,
        "train": None if train is None else {"source": train.name, "images": len(train)},
        "model": None if work.backbone is None else work.backbone.name,
        "device": str(work.device),
        "labels": list(work.labels),
        "seeds": list(work.seeds()),
        "per_class": work.settings.per_class,
        "rows": [row.to_dict() for row in rows],
        "agreement": agreed,
        "recommendations": advice,
        "notes": notes,
    }


def _answers(run: Path) -> dict[str, int]:
    table = Run.load(run).read("predictions", ["id", "prediction"])
    return dict(zip(table["id"].to_pylist(), table["prediction"].to_pylist(), strict=True))


def read_comparison(out: Path | str) -> dict[str, Any]:
    """What `compare` wrote.

    Raises:
        RunError: If there is no finished comparison, or it is damaged.
    """
    file = Path(out) / RESULT
    if not file.exists():
        raise RunError(
            f"{out} is no finished comparison: it has no {RESULT}. Give the directory of 'diffsight compare'."
        )
    return json.loads(json.dumps(read_json(file)))
