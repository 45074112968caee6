"""The image sets of the benchmark of synthesis: what each is made with, drawn once, and packed for everything after."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from diffsight.backbones import load
from diffsight.backbones.base import Backbone
from diffsight.backbones.sampling import Sampler
from diffsight.cli.label_scorers import SELF, make_scorer
from diffsight.data.sources import Source, open_source
from diffsight.data.splits import few_shot
from diffsight.evaluation.task import Task, load_task
from diffsight.store.disk import digest, make, put, to_json
from diffsight.synthesis.bag import TrickOptions, make_trick
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.filters import FLAT, NEAR, REPEATED, SAME, Filters
from diffsight.synthesis.generator import synthesize
from diffsight.synthesis.plan import SynthesisSettings, fit_domains
from diffsight.synthesis.training_set import TrainingSet
from diffsight.synthesis.tricks import Guidance

TASK = "fashion-mnist"
# What tiny-fashion was trained on: recipes/tiny_fashion.py.
OWN_DOMAINS = ("photo", "blurry photo", "negative", "outline drawing", "silhouette", "low-contrast photo")
# Name of a set: trick, domains, and the one guidance scale where it is not the usual.
TRICKS: Mapping[str, tuple[str, str | None, float | None]] = {
    "base": ("base", None, None),
    "class-prompt": ("class-prompt", None, None),
    "multi-domain": ("multi-domain", "own", None),
    "random-guidance": ("random-guidance", None, None),
    "merged": ("merged", "own", None),
    "multi-domain-paper": ("multi-domain", "paper", None),
    "base-7.5": ("base", None, 7.5),
}
_NONE = {"flat": 0.0, "repeated": False, "near_duplicates": 0}
FILTERS: Mapping[str, Mapping[str, Any]] = {
    "filters-none": _NONE,
    "filters-usual": {},
    "filters-label": _NONE | {"scorer": SELF},
    "filters-all": {"scorer": SELF},
    "filters-flat": _NONE | {"flat": 2.0},
    "filters-repeated": _NONE | {"repeated": True},
    "filters-near": _NONE | {"near_duplicates": SAME},
}
SHOWN = 12  # Images of each class that are kept for pictures.


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all results have in common; each depends on a part of it, and is kept under that part's hash.

    Attributes:
        work: Where everything is kept.
        model: What draws, labels and gives features.
        device: Where; None for the usual one.
        dtype: In which precision; None for the usual one.
        per_class: Images of each class in every training set.
        filter_per_class: The same, in the sets that are drawn with different filters.
        filter_trick: Trick of those.
        steps: Of the sampler.
        rows: Images drawn at once.
        calls: Rows of the denoiser in one call that scores.
        tricks: Names of the sets that are drawn, beside those with other filters.
        filters: Names of those.
        networks: Which are trained.
        seeds: How often.
        epochs: Of each training.
        batch: Images of a step; None for a 32nd part of an epoch, from 32 to 512.
        test: Images to test on, from the first.
        zero_shot: The same, for the zero-shot classifier.
        photographs: Unlabelled ones that are distilled.
        draws: For each of them, at most.
        agreement: Images of each class whose labels are checked for the table of diversity.
        diverse: Images of each class in that table.
        speed_images: That are drawn, and classified zero-shot, to measure speed.
        repeats: Of each measurement of speed.
    """

    work: Path
    model: str
    device: str | None
    dtype: str | None
    per_class: int
    filter_per_class: int
    filter_trick: str
    steps: int
    rows: int
    calls: int
    tricks: tuple[str, ...]
    filters: tuple[str, ...]
    networks: tuple[str, ...]
    seeds: int
    epochs: int
    batch: int | None
    test: int
    zero_shot: int
    photographs: int
    draws: int
    agreement: int
    diverse: int
    speed_images: int
    repeats: int

    def key(self, part: str, *fields: str) -> str:
        """File name of a part's result: its name, and a hash of the settings that it depends on."""
        values = asdict(self)
        chosen = {name: values[name] for name in ("model", "dtype", "steps", *fields)}
        return f"{part}-{digest(to_json([part, chosen], 'A key').encode())[:10]}"

    def set_key(self, name: str) -> str:
        """File name of a set."""
        if name in FILTERS:
            return self.key(name, "filter_per_class", "filter_trick")
        return self.key(name, "photographs", "draws") if name == "distilled" else self.key(name, "per_class")

    def count(self, name: str) -> int:
        """Images of each class in a set."""
        return self.filter_per_class if name in FILTERS else self.per_class

    def packed(self, name: str) -> Path:
        """File of a set's images."""
        return self.work / "packed" / f"{self.set_key(name)}.npz"


@cache
def backbone_of(bench: Bench) -> Backbone:
    """The model, loaded once by each process."""
    return load(bench.model, device=bench.device, dtype=bench.dtype)


def task_of() -> tuple[Task, Classes]:
    """What is to be recognised."""
    task = load_task(TASK)
    return task, Classes.of_task(task.class_names or ())


