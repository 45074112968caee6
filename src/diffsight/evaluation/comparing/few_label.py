"""Methods that learn from a few or many labels of the task: heads on vectors, and a network from scratch."""

import time
from collections.abc import Mapping

import numpy as np

from diffsight.errors import InputError
from diffsight.evaluation.comparing.answers import write_answers
from diffsight.evaluation.comparing.measuring import PILOT, flops_of
from diffsight.evaluation.comparing.rows import Entry, labels_of
from diffsight.evaluation.comparing.vectors import columns_of
from diffsight.evaluation.comparing.work import Found, Work
from diffsight.evaluation.comparing.zero_label import measured, train
from diffsight.features.heads import HeadSpec, Logistic, Neighbours
from diffsight.features.heads.fitting import fit_head
from diffsight.synthesis.training_set import TrainingSet

# Of vectors the strength of the penalty is chosen on a tenth of the training images. There are thousands of pixels, for
# which that would take minutes; they get a fixed strength.
HEADS: Mapping[str, HeadSpec] = {
    "features": Logistic(),
    "pixels": Logistic(C=0.01, max_iter=200),
    "pixels-knn": Neighbours(),
    "probe": Logistic(),
    "knn": Neighbours(),
}


def by_head(work: Work, entry: Entry) -> Found:
    """A head on the vectors of a diffusion model, a baseline, or the pixels; nothing is chosen on test images."""
    question, embedder, head = work.question, work.embedder(entry), HEADS[entry.method.name]
    if question.train is None:
        raise InputError(f"There are no labels to draw: {question.why}")
    union = work.training_union()
    labels = np.array(question.train.labels)
    test = work.embedded(embedder, question.test, f"test images, {embedder.name}")
    train = work.embedded(embedder, question.train.select(union.tolist()), f"training images, {embedder.name}")
    where = union[train.positions]
    model = None if entry.method.on == "pixels" else entry.baseline or work.model().name
    said = (
        f"{entry.protocol}: {head.name} on {embedder.name}, learnt from {labels_of(entry.labels)}; nothing was "
        "chosen on test images"
    )
    runs, metrics = [], []
    embedding, flops = work.cost(embedder)
    used, seconds, once, own = [], 0.0, 0.0, None
    for seed, drawn in zip(work.seeds(), work.draws(entry.labels), strict=True):
        rows = np.flatnonzero(np.isin(where, drawn))
        used.append(len(rows))
        began = time.perf_counter()
        fitted = fit_head(
            columns_of(train.values[rows]),
            labels[where[rows]],
            head,
            classes=question.classes,
            seed=seed,
            device=work.device,
        )
        fitting = time.perf_counter() - began
        if seed == work.settings.seed:
            began = time.perf_counter()
            few = test.values[:PILOT]
            fitted.logits(columns_of(few))
            seconds = (time.perf_counter() - began) / len(few)
            once, own = fitting, flops_of(lambda fitted=fitted: fitted.logits(columns_of(test.values[:1])))
        logits = fitted.logits(columns_of(test.values)).double()
        runs.append(work.folder(entry) / f"seed-{seed}")
        metrics.append(
            write_answers(
                runs[-1],
                question,
                test,
                logits.softmax(dim=1).numpy(),
                ties=((logits == logits.max(dim=1, keepdim=True).values).sum(dim=1) > 1).numpy(),
                kind=f"{head.name} on vectors",
                model=model or embedder.name,
                said=said,
                calls=embedder.calls_per_image,
                seconds=None if embedding is None else embedding + seconds,
                device=work.model().device if entry.method.on == "model" else work.device,
                depends={
                    "vectors": embedder.identity(),
                    "head": fitted.spec.to_dict(),
                    "train": {"per_class": entry.labels, "seed": seed, "used": len(rows)},
                    "training ids": question.train.select(drawn.tolist()).fingerprint(),
                },
            )
        )
    return Found(
        runs=runs,
        metrics=metrics,
        said=said,
        model=model,
        calls=float(embedder.calls_per_image),
        seconds=metrics[0]["speed"]["seconds_per_image"],
        flops=((flops or 0.0) + (own or 0.0)) or None,
        once={"calls": float(used[0] * embedder.calls_per_image), "seconds": once + used[0] * (embedding or 0.0)},
    )


def by_network(work: Work, entry: Entry) -> Found:
    """A small network, trained on the labelled images alone."""
    question = work.question
    if question.train is None:
        raise InputError(f"There are no labels to draw: {question.why}")
    labels = np.array(question.train.labels)
    models = []
    for seed, drawn in zip(work.seeds(), work.draws(entry.labels), strict=True):
        images = TrainingSet(
            source=question.train.select(drawn.tolist()), class_names=question.classes, targets=labels[drawn]
        )
        models += train(work, entry, images, protocol="supervised", seed=seed)
    outs = [work.folder(entry) / f"seed-{seed}" for seed in work.seeds()]
    name = work.settings.training.network
    found = measured(work, models, outs, kind="trained network", name=name)
    said = f"supervised: {name} from scratch on {labels_of(entry.labels)}"
    return Found(
        runs=found.runs,
        metrics=found.metrics,
        said=said,
        model=name,
        seconds=found.seconds,
        flops=found.flops,
        once={"calls": 0.0, "seconds": work.watch.spent(entry.key)},
    )
