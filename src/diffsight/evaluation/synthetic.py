"""A report on a set of generated images: how diverse it is, and, under the name of an oracle, how near to real ones.

Only what needs no real image may choose anything in a zero-shot protocol: the Vendi score, the mean cosine, and how
often a zero-shot classifier sees in an image what was asked for. What compares with real images stands under
``"oracle"``, and is there to understand a result afterwards.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffsight.data.sources import SCHEMES, Source, open_source
from diffsight.data.splits import few_shot
from diffsight.errors import InputError
from diffsight.evaluation.embedding import Embedded, Embedder
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.evaluation.task import load_task
from diffsight.synthesis import diversity
from diffsight.synthesis.dataset import read_synthetic
from diffsight.synthesis.folder import MANIFEST
from diffsight.synthesis.training_set import TrainingSet, match_classes, open_training_set
from diffsight.zero_shot.classifier import DiffusionClassifier

ORACLE = "oracle: needs real images, so that nothing in a zero-shot protocol may be chosen by it"
NOTE = (
    "The Vendi score grows with the number of images, and all values depend on the features: compare sets at equal "
    "numbers and with the same features only."
)

_COMPARED = 6  # Images of a class that are compared with real ones: one, and as many neighbours as are looked at.

Report = Callable[[str, int, int, int], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RealImages:
    """What a set is compared with.

    Attributes:
        source: The images.
        class_names: Their classes in the order of the labels; None without labels.
    """

    source: Source
    class_names: tuple[str, ...] | None


def open_set(path: Path | str) -> tuple[TrainingSet, str | None]:
    """Open a set of images to report on.

    Args:
        path: What ``diffsight synthesize`` wrote, or any folder with one sub-folder for each class.

    Returns:
        The images, and the name of the model that drew them, where that is known.

    Raises:
        SourceError: If nothing is there, or it is damaged or not finished.
        InputError: If there are fewer than two classes.
    """
    images = open_training_set(path)
    made_here = images.synthetic and (Path(path) / MANIFEST).is_file()
    return images, str(read_synthetic(path).card["model"]["name"]) if made_here else None


def open_real(name: str, *, root: Path | None = None, split: str | None = None) -> RealImages:
    """Open real images by the name of a task, a task's file, a folder, or what `open_source` takes.

    Raises:
        InputError: If there is no such task.
        SourceError: If the data are not there.
    """
    scheme, colon, _ = name.partition(":")
    if colon and scheme in SCHEMES and scheme != "folder":
        source = open_source(name, root=root, split=split or "test")
        return RealImages(source=source, class_names=source.class_names if source.labels is not None else None)
    task = load_task(name)
    source = open_source(task.source, root=root, split=split or task.split)
    return RealImages(source=source, class_names=None if source.labels is None else task.names(source.class_names))


def report(
    images: TrainingSet,
    embedder: Embedder,
    *,
    real: RealImages | None = None,
    classifier: DiffusionClassifier | None = None,
    per_class: int | None = None,
    seed: int = 0,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Measure a set, class by class and as a whole, with the same number of images of each class.

    Args:
        images: The set.
        embedder: What gives the features.
        real: Real images to compare with, as an oracle: equally many, of each class where they have labels.
        classifier: A zero-shot classifier of these classes, for the label agreement.
        per_class: Images of each class; by default as many as the smallest class has. Give the same number to sets
            that are to be compared.
        seed: Chooses them.
        progress: Called with (what is done, images finished, all images, denoiser calls so far).

    Returns:
        All of it as JSON values. Images that cannot be read are listed under ``"failed"``, and all classes are cut to
        the same number once more.

    Raises:
        InputError: If a class has too few images, the classes are not the same, or too few images can be read.
        ImageError: If no image can be read.
    """
    names = images.class_names
    wanted = _wanted(images, real, per_class)
    least = 2
    if real is not None and real.class_names is not None:
        match_classes(names, real.class_names, of=real.source.name)  # before hours of features
        least = _COMPARED
    _refuse_few(wanted, least)
    chosen = few_shot(images.labels.tolist(), per_class=wanted, seed=seed, class_names=names)
    part = replace(images, source=images.source.select(chosen.tolist()), targets=images.targets[chosen])
    found = _embed(embedder, part.source, "images of the set", progress)
    failed = [{"id": id, "reason": reason} for id, reason in found.failures]
    groups = _by_class(part.labels[found.positions], names)
    others, oracle = None, None
    if real is not None:
        others, oracle, more = _real_side(real, embedder, names, wanted, seed, progress)
        failed += more
    each = min(len(rows) for rows in [*groups, *(others if others is not None else ())])
    _refuse_few(each, least)
    own = [found.values[rows[:each]] for rows in groups]
    values: dict[str, Any] = {
        "set": images.source.name,
        "synthetic": images.synthetic,
        "features": embedder.name,
        "dimensions": found.values.shape[1],
        "seed": seed,
        "note": NOTE,
        "pooled": _alone(np.concatenate(own)),
        "classes": [{"name": name, **_alone(rows)} for name, rows in zip(names, own, strict=True)],
        "agreement": None,
        "oracle": None,
        "failed": failed,
    }
    if classifier is not None:
        values["agreement"] = agreement(part, classifier, progress)
    if real is not None and oracle is not None:
        theirs = None if others is None else [oracle.values[rows[:each]] for rows in others]
        values["oracle"] = {"label": ORACLE, "real": real.source.name, **_oracle(own, theirs, oracle, names, seed)}
    return values


