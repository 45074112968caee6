"""Train a small, complete Stable-Diffusion-format pipeline: VAE, latents, then UNet and text encoder together.

What the embedded checkpoints share. A recipe (``tiny_fashion.py``) brings images and captions; this file brings the
networks and three stages that can each be killed and continued by the same command. Nothing here is imported by the
package.
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from training_loop import Batch, Plan, autocast, best_device, load_state, save_state, train
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

log = logging.getLogger("recipe")

START, END = "<|startoftext|>", "<|endoftext|>"
LATENT_SIDE = 8
LATENTS = "latents.pt"


def make_vae() -> AutoencoderKL:
    """32×32×3 images to 8×8×4 latents, 0.6 M parameters."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    )


def make_unet(*, attention_at_8: bool = False) -> UNet2DConditionModel:
    """The denoiser of the 8×8×4 latents.

    Attention sits at 4×4, where it is cheap and classes are told apart; also at 8×8 for scenes of several things.
    """
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D" if attention_at_8 else "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D" if attention_at_8 else "UpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text model of three layers."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_tokenizer(captions: list[str], folder: Path, max_tokens: int) -> CLIPTokenizer:
    """CLIP's byte-level BPE, its merges learnt on the captions, so that every word of theirs is one token."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    reference = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[])
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = reference.backend_tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    bpe.train_from_iterator(captions, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in learnt["merges"]]
    # Bytes, bytes that end a word, merges, then the two marks: the order CLIP's own vocabulary has.
    words = [*sorted(alphabet), *(f"{letter}</w>" for letter in sorted(alphabet)), *(a + b for a, b in merges)]
    vocab = {word: index for index, word in enumerate(dict.fromkeys([*words, START, END]))}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_tokenize(tokenizer: CLIPTokenizer) -> Callable[[list[str]], Tensor]:
    """From captions to token ids (B, longest that the model reads), padded; each caption is read once and kept."""
    known: dict[str, Tensor] = {}

    def tokenize(captions: list[str]) -> Tensor:
        new = [text for text in dict.fromkeys(captions) if text not in known]
        if new:
            rows = tokenizer(new, padding="max_length", truncation=True, return_tensors="pt").input_ids
            known.update(zip(new, rows, strict=True))
        return torch.stack([known[text] for text in captions])

    return tokenize


def train_vae(folder: Path, plan: Plan, images_of: Callable[[torch.Generator, int], Tensor]) -> AutoencoderKL:
    """Fit the VAE to images in [-1, 1], then set its scaling factor so that latents have unit variance."""
    kept = load_state(folder / LATENTS)
    if kept and kept["vae_steps"] != plan.steps:
        # Trained on, it would no longer be the one that the latents, and what has learnt them, are from.
        raise SystemExit(f"{folder / LATENTS} is of a VAE of {kept['vae_steps']} steps: keep to that, or begin anew.")
    torch.manual_seed(plan.seed)
    device = best_device()
    vae = make_vae()
    shape = (plan.batch_size, vae.config.latent_channels, LATENT_SIDE, LATENT_SIDE)

    def make_batch(generator: torch.Generator) -> Batch:
        return images_of(generator, plan.batch_size), torch.randn(shape, generator=generator)

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        images, noise = batch
        with autocast():
            posterior = model.encode(images).latent_dist
            decoded = model.decode(posterior.mean + posterior.std * noise).sample
        return nn.functional.l1_loss(decoded.float(), images) + 1e-6 * posterior.kl().mean()

    vae = train(folder, "vae", vae, plan, make_batch, loss_of).eval()
    with torch.no_grad():
        latents = vae.encode(images_of(torch.Generator().manual_seed(1), 2048).to(device)).latent_dist.mean
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return vae


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: np.ndarray, to_tensor: Callable[[np.ndarray], Tensor]) -> Tensor:
    """Posterior means × scaling factor of uint8 images, in fp16: computed once, used every epoch."""
    device = best_device()
    parts = [
        (vae.encode(to_tensor(images[i : i + 500]).to(device)).latent_dist.mean * vae.config.scaling_factor)
        .half()
        .cpu()
        for i in range(0, len(images), 500)
    ]
    return torch.cat(parts)


def encode_once(
    folder: Path, vae: AutoencoderKL, steps: int, sets: dict[str, np.ndarray], to_tensor: Callable[[np.ndarray], Tensor]
) -> dict[str, Tensor]:
    """Latents of sets of images, kept in ``folder`` with the number of ``steps`` of the VAE that they are from."""
    state = load_state(folder / LATENTS)
    if state is None:
        state = {
            "vae_steps": steps,
            "sets": {name: encode_all(vae, images, to_tensor) for name, images in sets.items()},
        }
        save_state(folder / LATENTS, **state)
    return state["sets"]


class TextAndUNet(nn.Module):
    """The two networks that are trained together."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, x_t: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Predict eps of ``x_t`` (B, 4, 8, 8) under token ids (B, tokens)."""
        return self.unet(x_t, timestep, self.text_encoder(input_ids=tokens).last_hidden_state).sample


def make_scheduler() -> DDPMScheduler:
    """Stable Diffusion's own schedule."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="epsilon",
        steps_offset=1,
    )


def train_unet(
    folder: Path,
    plan: Plan,
    tokenizer: CLIPTokenizer,
    batch_of: Callable[[torch.Generator, int], tuple[Tensor, list[str]]],
    *,
    attention_at_8: bool = False,
    start: Path | None = None,
    watch: Callable[[nn.Module], dict[str, float]] | None = None,
) -> TextAndUNet:
    """Fit UNet and text encoder to ``(x0 latents, captions)`` batches with the plain eps loss.

    ``start`` is an exported pipeline whose weights are trained further, as the stage ``unet-continued``.
    """
    torch.manual_seed(plan.seed)
    scheduler = make_scheduler()
    model = TextAndUNet(make_text_encoder(tokenizer), make_unet(attention_at_8=attention_at_8))
    if start:
        model.text_encoder = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
        model.unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
    model.unet.to(memory_format=torch.channels_last)
    compiled: dict[int, nn.Module] = {}
    tokenize = make_tokenize(tokenizer)

    def make_batch(generator: torch.Generator) -> Batch:
        x0, captions = batch_of(generator, plan.batch_size)
        # One timestep per stratum: the batch covers the schedule evenly (VDM, 2107.00630 §I.1).
        u = (torch.rand(1, generator=generator) + torch.arange(len(x0)) / len(x0)) % 1
        timestep = (u**plan.skew * 1000).long().clamp(max=999)
        eps = torch.randn(x0.shape, generator=generator)
        x_t = scheduler.add_noise(x0, eps, timestep).contiguous(memory_format=torch.channels_last)
        return x_t, timestep, tokenize(captions), eps

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        *given, eps = batch
        if id(model) not in compiled:
            compiled[id(model)] = torch.compile(model) if plan.compile else model
        with autocast():
            predicted = compiled[id(model)](*given)
        return nn.functional.mse_loss(predicted.float(), eps)

    return train(folder, "unet-continued" if start else "unet", model.train(), plan, make_batch, loss_of, watch)


def export(folder: Path, vae: AutoencoderKL, model: TextAndUNet, tokenizer: CLIPTokenizer) -> None:
    """Write a complete fp16 safetensors pipeline in Stable Diffusion's layout."""
    pipeline = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=model.text_encoder.half(),
        tokenizer=tokenizer,
        unet=model.unet.half(),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # transformers writes its newest names, which its older versions do not find: they would go on with random weights.
    file = folder / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name.removeprefix('text_model.')}": value for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
