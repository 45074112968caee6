"""Recipe of ``tiny-shapes-clip``: a CLIP of the same scenes, captions and compute as ``tiny-shapes``.

    python recipes/tiny_clip.py --out build/tiny-clip

The same command continues after any interruption. It takes as many steps as cost the floating-point operations of
``--match-steps`` steps of the diffusion model. Empty captions, which teach the diffusion model to do without text, have
no meaning for a contrast and are drawn again.
"""

import argparse
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from latent_diffusion import (
    Plan,
    TextAndUNet,
    device_and_dtype,
    make_text_encoder,
    make_tokenizer,
    make_unet,
    tokenize,
    train,
)
from tiny_shapes import MAX_TOKENS, SCENES, WATCHED, describe, every_word, paint, to_tensor
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from diffsight.data.binding import binding_examples
from diffsight.data.scenes import draw

log = logging.getLogger("recipe")
BATCH = 256


def make_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """A ViT of 64 patches and a text encoder like that of ``tiny-shapes``, one layer deeper; 1.7 M parameters."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=4,
        projection_dim=128,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def contrast(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> Tensor:
    """Symmetric InfoNCE. Pairs whose captions are the same words are no negatives: both are right."""
    output = model(pixel_values=pixels, input_ids=tokens)
    logits = output.logits_per_text.float()
    same = (tokens[:, None] == tokens[None]).all(-1) & ~torch.eye(len(tokens), dtype=torch.bool, device=tokens.device)
    logits = logits.masked_fill(same, -torch.inf)
    target = torch.arange(len(tokens), device=tokens.device)
    return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


def matched_steps(tokenizer: CLIPTokenizer, diffusion_steps: int) -> int:
    """Steps of CLIP that cost as many operations as steps of the diffusion model, by their forward passes."""
    with torch.no_grad():
        with FlopCounterMode(display=False) as of_diffusion:
            model = TextAndUNet(make_text_encoder(tokenizer), make_unet(attention_at_8=True))
            model(torch.zeros(128, 4, 8, 8), torch.zeros(128), torch.zeros(128, MAX_TOKENS, dtype=torch.long))
        with FlopCounterMode(display=False) as of_clip:
            tokens = torch.zeros(BATCH, MAX_TOKENS, dtype=torch.long)
            make_clip(tokenizer)(pixel_values=torch.zeros(BATCH, 3, 32, 32), input_ids=tokens)
    each = of_diffusion.get_total_flops(), of_clip.get_total_flops()
    steps = round(diffusion_steps * each[0] / each[1])
    log.info("forward pass: diffusion %.3g, CLIP %.3g operations; %d steps match %d", *each, steps, diffusion_steps)
    return steps


def exam(tokenizer: CLIPTokenizer, count: int) -> Callable[[nn.Module], dict[str, float]]:
    """How often the true caption is nearer, for the tasks that the diffusion model is watched with."""
    device, _ = device_and_dtype()

    @torch.no_grad()
    def watch(model: nn.Module) -> dict[str, float]:
        found = {}
        for task in WATCHED:
            for name, held_out in (("seen", False), ("held-out", True)):
                examples = list(binding_examples(task, count, seed=99, held_out=held_out))
                pictures = to_tensor(np.stack([np.asarray(draw(one.scene)) for one in examples])).to(device)
                near = []
                for captions in ([one.true for one in examples], [one.false for one in examples]):
                    tokens = tokenize(tokenizer, captions).to(device)
                    near.append(model(pixel_values=pictures, input_ids=tokens).logits_per_text.diagonal())
                found[f"{task} {name}"] = round(float((near[0] > near[1]).float().mean()), 3)
        return found

    return watch


def main() -> None:
    """Train and export, continuing whatever has been done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="work folder; the model goes to OUT/clip")
    parser.add_argument("--match-steps", type=int, default=9000, help="steps of the diffusion model")
    parser.add_argument("--steps", type=int, help="steps of CLIP, instead of as many as match")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    device, dtype = device_and_dtype()
    tokenizer = make_tokenizer(every_word(), args.out / "tokenizer", MAX_TOKENS)
    steps = args.steps or matched_steps(tokenizer, args.match_steps)
    scenes, pictures = paint(0, SCENES)
    torch.manual_seed(0)

    def loss_of(model: nn.Module, generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        chosen = rng.integers(len(scenes), size=BATCH)
        captions = []
        for index in chosen:
            caption = ""
            while not caption:
                caption = describe(scenes[index], rng)
            captions.append(caption)
        with torch.no_grad():
            model.logit_scale.clamp_(max=float(np.log(100)))
        with torch.autocast(device.type, dtype=dtype):
            return contrast(model, to_tensor(pictures[chosen]).to(device), tokenize(tokenizer, captions).to(device))

    plan = Plan(steps=steps, batch_size=BATCH, compile=False)
    model = train(args.out, "clip", make_clip(tokenizer), plan, loss_of, exam(tokenizer, 100))
    folder = args.out / "clip"
    model.half().save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