def settings_of(bench: Bench, name: str, scorer: str | None) -> SynthesisSettings:
    """How a set is drawn."""
    trick, domains, scale = TRICKS[bench.filter_trick if name in FILTERS else name]
    guidance = TrickOptions().guidance if scale is None else Guidance(low=scale, high=scale)
    options = TrickOptions(domains=OWN_DOMAINS if domains == "own" else None, guidance=guidance)
    if domains == "paper":
        options, _ = fit_domains(trick, options, backbone_of(bench), task_of()[1].names)
    return SynthesisSettings(
        trick=make_trick(trick, options),
        per_class=bench.count(name),
        sampler=Sampler(steps=bench.steps),
        filters=Filters(**{**FILTERS.get(name, {}), "scorer": scorer}),
    )


def draw_set(bench: Bench, name: str) -> dict[str, Any]:
    """Draw a set and pack it; the same call goes on after an interruption."""
    backbone, classes = backbone_of(bench), task_of()[1]
    asked = FILTERS.get(name, {}).get("scorer")
    scorer = make_scorer(asked, backbone, classes, device=bench.device, dtype=bench.dtype)
    settings = settings_of(bench, name, scorer.name if scorer else None)
    calls = 0

    def count(_: int, so_far: int) -> None:
        nonlocal calls
        calls = so_far

    started, out = perf_counter(), bench.work / "sets" / bench.set_key(name)
    made = synthesize(backbone, classes, out, settings=settings, scorer=scorer, batch_size=bench.rows, progress=count)
    seconds = perf_counter() - started
    sheets = bench.work / "contact"
    make(sheets)
    for sheet in out.glob("contact-*.png"):
        put(sheets / f"{name}-{sheet.name}", sheet.read_bytes())
    images = np.stack([np.asarray(made.image(number)) for number in range(len(made))])
    pack(bench.packed(name), images, made.labels, made.classes, made.files, synthetic=True)
    first = np.concatenate([np.flatnonzero(made.labels == label)[:SHOWN] for label in range(len(made.classes))])
    sample = bench.work / "samples" / f"{bench.set_key(name)}.npz"
    pack(sample, images[first], made.labels[first], made.classes, [made.files[row] for row in first], synthetic=True)
    domains = sorted({*made.rows.column("domain").to_pylist()} - {""})
    facts = {key: made.card[key] for key in ("images", "missing", "drawn", "dropped")}
    return {**facts, "domains": domains, "seconds": seconds, "calls": calls, "device": str(backbone.device)}


def same_set(name: str, dropped: Mapping[str, int]) -> str:
    """Which set one with a single filter must be equal to: a filter that finds nothing is none.

    Args:
        name: A set with a single filter.
        dropped: How many images each of the usual filters has dropped.
    """
    active = {reason for reason in (FLAT, REPEATED, NEAR) if dropped.get(reason)}
    own = {"filters-flat": FLAT, "filters-repeated": REPEATED, "filters-near": NEAR}[name]
    if own not in active:
        return "filters-none"
    return "filters-usual" if active == {own} else name


def draw_real(bench: Bench) -> TrainingSet:
    """Labelled training photographs, as many of each class as a generated set has: for the ceiling."""
    task, classes = task_of()
    source = open_source(task.source, split="train")
    chosen = few_shot(list(source.labels or ()), per_class=bench.per_class, seed=0)
    source = source.select(chosen.tolist())
    return TrainingSet(source=source, class_names=tuple(classes.names), targets=np.array(source.labels))


def photographs_of(bench: Bench) -> Source:
    """Training photographs without their labels, drawn without regard to them."""
    source = open_source(task_of()[0].source, split="train")
    return source.select(np.sort(np.random.default_rng(0).permutation(len(source))[: bench.photographs]).tolist())


def pack(
    path: Path, images: np.ndarray, targets: np.ndarray, names: Sequence[str], ids: Sequence[str], *, synthetic: bool
) -> None:
    """Keep images of one size in one file; grey ones with one channel."""
    if images.ndim == 4 and (images == images[..., :1]).all():
        images = images[..., 0]
    buffer = io.BytesIO()
    arrays = {"images": images, "targets": targets, "names": np.array(names), "ids": np.array(ids)}
    np.savez_compressed(buffer, allow_pickle=False, synthetic=np.array(synthetic), **arrays)
    make(path.resolve().parent)
    put(path, buffer.getvalue())


@lru_cache(maxsize=4)
def unpack(path: Path) -> TrainingSet:
    """What `pack` kept, in memory."""
    with np.load(path) as kept:
        images, targets, ids = kept["images"], kept["targets"], tuple(map(str, kept["ids"]))
        names, synthetic = tuple(map(str, kept["names"])), bool(kept["synthetic"])
    place = {id: number for number, id in enumerate(ids)}

    def read(id: str) -> Image.Image:
        return Image.fromarray(images[place[id]]).convert("RGB")

    source = Source(
        name=path.stem,
        ids=ids,
        read=read,
        digest=lambda id: hashlib.sha256(images[place[id]].tobytes()).digest(),
        labels=tuple(targets.tolist()) if targets.ndim == 1 else None,
        class_names=names,
    )
    return TrainingSet(source=source, class_names=names, targets=targets, synthetic=synthetic)


def pack_source(path: Path, images: TrainingSet) -> None:
    """Keep images of any source."""
    pictures = np.stack([np.asarray(sample.load()) for sample in images.source])
    pack(path, pictures, images.targets, images.class_names, images.source.ids, synthetic=images.synthetic)
