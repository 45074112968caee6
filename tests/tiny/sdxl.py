"""Stable Diffusion XL at tiny size: the real classes, random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    EDMEulerScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from pipelines import tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

PLAYGROUND = {"latents_mean": (-1.6, 1.9, -1.4, 2.5), "latents_std": (8.5, 5.9, 6.5, 5.2)}


def unet(**changes):
    """Two resolutions, two transformer blocks in one attention, as SDXL has ten."""
    settings = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "cross_attention_dim": 40,
        "attention_head_dim": (1, 2),
        "norm_num_groups": 4,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    }
    return UNet2DConditionModel(**settings | changes)


def vae(**latents):
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        **latents,
    )


def text_encoder(kind, tokens, *, width, act):
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=20,
        hidden_act=act,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    return kind(config)


def save_sdxl(
    folder, *, seed=0, scheduler=None, latents=None, zeros=True, first=True, second=True, max_length=16, **changes
):
    """An SDXL pipeline of a few thousand parameters, eps-prediction unless a scheduler says otherwise."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens, other = tokenizer(), tokenizer(max_length)
        other.pad_token = "-"  # SDXL's second tokenizer pads with "!".
        pipeline = StableDiffusionXLPipeline(
            vae=vae(**latents or {}),
            text_encoder=text_encoder(CLIPTextModel, tokens, width=16, act="quick_gelu") if first else None,
            text_encoder_2=text_encoder(CLIPTextModelWithProjection, tokens, width=24, act="gelu") if second else None,
            tokenizer=tokens if first else None,
            tokenizer_2=other if second else None,
            unet=unet(**changes),
            scheduler=scheduler
            or DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                clip_sample=False,
            ),
            force_zeros_for_empty_prompt=zeros,
            add_watermarker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_playground(folder, *, seed=0, **scheduler):
    """The same with EDM's levels and preconditioning, and a mean and deviation of each channel of the latents."""
    return save_sdxl(folder, seed=seed, scheduler=EDMEulerScheduler(**scheduler), latents=PLAYGROUND)
