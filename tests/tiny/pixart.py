"""PixArt-α and PixArt-Σ, tiny and with random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from tiny.t5 import t5_encoder, t5_tokenizer

# Diffusers' pipeline tells a PixArt-α of this size, and of no other, how large the picture is.
ALPHA = {"sample_size": 128, "patch_size": 16, "use_additional_conditions": None, "pipeline": PixArtAlphaPipeline}


def vae():
    """Without attention, which at 128 latents a side would be most of a test."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    )


def save_pixart(folder, *, seed=0, pipeline=PixArtSigmaPipeline, scheduler=None, **changes):
    """A PixArt pipeline: Σ for 16-pixel images, with `ALPHA` α for 256 pixels and with the conditions of size."""
    settings = {
        "sample_size": 8,
        "patch_size": 2,
        "num_attention_heads": 3,
        "attention_head_dim": 8,
        "num_layers": 2,
        "cross_attention_dim": 24,
        "caption_channels": 24,
        "use_additional_conditions": False,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = t5_tokenizer()
        transformer = PixArtTransformer2DModel(**settings | changes)
        # Cross-attention is added without a gate: with weights of this size it says more than noise does.
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        made = pipeline(
            transformer=transformer,
            vae=vae(),
            text_encoder=t5_encoder(tokens),
            tokenizer=tokens,
            scheduler=scheduler or DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
        )
    made.save_pretrained(folder, safe_serialization=True)
    return folder
