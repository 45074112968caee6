"""The parts of the benchmark of synthesis: what each measures, what it needs, and its result as JSON values."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log2
from multiprocessing import current_process
from time import perf_counter
from typing import Any

from synthesis_sets import (
    FILTERS,
    TRICKS,
    Bench,
    backbone_of,
    draw_real,
    draw_set,
    pack_source,
    photographs_of,
    same_set,
    task_of,
    unpack,
)
from synthesis_speed import draw_speed, use_speed

from diffsight.cli.options import make_policy
from diffsight.data.splits import few_shot
from diffsight.evaluation import runner
from diffsight.evaluation.distilling import Recipe, label
from diffsight.evaluation.embedding import DiffusionEmbedder, diffusion_embedder
from diffsight.evaluation.gaussian import evaluate_gaussian
from diffsight.evaluation.synthetic import agreement, open_real, report
from diffsight.evaluation.trained import adapted, evaluate_trained, make_trained_job
from diffsight.store.disk import digest, to_json
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.trainer import train
from diffsight.zero_shot.classifier import DiffusionClassifier
from diffsight.zero_shot.settings import Settings

REAL, DISTILLED, BOTH = "real", "distilled", "distilled+merged"
PROTOCOLS = {REAL: "supervised", DISTILLED: "distilled", BOTH: "distilled"}
TRICK_SETS, FILTER_SETS = tuple(TRICKS), tuple(FILTERS)
FIRST_FILTERS, SINGLE_FILTERS = FILTER_SETS[:4], FILTER_SETS[4:]
PARTS = ("speed", "sets", "zero-shot", "gdc", "diversity", "train")
_RUN = ("test",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing to measure.

    Attributes:
        kind: What: a name in `WORK`.
        name: Of which images or network.
        network: What is trained, if something is.
        seed: Of the training.
    """

    kind: str
    name: str = ""
    network: str = ""
    seed: int = 0

    @property
    def id(self) -> str:
        """What it is called."""
        words = [self.kind, self.name, self.network, f"seed {self.seed}" if self.network else ""]
        return " ".join(word for word in words if word)

    @property
    def needs(self) -> tuple[str, ...]:
        """Sets that have to be there."""
        if self.kind not in ("train", "gdc", "diversity"):
            return ()
        return (DISTILLED, "merged") if self.name == BOTH else (self.name,)

    @property
    def alone(self) -> bool:
        """Whether nothing else may run beside it: speed is measured."""
        return self.kind in ("draw-speed", "use-speed")

    def key(self, bench: Bench) -> str:
        """File name of the result."""
        id, sets = self.id.replace(" ", "_"), [bench.set_key(name) for name in self.needs]
        if sets:
            id = f"{id}-{digest(to_json(sets, 'A key').encode())[:6]}"
        match self.kind:
            case "set":
                return f"set-{bench.set_key(self.name)}"
            case "train":
                return bench.key(id, "epochs", "batch", *_RUN)
            case "gdc":
                return bench.key(id, *_RUN)
            case "diversity":
                return bench.key(id, "diverse", "agreement", "draws")
            case "zero-shot":
                return bench.key(id, "zero_shot")
            case _:
                return bench.key(id, "rows", "calls", "networks", "speed_images", "repeats")


