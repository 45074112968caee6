"""SigLIP, DINOv2 and networks of timm of a few thousand random weights, as folders."""

import json

import timm
import torch
from pipelines import tokenizer
from safetensors.torch import save_file
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def random_weights(model, seed=0):
    """Weights with which different inputs give different vectors."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def save_siglip(folder, *, length=16, gemma=False):
    tokens = tokenizer(length)
    tokens.pad_token = "<|endoftext|>"
    marks = {name: getattr(tokens, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = SiglipConfig(
        text_config={**LAYERS, **marks, "vocab_size": len(tokens), "max_position_embeddings": length},
        vision_config={**LAYERS, "image_size": 16, "patch_size": 8},
    )
    with torch.random.fork_rng():
        random_weights(SiglipModel(config)).save_pretrained(folder)
    tokens.save_pretrained(folder)
    if gemma:
        own = folder / "tokenizer_config.json"
        own.write_text(json.dumps(json.loads(own.read_text()) | {"tokenizer_class": "GemmaTokenizer"}))
    SiglipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def save_dinov2(folder):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=8
    )
    with torch.random.fork_rng():
        random_weights(Dinov2Model(config)).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 18}, crop_size={"height": 16, "width": 16}, resample=3).save_pretrained(
        folder
    )
    return folder


def save_timm(folder, names, **values):
    """A network of timm in timm's own format of the Hub."""
    with torch.random.fork_rng():
        network = timm.create_model("test_resnet", num_classes=len(names) if names else 1000)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / "model.safetensors")
    known = {"input_size": [3, 24, 24], "crop_pct": 0.875, "interpolation": "bicubic", "classifier": "fc"} | values
    config = {"architecture": "test_resnet", "num_classes": network.num_classes, "pretrained_cfg": known}
    (folder / "config.json").write_text(json.dumps(config | ({"label_names": list(names)} if names else {})))
    return folder
