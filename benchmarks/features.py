"""Frozen features: how good they are.

    python benchmarks/features.py table      # Fashion-MNIST, 10,000 test images, 1 %, 10 % and all labels
    python benchmarks/features.py transfer   # digits, and crops of photographs, which the model has never seen
    python benchmarks/features.py diffeed    # DifFeed, which trains through the network, on 1 % and 10 % of the labels

The second needs scikit-image's photographs: ``pip install '.[bench]'``. Each prints a table and adds it to ``--out``.
Features are kept in ``--cache`` and finished parts in ``--out``: the same command goes on after an interruption.
tiny-fashion was trained on photographs of Fashion-MNIST's classes: the table compares heads and checks the machinery,
and is no claim about diffusion features in general.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from feature_data import crops
from zero_shot import say

from diffsight.backbones import load
from diffsight.data.images import ImageTransform, images_from
from diffsight.data.sources import Source, open_source
from diffsight.data.splits import few_shot, fraction
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.features.cache import FeatureCache, extract
from diffsight.features.diffeed import DifFeedClassifier
from diffsight.features.extraction import Extraction, plan
from diffsight.features.heads.columns import ArrayColumns, Columns, Subset
from diffsight.features.heads.fitted import top1
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.logistic import Logistic
from diffsight.features.heads.neighbours import Neighbours
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.specs import CNN, MLP, Attention, DifFormer, HeadSpec, Linear, NetworkSpec
from diffsight.features.heads.training import Probe, fit_heads
from diffsight.features.pooling import Pool
from diffsight.features.search import search

SHARES = (0.01, 0.1, 1.0)
# Fewer passes over more images: 30,000, 90,000 and 300,000 of them.
EPOCHS = {0.01: 50, 0.1: 15, 1.0: 5}
SEEDS = {0.01: 3, 0.1: 3, 1.0: 1}
STEPS = {0.01: 1000, 0.1: 1000, 1.0: 100}  # Of L-BFGS, at most, for each of a dozen strengths of the penalty.
DIM = 128  # Of the transformers: the width of the features.


def untrained(backbone):  # noqa: ANN001, ANN201
    """The same model with a UNet that has learnt nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_config(backbone.unet.config).to(backbone.device)
    return replace(
        backbone,
        name="random UNet",
        unet=unet.eval().requires_grad_(False),
        provenance={"revision": "random", "weights": "seed 0"},
    )


def pixels(source: Source, size: int) -> ArrayColumns:
    """The images themselves, in grey, as features."""
    transform = ImageTransform(size=size, grayscale=True)
    images = images_from(source)
    return ArrayColumns({"pixels": torch.stack([transform(images[i])[None, :1] for i in range(len(images))])})


def measure(
    entries: Sequence[tuple[str, Columns, Columns, tuple[str, ...], HeadSpec]],
    labels: np.ndarray,
    truth: np.ndarray,
    chosen: np.ndarray,
    *,
    share: float,
    seed: int,
    found: dict[str, tuple[float, int]],
    keep: Callable[[], None],
    device: str,
) -> None:
    """Add accuracy and parameters of each entry to what was found: networks on the same features train together."""
    entries = [entry for entry in entries if entry[0] not in found]
    for train in {id(entry[1]): entry[1] for entry in entries}.values():
        networks = [entry for entry in entries if entry[1] is train and isinstance(entry[4], NetworkSpec)]
        if networks:
            fitted = fit_heads(
                Subset(train, chosen),
                labels[chosen],
                [Probe(columns=columns, head=head) for _, _, _, columns, head in networks],
                recipe=Recipe(epochs=EPOCHS[share]),
                seed=seed,
                device=device,
            )
            for (name, _, test, _, _), one in zip(networks, fitted, strict=True):
                (accuracy,) = top1([one.head], test, truth)
                found[name] = accuracy, one.head.num_parameters
            keep()
    for name, train, test, columns, head in entries:
        if not isinstance(head, NetworkSpec):
            head = replace(head, max_iter=STEPS[share]) if isinstance(head, Logistic) else head
            one = fit_head(Subset(train, chosen), labels[chosen], head, names=columns, seed=seed, device=device)
            (accuracy,) = top1([one], test, truth)
            found[name] = accuracy, one.num_parameters
            keep()


def features(extraction: Extraction, source: Source, args: argparse.Namespace, what: str) -> FeatureCache:
    """Features from the cache, or into it."""
    last = time.monotonic()

    def report(images: int, calls: int) -> None:
        nonlocal last
        if time.monotonic() - last > 20:
            last = time.monotonic()
            say(f"  {what}: {images:,} of {len(source):,} images")

    return extract(extraction, source, root=args.cache, storage="fp16", batch_size=256, progress=report)


