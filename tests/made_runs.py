"""Run directories of classifications that no model made, and a comparison of methods that nobody ran."""

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


def make_comparison(*, methods=12, memory=3_600_000_000, coverage=0.995, sd=0.117):
    """What `compare` gives, with names and numbers as long as they come."""
    models = (
        "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "timm:/folder/far/away/mobilenetv3_small_100.lamb_in1k",
        None,
    )
    rows = [
        {
            "key": f"row-{number}",
            "method": ("pixels-knn", "pretrained")[number % 2],
            "model": models[number % 3],
            "labels": 1000,
            "protocol": ("few-shot", "supervised")[number % 2],
            "said": "supervised: learnt from 1,000 labels of each class",
            "failure": "there was no such network" if number == 1 else None,
            "value": None if number == 1 else 0.9834,
            "low": None if number == 1 else 0.8712,
            "high": None if number == 1 else 0.9981,
            "sd": sd,
            "coverage": coverage,
            "calls": 12_345.6,
            "seconds": 123.4567,
            "flops": 1.234567e14,
            "memory": memory,
            "once": {"calls": 0.0, "seconds": 7000.0},
            "runs": [],
        }
        for number in range(methods)
    ]
    keys = [row["key"] for row in rows]
    return {
        "task": {"name": "made", "version": 1, "metric": "top1"},
        "data": {"source": "torchvision:nothing/test", "images": 1000, "ids": "0"},
        "labelled": True,
        "notes": [],
        "rows": rows,
        "recommendations": [{"labels": 1000, "row": keys[0], "method": "pixels-knn", "reason": "it is the cheapest"}],
        "agreement": {"keys": keys, "pairs": [[0.87] * methods] * methods, "others": {}},
    }
