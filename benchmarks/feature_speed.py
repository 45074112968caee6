"""What early exit, kept features and joint training save, as ratios within one run.

    python benchmarks/feature_speed.py [--out runs/feature-speed.json]

(a) A network of ADM-256's shape with random weights: up to the paper's block 24 against all of it.
(b) 28 epochs of a linear probe: features taken once and kept, against taken anew in every epoch, as the papers' code
    does (which, besides, runs the network to its end).
(c) Probes trained together on one pass over the features, against one after the other.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from zero_shot import say

from diffsight.backbones import load
from diffsight.backbones.converting.adm_networks import empty_network, find_kind, scheduler
from diffsight.backbones.layers import find_layers, intermediates, profile
from diffsight.backbones.models.pixel_unet import PixelUNet
from diffsight.data.images import ImageTransform, images_from
from diffsight.data.sources import open_source
from diffsight.diffusion.schedule import from_config
from diffsight.features.extraction import plan
from diffsight.features.heads.columns import ArrayColumns
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.specs import Linear
from diffsight.features.heads.training import Probe, fit_heads
from diffsight.features.pooling import Pool


def timed(run: Callable[[], object], repeats: int) -> float:
    """Median seconds, after one run that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def adm_shaped(kind: str = "adm-256-uncond") -> PixelUNet:
    """A network of the paper's shape with random weights, made without ever being on the disk."""
    config = find_kind(kind)
    unet = UNet2DModel.from_config(empty_network(config).config).eval().requires_grad_(False)
    return PixelUNet(
        name=kind,
        unet=unet,
        schedule=from_config({**scheduler(config).config, "_class_name": DDPMScheduler.__name__}),
        prediction="eps",
        transform=ImageTransform(size=config.image_size, resize="adm"),
        class_names=(),
        null_class=None,
        provenance={},
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def exits(repeats: int) -> dict[str, object]:
    """Wall time and operations up to block 24 against a full pass, in turns."""
    backbone = adm_shaped()
    (layer,) = find_layers(backbone, ["b24"])
    inputs = (torch.randn(1, *backbone.latent_shape), torch.tensor([90]), backbone.condition(()).nulls(1))
    (found,) = profile(backbone, [layer])
    with torch.inference_mode():
        full = timed(lambda: intermediates(backbone, *inputs, [layer], stop_early=False), repeats)
        early = timed(lambda: intermediates(backbone, *inputs, [layer]), repeats)
    say(f"\nADM-256, batch 1, b24: {early:.2f} s against {full:.2f} s: {full / early:.2f} × as fast")
    say(f"operations {found.flops / 1e9:,.0f} of {found.flops / found.share / 1e9:,.0f} GFLOP: {found.share:.1%}")
    return {"early": early, "full": full, "ratio": full / early, "share": found.share, "flops": found.flops}


def cache() -> dict[str, object]:
    """28 epochs of a linear probe: features kept, or taken anew in every epoch; 40 probes together, or one by one."""
    backbone = load("tiny-fashion", device="cpu", dtype="fp32")
    source = open_source("torchvision:fashion-mnist", split="train").select(range(1024))
    labels = np.array(source.labels)
    extraction = plan(backbone, layers=["mid"], timesteps=[30], pool=Pool(size=2))
    images = images_from(source)
    probe = Probe(columns=extraction.columns, head=Linear())
    epochs = 28

    def anew() -> ArrayColumns:
        chunks = [chunk.features for chunk in extraction.run(images, batch_size=256)]
        return ArrayColumns({name: torch.cat([chunk[name] for chunk in chunks]) for name in extraction.columns})

    started = time.perf_counter()
    fit_heads(anew(), labels, [probe], recipe=Recipe(epochs=epochs), device="cpu")
    kept = time.perf_counter() - started
    started = time.perf_counter()
    for _ in range(epochs):
        fit_heads(anew(), labels, [probe], recipe=Recipe(epochs=1), device="cpu")
    repeated = time.perf_counter() - started
    say(f"\n{epochs} epochs on {len(labels)} images: {kept:.1f} s with kept features, and with a pass in each epoch")
    say(
        f"{repeated:.1f} s, {repeated / kept:.1f} × as much (both up to the layer; the original runs the whole network)"
    )

    wide = plan(backbone, layers=["enc.3", "mid", "dec.0", "dec.1"], timesteps=[10, 90], pool=Pool(size=4))
    chunks = [chunk.features for chunk in wide.run(images, batch_size=256)]
    columns = ArrayColumns({name: torch.cat([chunk[name] for chunk in chunks]) for name in wide.columns})
    probes = [
        Probe(columns=(name,), head=Linear(pool=size), learning_rate=rate)
        for name in columns.names
        for size in (1, 2, 4)
        for rate in (1e-3, 1e-2)
    ]
    recipe = Recipe(epochs=10)
    started = time.perf_counter()
    fit_heads(columns, labels, probes, recipe=recipe, device="cpu")
    together = time.perf_counter() - started
    started = time.perf_counter()
    for one in probes:
        fit_heads(columns, labels, [one], recipe=recipe, device="cpu")
    alone = time.perf_counter() - started
    say(f"{len(probes)} probes: {together:.1f} s together, {alone:.1f} s one by one: {alone / together:.2f} × as fast")
    return {
        "kept": kept,
        "repeated": repeated,
        "ratio": repeated / kept,
        "probes": len(probes),
        "together": together,
        "alone": alone,
        "joint_ratio": alone / together,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/feature-speed.json"))
    parser.add_argument("--repeats", type=int, default=3, help="of the passes of (a)")
    args = parser.parse_args()
    found = {"exit": exits(args.repeats), "cache": cache()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
