"""Draw the pictures of the documentation with the embedded model.

    python recipes/pictures.py

``docs/demo.png``: sample photographs with what the classifier says, and one of them explained timestep by timestep.
``docs/tiny-fashion.png``: what the model generates for each class and domain, and its learning curve.
"""

import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from tiny_fashion import DOMAINS, MAX_TOKENS, NAMES

from diffsight import DiffusionClassifier
from diffsight.backbones.cards import assets

DOCS = Path(__file__).resolve().parent.parent / "docs"
CLASSES = [names[0] for names in NAMES]


def demo() -> None:
    """Photographs with their labels above; below, how much better the truth denoises at every timestep."""
    classifier = DiffusionClassifier("tiny-fashion", CLASSES).fit()
    photos = [sorted(folder.iterdir())[2] for folder in sorted((assets() / "samples").iterdir())]
    verdicts = classifier.classify(photos)
    figure = plt.figure(figsize=(12, 5.2), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2])
    for axes, photo, verdict in zip(top.subplots(1, len(photos)), photos, verdicts, strict=True):
        axes.imshow(Image.open(photo), cmap="gray", interpolation="nearest")
        axes.set_axis_off()
        right = CLASSES[verdict.label].replace("/", "-").replace(" ", "-") == photo.parent.name
        axes.set_title(
            f"{CLASSES[verdict.label]}\np = {verdict.probabilities[verdict.label]:.2f}, {verdict.calls} calls",
            fontsize=8.5,
            color="black" if right else "firebrick",
        )
    shown = next(photo for photo in photos if photo.parent.name == "shirt")
    explanation = classifier.explain(shown, num_draws=60)
    axes = bottom.subplots()
    order = np.argsort(explanation.errors.mean(axis=0))
    window = np.ones(9) / 9
    for rank, index in enumerate(order):
        gap = explanation.errors[:, index] - explanation.errors.mean(axis=1)
        smooth = np.convolve(np.pad(gap, 4, mode="edge"), window, mode="valid")
        style = {"color": f"C{rank}", "linewidth": 2} if rank < 4 else {"color": "0.8", "linewidth": 1}
        label = explanation.classes[index] if rank < 4 else ("other classes" if rank == 4 else None)
        axes.plot(explanation.timesteps, smooth, label=label, **style)
    axes.axhline(0, color="0.5", linewidth=0.8)
    axes.set_xlabel("timestep (noise →)")
    axes.set_ylabel("error − mean over classes")
    axes.set_title("Why: the photograph of a shirt, denoised under each class name (running mean of 9)", fontsize=10)
    axes.legend(fontsize=9, ncols=5, frameon=False)
    figure.savefig(DOCS / "demo.png", dpi=110)


def model() -> None:
    """A sample for each class and domain, and the loss by training step."""
    folder = assets() / "tiny-fashion"
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [templates[0].format(name) for templates in DOMAINS.values() for name in CLASSES]
    assert all(len(pipeline.tokenizer(prompt).input_ids) <= MAX_TOKENS for prompt in prompts)
    generator = torch.Generator().manual_seed(0)
    images = pipeline(
        prompts, height=32, width=32, guidance_scale=2.0, num_inference_steps=40, generator=generator, output_type="np"
    ).images
    rows = images.reshape(len(DOMAINS), len(CLASSES), 32, 32, 3)
    grid = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    lines = [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]
    curve = {line["step"]: line["loss"] for line in lines if line["stage"] == "unet"}
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4), layout="constrained", width_ratios=[1.7, 1])
    left.imshow(grid, interpolation="nearest")
    left.set_xticks([16 + 32 * i for i in range(len(CLASSES))], CLASSES, fontsize=7, rotation=20)
    left.set_yticks([16 + 32 * i for i in range(len(DOMAINS))], DOMAINS, fontsize=8)
    left.set_title("Generated (DDIM, 40 steps, guidance 2)", fontsize=10)
    steps = sorted(curve)
    right.plot(steps, [curve[step] for step in steps])
    right.set_yscale("log")
    right.set_xlabel("UNet step (batch 128)")
    right.set_ylabel("training loss (MSE of eps)")
    right.set_title("Learning curve; the rate falls from step 3,010", fontsize=10)
    right.grid(alpha=0.3, which="both")
    figure.savefig(DOCS / "tiny-fashion.png", dpi=110)


if __name__ == "__main__":
    mpl.use("Agg")
    demo()
    model()
