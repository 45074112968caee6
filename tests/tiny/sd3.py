"""Stable Diffusion 3 and 3.5, tiny and with random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from pipelines import tokenizer
from tiny.t5 import t5_encoder, t5_tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

WIDTH = 40  # Of the states that the transformer reads: T5's, and both CLIPs' with zeros after them.
NEWER = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}  # What Stable Diffusion 3.5 Medium has beside 3 Medium.


def flow_vae():
    """With the shift that the VAEs of the flows have, and without layers between latents and moments."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=1.5,
        shift_factor=0.06,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def clip(tokens, width, act):
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        hidden_act=act,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    return CLIPTextModelWithProjection(config)


def save_sd3(folder, *, seed=0, t5=True, max_length=16, shift=3.0, scheduler=None, **changes):
    """A Stable Diffusion 3 pipeline of 16-pixel images; it reads 16 tokens by CLIP and 256 by T5."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens, other, pieces = tokenizer(max_length), tokenizer(max_length), t5_tokenizer()
        other.pad_token = "-"  # The second tokenizer of the published models pads with "!".
        transformer = SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            caption_projection_dim=16,
            pooled_projection_dim=12 + 20,
            pos_embed_max_size=6,
            **changes,
        )
        pipeline = StableDiffusion3Pipeline(
            transformer=transformer,
            scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=shift),
            vae=flow_vae(),
            text_encoder=clip(tokens, 12, "quick_gelu"),
            tokenizer=tokens,
            text_encoder_2=clip(tokens, 20, "gelu"),
            tokenizer_2=other,
            text_encoder_3=t5_encoder(pieces, WIDTH) if t5 else None,
            tokenizer_3=pieces if t5 else None,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
