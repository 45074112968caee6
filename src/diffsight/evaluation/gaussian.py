"""GDC on a task: no network is trained, a Gaussian for each class on the features of generated images decides."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from diffsight.errors import InputError
from diffsight.evaluation.embedding import Embedder
from diffsight.evaluation.metrics.summary import summary
from diffsight.evaluation.task import Task
from diffsight.synthesis.gaussian import GaussianClassifier
from diffsight.synthesis.training_set import TrainingSet, match_classes


def evaluate_gaussian(
    images: TrainingSet,
    task: Task,
    embedder: Embedder,
    *,
    classifier: GaussianClassifier | None = None,
    limit: int | None = None,
    root: Path | None = None,
    progress: Callable[[str, int, int, int], None] | None = None,
) -> dict[str, Any]:
    """Fit Gaussians to generated images and measure them on a task's real ones (after Qi et al. 2412.12594).

    Args:
        images: Generated images, of the task's classes.
        task: From `load_task` or `folder_task`.
        embedder: What gives the features of both.
        classifier: How; by default one covariance for all classes with Ledoit and Wolf's shrinkage.
        limit: Only the first images of the task.
        root: Where its data lie, if not in a standard place.
        progress: Called with (what is done, images finished, all images, denoiser calls so far).

    Returns:
        The metrics of `summary`, and what they depend on. ``calls`` are those of a test image.

    Raises:
        InputError: If the images are not generated, the classes are not the same, or a covariance is singular.
        SourceError: If the task's data are not there.
        ImageError: If no image can be read.
    """
    if not images.synthetic:
        raise InputError(
            f"{images.source.name} is not known to be synthetic, and zero-shot references must be: make them by "
            "'diffsight synthesize'. For heads on real images there is 'diffsight features probe'."
        )
    source = task.open(limit=limit, root=root)
    names = task.names(source.class_names)
    order = match_classes(names, images.class_names, of=images.source.name)
    started, spent = perf_counter(), 0

    def told(what: str, total: int) -> Callable[[int, int], None]:
        return lambda done, calls: progress(what, done, total, spent + calls) if progress is not None else None

    references = embedder.embed(images.source, told("references", len(images.source)))
    spent += references.calls
    model = (classifier or GaussianClassifier()).fit(references.values, images.labels[references.positions])
    if len(model.classes_) < len(names):
        missing = sorted(set(range(len(names))) - set(model.classes_.tolist()))
        raise InputError(f"No image of {images.class_names[missing[0]]!r} can be read.")
    fitted = perf_counter() - started
    test = embedder.embed(source, told("test images", len(source)))
    scores = model.decision_function(test.values)[:, order]
    truth = [None if source.labels is None else source.labels[position] for position in test.positions.tolist()]
    metrics = summary(
        labels=truth,
        predictions=scores.argmax(axis=1).tolist(),
        probabilities=model.predict_proba(test.values)[:, order],
        ties=((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).tolist(),
        calls=[embedder.calls_per_image] * len(truth),
        failures=len(test.failures),
        class_names=names,
        metric=task.metric,
    )
    return metrics | {
        "label": f"zero-shot: Gaussians on features of generated images (GDC), {model.covariance} covariance; features "
        f"of {embedder.name}",
        "task": task.name,
        "set": images.source.name,
        "features": {"name": embedder.name, "length": int(test.values.shape[1]), "identity": embedder.identity()},
        "covariance": model.covariance,
        "shrinkage": [float(each) for each in model.shrinkage_],
        "references": {"images": len(references.values), "failed": len(references.failures)},
        "failures": [{"id": id, "reason": reason} for id, reason in (*references.failures, *test.failures)],
        "denoiser_calls": spent + test.calls,
        "seconds": {"fit": fitted, "test": perf_counter() - started - fitted},
    }