def table(args: argparse.Namespace) -> dict[str, object]:
    """Every head on the best features that a search finds, beside pixels and an untrained UNet."""
    backbone = load(args.model, device=args.device, dtype="fp32")
    train, test = (open_source("torchvision:fashion-mnist", split=split) for split in ("train", "test"))
    if args.limit:
        train, test = (source.select(range(args.limit)) for source in (train, test))
    labels, truth = np.array(train.labels), np.array(test.labels)
    pilot = few_shot(labels, per_class=200 if not args.limit else 20, seed=1)
    found = search(backbone, train.select(pilot.tolist()), labels[pilot], root=args.cache, batch_size=256)
    best = found.best
    say(f"Found on {sum(found.images)} training images: {best} ({found.calls} calls, {found.seconds:.0f} s)")
    layers = list(dict.fromkeys([best.layer, *(t.layer for t in found.trials if t.stage == "pool")]))[:3]
    levels = sorted({best.timestep, *sorted(found.timesteps, key=lambda level: abs(level - best.timestep))[:3]})[:3]
    if best.timestep not in levels:
        levels[0] = best.timestep
    main = f"{best.layer}@{best.timestep}"
    extraction = plan(backbone, layers=layers, timesteps=levels, pool=Pool(size=4))
    random = plan(untrained(backbone), layers=[best.layer], timesteps=[best.timestep], pool=Pool(size=4))
    ours = [features(extraction, source, args, "trained UNet") for source in (train, test)]
    theirs = [features(random, source, args, "random UNet") for source in (train, test)]
    raw = [pixels(source, 28) for source in (train, test)]
    size = best.size
    entries = [
        ("raw pixels, logistic", *raw, ("pixels",), Logistic()),
        ("raw pixels, kNN", *raw, ("pixels",), Neighbours()),
        ("random UNet, logistic", *theirs, theirs[0].names, Logistic(pool=2)),
        ("random UNet, linear", *theirs, theirs[0].names, Linear(pool=size)),
        ("random UNet, kNN", *theirs, theirs[0].names, Neighbours(pool=size)),
        ("kNN, k=20", *ours, (main,), Neighbours(pool=size)),
        ("logistic, grid 2", *ours, (main,), Logistic(pool=2)),
        ("A linear, grid 1", *ours, (main,), Linear(pool=1)),
        (f"A linear, grid {size} (found)", *ours, (main,), Linear(pool=size)),
        ("B MLP 512", *ours, (main,), MLP(hidden=(512,), pool=size)),
        ("C CNN 128-128", *ours, (main,), CNN(widths=(DIM, DIM))),
        ("D attention, 2 blocks", *ours, (main,), Attention()),
        ("D' attention, 2 blocks", *ours, (main,), DifFormer(dim=DIM)),
        (f"DifFormer, {len(layers)} layers × {len(levels)} t", *ours, ours[0].names, DifFormer(dim=DIM, size=2)),
    ]
    settings = {"best": asdict(best), "layers": layers, "timesteps": levels, "images": [len(train), len(test)]}
    settings |= {"epochs": list(EPOCHS.values()), "seeds": list(SEEDS.values())}
    before = _kept(args.out).get("table", {})
    same = before.get("settings") == settings
    result = before["heads"] if same else {name: {} for name, *_ in entries}
    parts = before.get("parts", {}) if same else {}

    def keep() -> None:
        _keep(args.out, "table", {"settings": settings, "heads": result, "parts": parts})

    for share in SHARES:
        if str(share) in next(iter(result.values())):
            continue
        started = time.perf_counter()
        runs = [parts.setdefault(f"{share} {seed}", {}) for seed in range(SEEDS[share])]
        for seed, run in enumerate(runs):
            chosen = fraction(labels, share=share, seed=seed)
            how = {"share": share, "seed": seed, "keep": keep, "device": args.device}
            measure(entries, labels, truth, chosen, found=run, **how)
        for name, cells in result.items():
            values = [run[name][0] for run in runs]
            interval = wilson(round(values[0] * len(truth)), len(truth))
            cells["parameters"] = runs[0][name][1]
            cells[str(share)] = {
                "mean": statistics.mean(values),
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "interval": [interval.low, interval.high],
            }
        say(f"  {share:.0%} of the labels: {time.perf_counter() - started:.0f} s")
        keep()
    _show(result)
    return {"settings": settings, "heads": result, "parts": parts}