def agreement(images: TrainingSet, classifier: DiffusionClassifier, progress: Report | None = None) -> dict[str, Any]:
    """On which share of the images a zero-shot classifier names the class that was asked for.

    A tie does not agree; images that cannot be read do not count. Needs no real image, but where the classifier is the
    generator itself, it says how sure that is of its own pictures.

    Args:
        images: Images with classes.
        classifier: Of the same classes.
        progress: As for `report`.

    Raises:
        InputError: If its classes are not the same.
    """
    classifier = classifier if hasattr(classifier, "classes_") else classifier.fit()
    order = match_classes(images.class_names, [str(name) for name in classifier.classes_], of="The classifier")

    def told(done: int, calls: int) -> None:
        if progress is not None:
            progress("images classified", done, len(images.source), calls)

    verdicts = classifier.classify(images.source, progress=told)
    rows = [
        (int(label), verdict.label == order[label] and not verdict.tie)
        for label, verdict in zip(images.labels.tolist(), verdicts, strict=True)
        if verdict.failure is None
    ]
    if not rows:
        raise InputError(f"None of {len(verdicts)} images can be read.")
    right = np.array([agrees for _, agrees in rows])
    labels = np.array([label for label, _ in rows])
    return {
        "classifier": classifier.setup_.backbone.name,
        "images": len(rows),
        "value": asdict(wilson(int(right.sum()), len(right))),
        "classes": [
            {"name": name, "value": float(right[labels == index].mean()) if (labels == index).any() else None}
            for index, name in enumerate(images.class_names)
        ],
        "calls": sum(verdict.calls for verdict in verdicts),
    }


def _refuse_few(each: int, least: int) -> None:
    if each < least:
        what = "to compare with real ones " if least > 2 else ""
        raise InputError(f"A class has {each} images that can be used; {what}at least {least} of each are needed.")


def _wanted(images: TrainingSet, real: RealImages | None, per_class: int | None) -> int:
    if per_class is not None:
        return per_class
    counts = np.bincount(images.labels, minlength=len(images.class_names))
    if real is not None and real.class_names is not None and real.source.labels is not None:
        counts = np.concatenate([counts, np.bincount(real.source.labels, minlength=len(real.class_names))])
    return max(1, int(counts.min()))


def _real_side(
    real: RealImages, embedder: Embedder, names: Sequence[str], wanted: int, seed: int, progress: Report | None
) -> tuple[list[Int[np.ndarray, " _"]] | None, Embedded, list[dict[str, str]]]:
    """Features of as many real images, and which rows are of each class of the set."""
    source, labels = real.source, real.source.labels
    if real.class_names is None or labels is None:
        count = min(len(source), wanted * len(names))
        chosen = np.sort(np.random.default_rng(seed).permutation(len(source))[:count])
    else:
        order = match_classes(names, real.class_names, of=source.name)
        chosen = few_shot(labels, per_class=wanted, seed=seed, class_names=real.class_names)
    found = _embed(embedder, source.select(chosen.tolist()), "real images", progress)
    failed = [{"id": id, "reason": reason} for id, reason in found.failures]
    if real.class_names is None or labels is None:
        return None, found, failed
    groups = _by_class(np.array(labels)[chosen][found.positions], real.class_names)
    return [groups[place] for place in order], found, failed


def _oracle(
    own: Sequence[Float[np.ndarray, "_ _"]],
    theirs: Sequence[Float[np.ndarray, "_ _"]] | None,
    real: Embedded,
    names: Sequence[str],
    seed: int,
) -> dict[str, Any]:
    generated = np.concatenate(own)
    if theirs is not None:
        classes = [
            {"name": name, **_compared(b, a, seed, fid=False)} for name, a, b in zip(names, own, theirs, strict=True)
        ]
        return {**_compared(np.concatenate(theirs), generated, seed), "classes": classes}
    count = min(len(generated), len(real.values))
    rng = np.random.default_rng(seed)
    a, b = (side[rng.permutation(len(side))[:count]] for side in (real.values, generated))
    return {**_compared(a, b, seed), "classes": None}


def _alone(features: Float[np.ndarray, "n d"]) -> dict[str, Any]:
    return {
        "images": len(features),
        "vendi": diversity.vendi_score(features),
        "cosine": diversity.mean_cosine(features),
    }


def _compared(
    real: Float[np.ndarray, "n d"], generated: Float[np.ndarray, "n d"], seed: int, *, fid: bool = True
) -> dict[str, Any]:
    """Of a class there are too few images for a covariance, so that it gets no FID."""
    return {
        "images": len(generated),
        **({"fid": diversity.frechet_distance(real, generated)} if fid else {}),
        "kid": asdict(diversity.kernel_distance(real, generated, seed=seed)),
        **asdict(diversity.neighbourhood(real, generated)),
        "real_alone": _alone(real),
    }


def _embed(embedder: Embedder, source: Source, what: str, progress: Report | None) -> Embedded:
    def told(done: int, calls: int) -> None:
        if progress is not None:
            progress(what, done, len(source), calls)

    return embedder.embed(source, told)


def _by_class(labels: Int[np.ndarray, " n"], names: Sequence[str]) -> list[Int[np.ndarray, " _"]]:
    return [np.flatnonzero(labels == index) for index in range(len(names))]
