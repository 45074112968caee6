"""Recipe of ``tiny-shapes``: a text-to-image diffusion model of rendered scenes, and a CLIP of the same scenes.

    python recipes/tiny_shapes.py --out build/tiny-shapes

The same command continues after any interruption. On two CPU cores it takes about two hours, on a GPU minutes. With
``--start PIPELINE`` an exported model is trained further instead, its VAE kept.
Nothing is read: scenes are painted by `diffsight.data.scenes`, without the combinations of shape and colour that are
held out. ``OUT/watch.jsonl`` tells at which step which attribute was bound to which thing.
"""

import argparse
import json
import logging
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from latent_diffusion import (
    TextAndUNet,
    encode_all,
    encode_once,
    export,
    make_scheduler,
    make_tokenize,
    make_tokenizer,
    train_unet,
    train_vae,
)
from torch import Tensor, nn
from training_loop import add_length, best_device, plans
from transformers import CLIPTokenizer

from diffsight.data.binding import binding_examples
from diffsight.data.scenes import VALUES, Scene, caption, draw, random_scene

MAX_TOKENS = 24
SCENES = 80_000
WATCHED = ("colour", "shape,colour", "colour,size", "colour,position", "colour|shape", "position|shape")


def make_scene(rng: np.random.Generator) -> Scene:
    """A fifth with one thing; of the others most differ in shape and colour, as people's pictures do."""
    if rng.random() < 0.2:
        return random_scene(rng, count=1)
    differs = [name for name in ("shape", "colour", "size") if rng.random() < 0.6]
    return random_scene(rng, differs=differs)


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Draw a caption: 10 % empty; one thing or both; one to four attributes, now and then the texture too.

    Captions of one thing of two are the larger part, and of those shape and colour: "A red object" and "A red square"
    beside a blue circle are learnt last.
    """
    if rng.random() < 0.1:
        return ""
    names = ("shape", "colour", "size", "position")
    count = int(rng.choice(4, p=(0.3, 0.5, 0.12, 0.08))) + 1
    attributes = [str(name) for name in rng.choice(names, count, replace=False)]
    if attributes in (["position"], ["size"]):
        attributes = [str(rng.choice(("shape", "colour")))]
    if count == 2 and rng.random() < 0.5:
        attributes = ["shape", "colour"]
    if rng.random() < 0.15:
        attributes.append("texture")
    both = rng.random() < 0.25
    things = scene.things if both else (scene.things[int(rng.integers(len(scene.things)))],)
    text = caption(things, attributes)
    return text + "." if rng.random() < 0.2 else text


def every_word() -> list[str]:
    """Captions with all words, for the tokenizer."""
    words = [value for values in VALUES.values() for value in values]
    return [f"On the left is a {word} object and on the right is an object." for word in words]


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 (N, 32, 32, 3) to [-1, 1], (N, 3, 32, 32)."""
    return (torch.from_numpy(images).float() / 127.5 - 1).permute(0, 3, 1, 2).contiguous()


def paint_one(address: tuple[int, int]) -> tuple[Scene, np.ndarray]:
    """The scene of an address (seed, number), and its picture, uint8 (32, 32, 3)."""
    scene = make_scene(np.random.default_rng(address))
    return scene, np.asarray(draw(scene))


def paint(seed: int, count: int) -> tuple[list[Scene], np.ndarray]:
    """Scenes and their pictures, uint8 (count, 32, 32, 3); all cores paint."""
    with ProcessPoolExecutor() as pool:
        scenes, pictures = zip(*pool.map(paint_one, product((seed,), range(count)), chunksize=1000), strict=True)
    return list(scenes), np.stack(pictures)


@dataclass(frozen=True)
class Exam:
    """Attribute-binding examples, encoded: seen and held-out combinations."""

    latents: dict[str, Tensor]
    captions: dict[str, list[tuple[str, str]]]


def make_exam(vae: nn.Module, count: int) -> Exam:
    """``count`` examples of each watched task, half of them with combinations that are held out."""
    latents, captions = {}, {}
    for task in WATCHED:
        for name, held_out in (("seen", False), ("held-out", True)):
            examples = list(binding_examples(task, count // 2, seed=99, held_out=held_out))
            pictures = np.stack([np.asarray(draw(example.scene)) for example in examples])
            latents[f"{task} {name}"] = encode_all(vae, pictures, to_tensor).float()
            captions[f"{task} {name}"] = [(example.true, example.false) for example in examples]
    return Exam(latents=latents, captions=captions)


def sit(exam: Exam, tokenizer: CLIPTokenizer) -> Callable[[nn.Module], dict[str, float]]:
    """How often the true caption denoises better, at 12 timesteps from 80 to 960, noise shared by both captions."""
    device = best_device()
    scheduler, tokenize = make_scheduler(), make_tokenize(tokenizer)

    @torch.no_grad()
    def watch(model: nn.Module) -> dict[str, float]:
        found = {}
        for key, x0 in exam.latents.items():
            generator = torch.Generator().manual_seed(7)
            timestep = torch.arange(80, 1000, 80).repeat_interleave(len(x0))
            eps = torch.randn((len(timestep), *x0.shape[1:]), generator=generator)
            x_t = scheduler.add_noise(x0.repeat(len(timestep) // len(x0), 1, 1, 1), eps, timestep).to(device)
            errors = []
            for side in (0, 1):
                tokens = tokenize([pair[side] for pair in exam.captions[key]]).repeat(len(timestep) // len(x0), 1)
                guess = model(x_t, timestep.to(device), tokens.to(device))
                errors.append((guess.float().cpu() - eps).square().flatten(1).mean(1).view(-1, len(x0)).sum(0))
            found[key] = round(float((errors[0] < errors[1]).float().mean()), 3)
        return found

    return watch


def train_diffusion(out: Path, args: argparse.Namespace) -> None:
    """VAE, latents, UNet with text encoder, export."""
    scenes, pictures = paint(0, SCENES)

    def images_of(generator: torch.Generator, count: int) -> Tensor:
        return to_tensor(pictures[torch.randint(len(pictures), (count,), generator=generator).numpy()])

    vae_plan, unet_plan = plans(args, skew=0.6)
    if args.start:
        vae = AutoencoderKL.from_pretrained(args.start / "vae", torch_dtype=torch.float32)
    else:
        vae = train_vae(out, vae_plan, images_of)
    latents = encode_once(out, vae, vae_plan.steps, {"scenes": pictures}, to_tensor)["scenes"]
    tokenizer = make_tokenizer(every_word(), out / "tokenizer", MAX_TOKENS)

    def batch_of(generator: torch.Generator, count: int) -> tuple[Tensor, list[str]]:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        chosen = rng.integers(len(scenes), size=count)
        return latents[chosen].float(), [describe(scenes[index], rng) for index in chosen]

    model: TextAndUNet = train_unet(
        out,
        unet_plan,
        tokenizer,
        batch_of,
        attention_at_8=True,
        start=args.start,
        watch=sit(make_exam(vae, 120), tokenizer),
    )
    export(out / "pipeline", vae, model, tokenizer)
    (out / "pipeline" / "diffsight.json").write_text(json.dumps({"transform": {"size": 32}}, indent=2) + "\n")


def main() -> None:
    """Run the stages, continuing whatever has been done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="work folder; the pipeline goes to OUT/pipeline")
    parser.add_argument("--start", type=Path, help="an exported pipeline to train further")
    add_length(parser, vae_steps=1200, steps=9000)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_diffusion(args.out, args)


if __name__ == "__main__":
    main()