def parts_of(bench: Bench, sets: Mapping[str, Mapping[str, Any]], kinds: tuple[str, ...]) -> list[Part]:
    """All parts that are asked for, the most important first.

    Args:
        bench: The settings.
        sets: Results of the sets that are finished: which filters are worth a set of their own follows from them.
        kinds: Some of `PARTS`.
    """
    filters = [name for name in FIRST_FILTERS if name in bench.filters]
    if "filters-usual" in sets:
        dropped = sets["filters-usual"]["dropped"]
        filters += [name for name in SINGLE_FILTERS if name in bench.filters and same_set(name, dropped) == name]
    main, more = (tuple(name for name in some if name in bench.tricks) for some in (TRICK_SETS[:5], TRICK_SETS[5:]))
    data = [REAL, *main, DISTILLED, BOTH, *filters, *more]
    first, *others = bench.networks
    found = [Part(kind="draw-speed"), Part(kind="use-speed")] if "speed" in kinds else []
    if "sets" in kinds:
        # The slowest first: labels of photographs, and sets whose labels are checked.
        slow = [name for name in filters if FILTERS[name].get("scorer")]
        names = [*slow, DISTILLED, *main, REAL, *more, *(name for name in filters if name not in slow)]
        found += [Part(kind="set", name=name) for name in names]
    if "zero-shot" in kinds:
        found.append(Part(kind="zero-shot"))
    trainings = [
        [Part(kind="train", name=name, network=first, seed=seed) for name in data]
        + [Part(kind="train", name=n, network=o, seed=seed) for o in others for n in (REAL, *main, DISTILLED, BOTH)]
        for seed in range(bench.seeds if "train" in kinds else 0)
    ]
    # Other seeds come last: what is cut short has one of everything.
    once = [Part(kind=kind, name=name) for kind in ("gdc", "diversity") if kind in kinds for name in (*main, *more)]
    return [*found, *(trainings[0] if trainings else ()), *once, *(part for each in trainings[1:] for part in each)]


def work_on(bench: Bench, part: Part) -> dict[str, Any]:
    """Do a part."""
    started = perf_counter()
    match part.kind:
        case "set":
            found = _make_set(bench, part.name)
        case "train":
            found = _train(bench, part)
        case "gdc":
            found = _gdc(bench, part.name)
        case "diversity":
            found = _diversity(bench, part.name)
        case "zero-shot":
            found = _zero_shot(bench)
        case "draw-speed":
            found = draw_speed(bench)
        case _:
            found = use_speed(bench)
    facts = {"part": part.kind, "name": part.name, "network": part.network, "seed": part.seed}
    return {**facts, **found, "wall": perf_counter() - started}


def _make_set(bench: Bench, name: str) -> dict[str, Any]:
    if name == REAL:
        images = draw_real(bench)
        pack_source(bench.packed(name), images)
        return {"images": len(images.source)}
    return _label(bench) if name == DISTILLED else draw_set(bench, name)


def _label(bench: Bench) -> dict[str, Any]:
    """Let the zero-shot classifier label photographs, with few draws."""
    classes = task_of()[1]
    photographs = photographs_of(bench)
    recipe = Recipe(
        backbone=backbone_of(bench),
        classes=classes,
        photographs=photographs,
        scoring=Settings(policy=make_policy(None, bench.draws)),
    )
    started, calls = perf_counter(), 0

    def count(_: str, done: int, total: int, so_far: int) -> None:
        nonlocal calls
        calls = so_far

    out = bench.work / "labels" / bench.set_key(DISTILLED)
    images = label(recipe, out, batch_size=bench.calls, progress=count)
    seconds = perf_counter() - started
    pack_source(bench.packed(DISTILLED), images)
    truth = dict(zip(photographs.ids, photographs.labels or (), strict=True))
    right = sum(truth[id] == label for id, label in zip(images.source.ids, images.labels.tolist(), strict=True))
    facts = {"images": len(images.source), "right": right, "calls": calls, "seconds": seconds}
    return {**facts, "device": str(recipe.backbone.device)}


def train_settings(bench: Bench, network: str, images: int) -> TrainSettings:
    """The default recipe, with larger batches for more images, and a rate that grows with their root."""
    batch = bench.batch or max(32, min(512, 2 ** round(log2(max(images, 1) / 32))))
    return TrainSettings(
        network=network,
        epochs=bench.epochs,
        batch_size=batch,
        learning_rate=TrainSettings().learning_rate * (batch / TrainSettings().batch_size) ** 0.5,
        patience=None,
    )


