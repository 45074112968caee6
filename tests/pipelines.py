"""Complete pipelines of the real diffusers and transformers classes, tiny and with random weights."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MARKS = ["<|startoftext|>", "<|endoftext|>"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789.,-/"]
WORDS = ["a", "photo", "of", "cat", "dog", "bird"]


def tokenizer(max_length=16):
    """CLIP's tokenizer over letters, with merges for a few whole words."""
    merges, pieces = [], []
    for word in WORDS:
        left = word[0] if len(word) > 1 else f"{word}</w>"
        for i in range(1, len(word)):
            right = f"{word[i]}</w>" if i == len(word) - 1 else word[i]
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            pieces.append(left)
    vocab = list(dict.fromkeys([*LETTERS, *(f"{x}</w>" for x in LETTERS), *pieces, *MARKS]))
    return CLIPTokenizer(vocab={x: i for i, x in enumerate(vocab)}, merges=merges, model_max_length=max_length)


def vae():
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.5,
    )


def unet():
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def text_encoder(tokens):
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    return CLIPTextModel(config)


def save_stable_diffusion(folder, *, prediction_type="epsilon", seed=0, max_length=16, **scheduler):
    """A Stable Diffusion pipeline of a few thousand parameters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = tokenizer(max_length)
        pipeline = StableDiffusionPipeline(
            vae=vae(),
            text_encoder=text_encoder(tokens),
            tokenizer=tokens,
            unet=unet(),
            scheduler=DDPMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                prediction_type=prediction_type,
                steps_offset=1,
                clip_sample=False,
                **scheduler,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def save_dit(folder, *, names=("cat", "dog", "bird"), seed=0):
    """A DiT pipeline with learned variance and a null class."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=8,
            patch_size=2,
            num_embeds_ada_norm=len(names),
            norm_type="ada_norm_zero",
            activation_fn="gelu-approximate",
            norm_elementwise_affine=False,
        )
        # DiT starts as the identity; its gates are opened here so that classes differ.
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        pipeline = DiTPipeline(
            transformer=transformer,
            vae=vae(),
            scheduler=DDIMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False),
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # diffusers reads this key and does not write it; the published DiT folders have it.
    index = folder / "model_index.json"
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}}
    index.write_text(json.dumps(json.loads(index.read_text()) | labels))
    return folder


def pixel_unet(*, channels=3, classes=None, learned_variance=False, size=16):
    """A UNet on pixels like ADM's: two resolutions, attention in the lower one, ResNets that change the resolution."""
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels * 2 if learned_variance else channels,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        attention_head_dim=8,
        norm_num_groups=4,
        attn_norm_num_groups=4,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=classes,
    )


def save_ddpm(
    folder, *, names=(), null=False, prediction_type="epsilon", learned_variance=False, channels=3, seed=0, **scheduler
):
    """A pipeline in pixel space: unconditional without names; with ``null`` the last of the classes is the null class.

    Its blocks are enc.0 to enc.3, mid, dec.0 to dec.3.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = DDPMPipeline(
            unet=pixel_unet(
                channels=channels, classes=len(names) + null if names else None, learned_variance=learned_variance
            ),
            scheduler=DDPMScheduler(
                beta_start=1e-4,
                beta_end=0.02,
                beta_schedule="linear",
                prediction_type=prediction_type,
                variance_type="learned_range" if learned_variance else "fixed_small",
                clip_sample=False,
                **scheduler,
            ),
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # diffusers has no place for these.
    index = folder / "model_index.json"
    labels = {"id2label": {str(i): name for i, name in enumerate(names)}} if names else {}
    index.write_text(json.dumps(json.loads(index.read_text()) | labels))
    if null:
        (folder / "diffsight.json").write_text(json.dumps({"null_class": len(names)}))
    return folder
