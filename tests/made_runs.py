"""Run directories of classifications that no model made: their answers are given."""

import numpy as np
import pyarrow as pa

from diffsight.store.run import Manifest, Run


def make_run(
    path,
    *,
    classes=("cat", "dog", "bird"),
    images=30,
    right=0.8,
    ids="photos/{:03}.png",
    finished=True,
    labelled=True,
    ties=0,
    failures=(),
    source="torchvision:nothing/test",
    calls=64,
    seed=0,
    metrics=None,
    recorded=None,
    **fields,
):
    """Write a run whose answers are right as often as asked; equal ids and labels for equal numbers of images."""
    count = len(classes)
    truth = np.arange(images) % count
    rng = np.random.default_rng(seed)
    predicted = np.where(rng.random(images) < right, truth, rng.integers(0, count, images))
    probabilities = rng.random((images, count))
    probabilities[np.arange(images), predicted] += 2
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    asked = {
        "task": {"name": "made", "version": 1, "metric": "top1"},
        "data": {"source": source, "images": images + len(failures), "ids": f"{images:016x}"},
        "classes": list(classes),
        "settings": {"policy": {"name": "exhaustive"}, "weighting": "uniform", "seed": seed},
        **fields,
    }
    facts = {"model": "some-model", "device": "cpu", "versions": {"diffsight": "0"}, "started": "2026-01-01T00:00:00"}
    done = images if finished else images // 2
    table = pa.table(
        {
            "id": pa.array([ids.format(index) for index in range(done)], pa.string()),
            "label": pa.array(truth[:done].tolist() if labelled else [None] * done, pa.int32()),
            "prediction": pa.array(predicted[:done], pa.int32()),
            "tie": pa.array(np.arange(done) < ties, pa.bool_()),
            "calls": pa.array([calls] * done, pa.int64()),
            "probabilities": pa.array(probabilities[:done].tolist(), pa.list_(pa.float64())),
        }
    )
    with Run.open(path, Manifest(asked, facts | (recorded or {}))) as run:
        progress = {"finished": done + (len(failures) if finished else 0)}
        run.commit({"predictions": table}, failures=list(failures) if finished else (), progress=progress)
        if finished:
            run.finish(metrics or {})
    return path
