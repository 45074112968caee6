"""Stage I of DeepFloyd IF, tiny and with random weights."""

import torch
from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel
from tiny.t5 import t5_encoder, t5_tokenizer


def if_unet(**changes):
    """As IF's UNet: attention to image and text in one, a pooled text in the time embedding, learned variance."""
    settings = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 6,
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "act_fn": "gelu",
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": 24,
        "encoder_hid_dim_type": "text_proj",
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "resnet_time_scale_shift": "scale_shift",
        "resnet_skip_time_act": True,
        "resnet_out_scale_factor": 2**0.5,
        "mid_block_scale_factor": 2**0.5,
        "time_embedding_act_fn": "gelu",
    }
    return UNet2DConditionModel(**settings | changes)


def save_deepfloyd(folder, *, seed=0, text=True, scheduler=None, **changes):
    """A pipeline of IF's stage I for 16-pixel images; without a text encoder, as its later stages lie on the Hub."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = t5_tokenizer()
        pipeline = IFPipeline(
            unet=if_unet(**changes),
            text_encoder=t5_encoder(tokens) if text else None,
            tokenizer=tokens if text else None,
            scheduler=scheduler
            or DDPMScheduler(
                beta_schedule="squaredcos_cap_v2",
                variance_type="learned_range",
                thresholding=True,
                sample_max_value=1.5,
                dynamic_thresholding_ratio=0.95,
            ),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
