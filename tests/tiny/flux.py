"""FLUX.1, tiny and with random weights."""

import json

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from pipelines import text_encoder, tokenizer
from tiny.sd3 import flow_vae
from tiny.t5 import t5_encoder, t5_tokenizer

SIZE = 16


def save_flux(folder, *, seed=0, guided=True, channels=4, scheduler=None, settings=None):
    """A FLUX pipeline: dev's kind, which is told the guidance and shifts its levels by the resolution, or schnell's."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens, pieces = tokenizer(), t5_tokenizer()
        transformer = FluxTransformer2DModel(
            in_channels=4 * channels,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            guidance_embeds=guided,
            axes_dims_rope=(4, 2, 2),
        )
        shift = {"shift": 3.0, "use_dynamic_shifting": True} if guided else {"shift": 1.0}
        pipeline = FluxPipeline(
            transformer=transformer,
            scheduler=scheduler or FlowMatchEulerDiscreteScheduler(**shift),
            vae=flow_vae(),
            text_encoder=text_encoder(tokens),
            tokenizer=tokens,
            text_encoder_2=t5_encoder(pieces, 24),
            tokenizer_2=pieces,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # No file of diffusers says how large the images are; without this they have 1024 pixels.
    own = {"transform": {"size": SIZE}} | (settings or {})
    (folder / "diffsight.json").write_text(json.dumps(own))
    return folder