def _kept(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text()) if out.exists() else {}


def _keep(out: Path, name: str, value: object) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(_kept(out) | {name: value}, indent=2))


def _show(result: dict[str, dict[str, object]]) -> None:
    say(f"\n| head | parameters | {' | '.join(f'{share:.0%}' for share in SHARES)} |")
    say("|---|---|" + "---|" * len(SHARES))
    for name, cells in result.items():
        line = []
        for share in SHARES:
            cell = cells[str(share)]
            spread = f" ± {cell['sd']:.1%}" if cell["sd"] is not None else ""
            line.append(f"{cell['mean']:.1%}{spread}")
        say(f"| {name} | {cells['parameters']:,} | {' | '.join(line)} |")


def transfer(args: argparse.Namespace) -> dict[str, object]:
    """Data that the model has never seen: written digits, and which photograph a crop is from."""
    backbone = load(args.model, device=args.device, dtype="fp32")
    result = {}
    sets = {
        "digits": tuple(open_source("sklearn:digits", split=split) for split in ("train", "test")),
        "crops": (crops("left"), crops("right")),
    }
    for task, (train, test) in sets.items():
        labels, truth = np.array(train.labels), np.array(test.labels)
        found = search(backbone, train, labels, root=args.cache, batch_size=256)
        best = found.best
        result[task] = {"best": f"{best.layer}@{best.timestep}, grid {best.size}", "test": len(test), "seeds": 5}
        chosen = {"layers": [best.layer], "timesteps": [best.timestep], "pool": Pool(size=best.size)}
        sides = {
            "raw pixels": [pixels(source, 8 if task == "digits" else 28) for source in (train, test)],
            "random UNet": [features(plan(untrained(backbone), **chosen), s, args, task) for s in (train, test)],
            "tiny-fashion": [features(plan(backbone, **chosen), s, args, task) for s in (train, test)],
        }
        say(f"\n{task}: {len(train)} + {len(test)} images, found {result[task]['best']}")
        say("| features | 5 per class | 20 per class | all |\n|---|---|---|---|")
        for name, (fit, held) in sides.items():
            cells = []
            for per_class in (5, 20, None):
                values = []
                for seed in range(5 if per_class else 1):
                    rows = few_shot(labels, per_class=per_class, seed=seed) if per_class else np.arange(len(labels))
                    head = fit_head(Subset(fit, rows), labels[rows], "logistic", seed=seed, device=args.device)
                    values += top1([head], held, truth)
                spread = f" ± {statistics.stdev(values):.1%}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1%}{spread}")
            say(f"| {name} | {' | '.join(cells)} |")
            result[task][name] = cells
    return result


def diffeed(args: argparse.Namespace) -> dict[str, object]:
    """DifFeed with a head as wide as the others', one choice of the images."""
    backbone = load(args.model, device=args.device, dtype="fp32")
    train, test = (open_source("torchvision:fashion-mnist", split=split) for split in ("train", "test"))
    labels, truth = np.array(train.labels), np.array(test.labels)
    result: dict[str, object] = {}
    for share, epochs in ((0.01, 28), (0.1, 5)):
        started = time.perf_counter()
        chosen = fraction(labels, share=share, seed=0)
        recipe = Recipe(epochs=epochs, batch_size=16, standardize=False)
        model = DifFeedClassifier(backbone, head=DifFormer(dim=DIM), recipe=recipe)
        model.fit(train.select(chosen.tolist()), labels[chosen])
        found = wilson(int((model.predict(test) == truth).sum()), len(truth))
        parameters = sum(parameter.numel() for parameter in model.network_.parameters())
        interval = f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]"
        seconds = time.perf_counter() - started
        say(f"DifFeed, {share:.0%}, {epochs} epochs: {interval}, {parameters:,} parameters, {seconds:.0f} s")
        result[str(share)] = {**asdict(found), "epochs": epochs, "parameters": parameters}
    return result


SECTIONS = {"table": table, "transfer": transfer, "diffeed": diffeed}


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=list(SECTIONS))
    parser.add_argument("--cache", type=Path, default=Path("runs/features"))
    parser.add_argument("--out", type=Path, default=Path("runs/features.json"))
    parser.add_argument("--model", default="tiny-fashion")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, help="only the first images: a trial of the script")
    args = parser.parse_args()
    for name in args.sections:
        _keep(args.out, name, SECTIONS[name](args))


if __name__ == "__main__":
    main()
