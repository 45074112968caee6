"""Recipe of ``tiny-shapes-clip``: a contrastive model of the scenes and captions that ``tiny-shapes`` learns from.

    python recipes/tiny_clip.py --out build/tiny-shapes --match-steps 9000

The baseline of image–text matching has to have seen the same: the same 80 000 scenes and the same captions, without the
combinations that are held out, for the same compute. ``--match-steps N`` counts the floating-point operations of a
training step of both models and trains for as many as N steps of the diffusion model take (its VAE not counted). The
same command continues after any interruption. ``OUT/watch.jsonl`` tells at which step which attribute was bound to
which thing, in the lines of the stage ``clip``; the model goes to ``OUT/clip``.
"""

import argparse
import logging
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from latent_diffusion import TextAndUNet, make_text_encoder, make_tokenize, make_tokenizer, make_unet
from tiny_shapes import MAX_TOKENS, SCENES, WATCHED, describe, every_word, paint, to_tensor
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training_loop import Batch, Plan, autocast, best_device, train
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from diffsight.data.binding import binding_examples
from diffsight.data.scenes import Scene, draw

log = logging.getLogger("recipe")

WATCHED_EXAMPLES = 200
MAX_SCALE = math.log(100)


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """2.0 M parameters: a ViT of four layers on 8×8 patches, and the text model of the diffusion model."""
    text = make_text_encoder(tokenizer).config.to_dict()
    vision = {
        "hidden_size": 160,
        "intermediate_size": 640,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 4,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128))


