"""Sana, tiny and with random weights."""

import string

import torch
from diffusers import AutoencoderDC, FlowMatchEulerDiscreteScheduler, SanaPipeline, SanaTransformer2DModel
from pipelines import WORDS
from transformers import Gemma2Config, Gemma2Model, GemmaTokenizerFast


def gemma_tokenizer():
    """Gemma's kind of tokenizer over the signs of the instruction, with merges for a few whole words."""
    signs = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", "\n", *string.printable.strip()])
    merges = []
    for word in WORDS:
        whole = f"▁{word}"
        for stop in range(2, len(whole) + 1):
            if (pair := (whole[: stop - 1], whole[stop - 1])) not in merges:
                merges.append(pair)
            signs.setdefault(whole[:stop])
    return GemmaTokenizerFast(vocab={sign: i for i, sign in enumerate(signs)}, merges=merges, add_bos_token=True)


def gemma(tokens):
    config = Gemma2Config(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        query_pre_attn_scalar=8,
        pad_token_id=tokens.pad_token_id,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
    )
    return Gemma2Model(config)


def deep_autoencoder():
    """Four pixels per latent along a side; residual blocks, and one of attention, as in the published one."""
    return AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 16, 16),
        decoder_block_out_channels=(8, 16, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41407,
    )


def save_sana(folder, *, seed=0, scheduler=None, **changes):
    """A Sana pipeline for 32-pixel images, the smallest that diffusers' pipeline takes."""
    settings = {
        "in_channels": 8,
        "out_channels": 8,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": 16,
        "sample_size": 8,
        "timestep_scale": 0.5,  # 1 in the published models; only another number shows that it is heeded
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokens = gemma_tokenizer()
        transformer = SanaTransformer2DModel(**settings | changes)
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        pipeline = SanaPipeline(
            transformer=transformer,
            vae=deep_autoencoder(),
            text_encoder=gemma(tokens),
            tokenizer=tokens,
            scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