def _train(bench: Bench, part: Part) -> dict[str, Any]:
    """Train once, and test on the real test photographs. The epoch is chosen by held-out images of the same kind."""
    sets = [unpack(bench.packed(name)) for name in part.needs]
    images = sum(len(each.source) for each in sets)
    settings = train_settings(bench, part.network, images)
    out = bench.work / "networks" / part.key(bench)
    started = perf_counter()
    made = train(
        sets,
        out,
        settings=settings,
        protocol=PROTOCOLS.get(part.name, "zero-shot"),
        seed=part.seed,
        device=bench.device,
    )
    seconds, (model,) = perf_counter() - started, made.classifiers
    job = make_trained_job(task_of()[0], model, limit=bench.test)
    metrics = evaluate_trained(job, out / "test", commit_every=bench.test)
    found = adapted(job) if part.seed == 0 and "BatchNorm" in str(model.network) else None
    transductive = None if found is None else evaluate_trained(found, out / "adapted", commit_every=bench.test)
    shutil.rmtree(out / f"seed-{part.seed}" / "run", ignore_errors=True)  # What is larger than the network itself.
    (facts,) = made.summary["seeds"]
    return {
        "images": images,
        "top1": metrics["top1"]["value"],
        "tested": metrics["labelled"],
        "adapted": None if transductive is None else transductive["top1"]["value"],
        "classes": {each["name"]: each["correct"] / max(each["images"], 1) for each in metrics["per_class"]},
        "ece": metrics["calibration"]["ece"],
        "validation": facts["validation"],
        "epochs": facts["epochs"],
        "kept_epoch": facts["kept_epoch"],
        "parameters": facts["parameters"],
        "settings": settings.to_dict(),
        "seconds": seconds,
        "device": str(model.device),
    }


def _embedder(bench: Bench) -> DiffusionEmbedder:
    """The model's own features, kept in a folder of each process: a cache has one writer."""
    cache = bench.work / "features" / current_process().name
    return diffusion_embedder(backbone_of(bench), cache=cache, batch_size=bench.calls)


def _gdc(bench: Bench, name: str) -> dict[str, Any]:
    """Gaussians on the model's own features of the same images."""
    found = evaluate_gaussian(unpack(bench.packed(name)), task_of()[0], _embedder(bench), limit=bench.test)
    facts = {"top1": found["top1"], "tested": found["labelled"], "images": found["references"]["images"]}
    return {
        **facts,
        "features": found["features"]["name"],
        "calls": found["denoiser_calls"],
        "seconds": found["seconds"],
    }


def _diversity(bench: Bench, name: str) -> dict[str, Any]:
    """The report on a set, beside test photographs, and how often the classifier sees what was asked for."""
    images, task = unpack(bench.packed(name)), task_of()[0]
    found = report(images, _embedder(bench), real=open_real(task.name), per_class=min(bench.diverse, bench.count(name)))
    pooled = {key: found["oracle"][key] for key in ("fid", "kid", "precision", "recall", "density", "coverage")}
    chosen = few_shot(images.labels.tolist(), per_class=min(bench.agreement, bench.count(name)), seed=0)
    part = replace(images, source=images.source.select(chosen.tolist()), targets=images.targets[chosen])
    policy = make_policy(None, bench.draws)
    judge = DiffusionClassifier(backbone_of(bench), list(images.class_names), policy=policy, batch_size=bench.calls)
    agreed = agreement(part, judge)
    return {
        "features": found["features"],
        "pooled": found["pooled"],
        "real": found["oracle"]["real_alone"],
        "oracle": pooled,
        "agreement": agreed["value"],
        "agreement_images": agreed["images"],
        "agreement_classes": agreed["classes"],
    }


def _zero_shot(bench: Bench) -> dict[str, Any]:
    """The diffusion model as its own classifier, with the default policy."""
    started = perf_counter()
    job = runner.make_job(task_of()[0], backbone_of(bench), limit=bench.zero_shot)
    out = bench.work / "zero-shot" / bench.key("zero-shot", "zero_shot")
    metrics = runner.evaluate(job, out, batch_size=bench.calls)
    facts = {"top1": metrics["top1"], "tested": metrics["labelled"], "calls": metrics["calls"]}
    return {**facts, "seconds": perf_counter() - started, "device": str(backbone_of(bench).device)}