def make_processor() -> CLIPImageProcessor:
    """What `to_tensor` does, for pictures of any size."""
    return CLIPImageProcessor(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def contrast(logits: Tensor, tokens: Tensor) -> Tensor:
    """Symmetric InfoNCE, from logits (B, B) of images and captions, and the captions' tokens (B, length).

    Short captions come several times in a batch ("A red object"). Each fits its own image as well as the other's, and
    to push them apart would teach that a true caption is false. So the same caption of another image counts neither
    for nor against. Captions that differ and are both true stay negatives, as in any CLIP.
    """
    own = torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
    twins = (tokens[:, None] == tokens[None]).all(-1) & ~own
    logits = logits.float().masked_fill(twins, -torch.inf)
    target = torch.arange(len(tokens), device=tokens.device)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def tell(scene: Scene, rng: np.random.Generator) -> str:
    """A caption as `describe` draws it, but never the empty one: it fits every image, and there is no null here."""
    while not (text := describe(scene, rng)):
        pass
    return text


def make_batches(
    tokenizer: CLIPTokenizer, scenes: list[Scene], pictures: np.ndarray, size: int
) -> Callable[[torch.Generator], Batch]:
    """Batches of scenes with captions: tokens and pixels, both drawn from the generator."""
    tokenize = make_tokenize(tokenizer)

    def make_batch(generator: torch.Generator) -> Batch:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        # Without repetition: a scene that is there twice would be its own negative.
        chosen = rng.choice(len(scenes), size, replace=False)
        return tokenize([tell(scenes[index], rng) for index in chosen]), to_tensor(pictures[chosen])

    return make_batch


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss of a batch of tokens and pixels."""
    tokens, pixels = batch
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_SCALE)  # As in CLIP (2103.00020 §2.5): larger ones make training unstable.
    # Not compiled: on a CPU that takes a minute and makes no step shorter.
    with autocast():
        output = model(input_ids=tokens, pixel_values=pixels)
    return contrast(output.logits_per_image, tokens)


def make_watch(tokenizer: CLIPTokenizer) -> Callable[[nn.Module], dict[str, float]]:
    """How often the true caption is nearer to the image than the false one, by cosine: seen and held-out examples."""
    device = best_device()
    tokenize = make_tokenize(tokenizer)
    exams = {}
    for task in WATCHED:
        for name, held_out in (("seen", False), ("held-out", True)):
            examples = list(binding_examples(task, WATCHED_EXAMPLES, seed=99, held_out=held_out))
            pictures = to_tensor(np.stack([np.asarray(draw(example.scene)) for example in examples]))
            captions = [example.true for example in examples], [example.false for example in examples]
            exams[f"{task} {name}"] = (pictures, *(tokenize(texts) for texts in captions))

    @torch.no_grad()
    def watch(model: nn.Module) -> dict[str, float]:
        found = {}
        for key, exam in exams.items():
            pictures, true, false = (part.to(device) for part in exam)
            image = model.get_image_features(pixel_values=pictures).pooler_output
            near, far = (
                nn.functional.cosine_similarity(image, model.get_text_features(input_ids=tokens).pooler_output)
                for tokens in (true, false)
            )
            found[key] = round(float((near > far).float().mean()), 3)
        return found | {"scale": round(float(model.logit_scale.exp()), 2)}

    return watch


def training_flops(tokenizer: CLIPTokenizer) -> tuple[float, float]:
    """Floating-point operations, forwards and backwards, that an image takes in training the diffusion model and CLIP.

    Multiplications of matrices and convolutions, as `FlopCounterMode` counts them; on the device ``meta`` nothing is
    computed. Attention as plain products, because not all fused kernels are counted.
    """
    count = 128

    def flops(forward: Callable[[], Tensor]) -> float:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward().backward()
        return counter.get_total_flops() / count

    with torch.device("meta"):
        diffusion = TextAndUNet(make_text_encoder(tokenizer), make_unet(attention_at_8=True))
        clip = make_clip(tokenizer)
        latents, timestep = torch.zeros(count, 4, 8, 8), torch.zeros(count)
        pictures = torch.zeros(count, 3, 32, 32)
        tokens = torch.zeros(count, MAX_TOKENS, dtype=torch.long)
        return (
            flops(lambda: diffusion(latents, timestep, tokens).sum()),
            flops(lambda: clip(input_ids=tokens, pixel_values=pictures).logits_per_image.sum()),
        )


def matching_steps(tokenizer: CLIPTokenizer, images: int, batch: int) -> int:
    """Steps of CLIP that take as many operations as the diffusion model for so many images."""
    diffusion, clip = training_flops(tokenizer)
    steps = round(images * diffusion / clip / batch)
    log.info(
        "GFLOP of an image: %.3f of the diffusion model, %.3f of CLIP; %d images of the former equal %d steps of %d",
        diffusion / 1e9,
        clip / 1e9,
        images,
        steps,
        batch,
    )
    return steps


def train_clip(out: Path, args: argparse.Namespace) -> None:
    """Tokenizer, scenes, training, export."""
    folder = out / "clip"
    tokenizer = make_tokenizer(every_word(), folder, MAX_TOKENS)
    scenes, pictures = paint(0, SCENES)
    steps = args.steps or matching_steps(tokenizer, args.match_steps * args.match_batch, args.batch)
    plan = Plan(steps=steps, batch_size=args.batch, minutes=args.minutes, workers=args.workers)
    torch.manual_seed(plan.seed)
    batches = make_batches(tokenizer, scenes, pictures, plan.batch_size)
    model = train(out, "clip", make_clip(tokenizer), plan, batches, loss_of, make_watch(tokenizer))
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_SCALE)
    model.cpu().half().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    size = sum(os.path.getsize(file) for file in folder.iterdir())
    log.info("%s: %.1f MB, %d parameters", folder, size / 1e6, sum(p.numel() for p in model.parameters()))


def main() -> None:
    """Train, continuing whatever has been done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="work folder; the model goes to OUT/clip")
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--match-steps", type=int, help="UNet steps whose compute is to be matched")
    length.add_argument("--steps", type=int, help="CLIP steps")
    parser.add_argument("--match-batch", type=int, default=128, help="images of such a UNet step")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--minutes", type=float, help="longest time of the steps: there are fewer where needed")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches; on a GPU about 5")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train_clip(args.out, args)


if __name__ == "__main__":
    main()
