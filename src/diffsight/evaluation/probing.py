"""Heads on frozen features, measured: trained on few or many labels, tested on a task's test images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from diffsight.data.corruptions import split_change
from diffsight.data.sources import Source, open_source
from diffsight.data.splits import few_shot, fraction, hold_out
from diffsight.errors import InputError
from diffsight.evaluation.metrics.cost import speed
from diffsight.evaluation.metrics.summary import summary
from diffsight.evaluation.task import Task, first_images
from diffsight.features.cache import FeatureCache, extract
from diffsight.features.extraction import Extraction, unaugmented
from diffsight.features.heads.columns import Subset
from diffsight.features.heads.fitted import FittedHead
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.specs import HeadSpec


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Parts:
    """A task's labelled images, divided.

    Attributes:
        train: To train on, and to choose with.
        test: To measure on.
        class_names: In the order of the labels.
    """

    train: Source
    test: Source
    class_names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Measured:
    """What came out of `probe_task`.

    Attributes:
        metrics: Everything that is reported, as JSON values.
        head: The head of the first seed.
    """

    metrics: dict[str, Any]
    head: FittedHead


def open_parts(task: Task, *, root: Path | None = None, test_share: float = 0.25, seed: int = 0) -> Parts:
    """Open the training and the test images of a task.

    Args:
        task: From `load_task`. Its ``split`` is the test part, and ``train`` the training part. If its images are
            corrupted, then those for testing are; training images are clean.
        root: Where the data lie, if not in a standard place.
        test_share: Of the images of each class of a folder, which has no parts, that are kept for testing.
        seed: Chooses these.

    Raises:
        SourceError: If the data are not there.
        InputError: If the images have no labels, or a class of a folder has a single image.
    """
    test = open_source(task.source, root=root, split=task.split)
    if test.labels is None:
        raise InputError(
            f"The images of {task.name} have no labels to learn from: put them into one sub-folder for each class."
        )
    names = task.names(test.class_names)
    clean, change = split_change(task.source)
    if not task.source.startswith("folder:"):
        return Parts(train=open_source(clean, root=root, split="train"), test=test, class_names=names)
    train = test if change is None else open_source(clean, root=root, split=task.split)
    kept, held = hold_out(test.labels, share=test_share, seed=seed)
    return Parts(train=train.select(kept.tolist()), test=test.select(held.tolist()), class_names=names)


def cost(
    parts: Parts, extraction: Extraction, *, per_class: int | None = None, share: float | None = None, seeds: int = 1
) -> tuple[int, int, int]:
    """What `probe_task` takes: training images, test images, and denoiser calls for both."""
    train = len(_union(_chosen(parts, per_class, share, seeds)))
    test = len(parts.test)
    return train, test, train * extraction.calls_per_image + test * unaugmented(extraction).calls_per_image


def probe_task(
    parts: Parts,
    extraction: Extraction,
    head: str | HeadSpec,
    *,
    recipe: str | Recipe | None = None,
    per_class: int | None = None,
    share: float | None = None,
    seeds: int = 1,
    metric: str = "top1",
    cache: Path | str | None = None,
    storage: str = "fp32",
    batch_size: int = 64,
    progress: Callable[[str, int, int, int], None] | None = None,
) -> Measured:
    """Train a head on features of training images and measure it on all test images.

    Args:
        parts: From `open_parts`.
        extraction: Which features.
        head: Which head.
        recipe: How it is trained.
        per_class: Train on so many images of each class.
        share: Train on this share of the images of each class.
        seeds: How often, each time with other images (if there is a choice) and other initial weights.
        metric: What the task reports: "top1" or "mean_per_class".
        cache: A directory of feature caches, as for `extract`.
        storage: As for `extract`.
        batch_size: Rows of the denoiser in one call; does not change results.
        progress: Called with (what is done, images finished, all images, denoiser calls so far).

    Raises:
        InputError: If a class has too few images, or head and features do not fit together.
        NumericsError: If the training diverged.
    """
    started = perf_counter()
    labels = np.array(parts.train.labels)
    chosen = _chosen(parts, per_class, share, seeds)
    union = _union(chosen)
    calls = 0

    def features(what: str, source: Source, how: Extraction) -> FeatureCache:
        nonlocal calls
        before = calls

        def report(images: int, spent: int) -> None:
            nonlocal calls
            calls = before + spent
            if progress is not None:
                progress(what, images, len(source), calls)

        return extract(how, source, root=cache, storage=storage, batch_size=batch_size, progress=report)

    train = features("training images", parts.train.select(union.tolist()), extraction)
    test = features("test images", parts.test, unaugmented(extraction))
    extracted = perf_counter() - started
    heads: list[FittedHead] = []
    reports, applied = [], 0.0
    for seed, rows in enumerate(chosen):
        here = np.flatnonzero(np.isin(union[train.positions], rows))
        heads.append(
            fit_head(
                Subset(train, here),
                labels[union[train.positions[here]]],
                head,
                classes=parts.class_names,
                recipe=recipe,
                seed=seed,
                device=extraction.backbone.device,
            )
        )
        began = perf_counter()
        logits = heads[-1].logits(test)
        applied = applied or perf_counter() - began  # of the head that is kept
        reports.append(_report(logits, test, parts, extraction, metric))
    return Measured(
        metrics={
            **reports[0],
            "seeds": [{key: report[key] for key in ("top1", "mean_per_class")} for report in reports],
            "mean": float(np.mean([report["value"] for report in reports])),
            "sd": float(np.std([report["value"] for report in reports], ddof=1)) if seeds > 1 else None,
            "train": {"images": len(chosen[0]), "failed": len(train.failures), "per_class": per_class, "share": share},
            "head": heads[0].spec.to_dict() | {"parameters": heads[0].num_parameters},
            "features": {
                "columns": list(extraction.columns),
                "length": sum(prod(shape[1:]) for shape in train.shapes.values()),
            },
            "denoiser_calls": calls,
            "seconds": {"features": extracted, "heads": perf_counter() - started - extracted},
            "speed": speed(
                None if test.seconds is None else test.seconds + applied, len(test), str(extraction.backbone.device)
            ),
        },
        head=heads[0],
    )


def _chosen(parts: Parts, per_class: int | None, share: float | None, seeds: int) -> list[np.ndarray]:
    """Positions of the training images of each seed: some of each class, a share of each, or all."""
    if seeds < 1:
        raise InputError(f"At least one seed is needed; got {seeds}.")
    if per_class is not None and share is not None:
        raise InputError("Give a number of images per class or a share of them, not both.")
    labels = np.array(parts.train.labels)
    if per_class is not None:
        names = parts.class_names
        return [few_shot(labels, per_class=per_class, seed=seed, class_names=names) for seed in range(seeds)]
    if share is not None:
        return [fraction(labels, share=share, seed=seed) for seed in range(seeds)]
    return [np.arange(len(labels))] * seeds


def _union(chosen: list[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate(chosen))


def _report(
    logits: Float[Tensor, "n k"], test: FeatureCache, parts: Parts, extraction: Extraction, metric: str
) -> dict[str, Any]:
    truth = np.array(parts.test.labels)[test.positions]
    best = logits.max(dim=1, keepdim=True).values
    return summary(
        labels=truth.tolist(),
        predictions=logits.argmax(dim=1).tolist(),
        probabilities=logits.double().softmax(dim=1).numpy(),
        ties=((logits == best).sum(dim=1) > 1).tolist(),
        calls=[extraction.noise.draws * len(extraction.levels)] * len(truth),
        failures=len(test.failures),
        class_names=parts.class_names,
        metric="mean_per_class" if metric == "mean_per_class" else "top1",
    )


def limited(parts: Parts, limit: int | None) -> Parts:
    """The same with only the first test images."""
    return replace(parts, test=first_images(parts.test, limit))
