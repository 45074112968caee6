"""The networks that `gpu.py` times: Stable Diffusion 2's UNet and DiT-XL/2, with random weights.

Nothing is read or downloaded but the embedded model, whose VAE and text encoder stand in for parts that the scoring
loop does not run. Weights are drawn where they are used. How long a pass takes depends on shapes alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from diffsight.backbones import load
from diffsight.backbones.base import Backbone, Condition
from diffsight.backbones.models.transformer import ClassTransformer
from diffsight.backbones.opened import frozen, quiet
from diffsight.data.images import ImageTransform
from diffsight.diffusion.schedule import ddpm


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A network to be timed.

    Attributes:
        title: For the table.
        config: Of the diffusers class.
        tokens: Length of a prompt; 0 for a network that reads class ids.
        batches: Which batch sizes are tried.
        compile_seconds: What compilation is expected to take, generously.
    """

    title: str
    config: Mapping[str, Any]
    tokens: int
    batches: tuple[int, ...]
    compile_seconds: float

    def network(self) -> torch.nn.Module:
        """The network with torch's random initialisation, on torch's current default device."""
        return (UNet2DConditionModel if self.tokens else DiTTransformer2DModel)(**self.config)

    def inputs(self, rows: int, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The arguments of a pass."""
        side = self.config["sample_size"]
        given = {
            "timestep": torch.full((rows,), 500, device=device),
            ("sample" if self.tokens else "hidden_states"): torch.randn(
                rows, 4, side, side, device=device, dtype=dtype
            ),
        }
        if self.tokens:
            size = (rows, self.tokens, self.config["cross_attention_dim"])
            return {**given, "encoder_hidden_states": torch.randn(size, device=device, dtype=dtype)}
        return {**given, "class_labels": torch.arange(rows, device=device) % self.config["num_embeds_ada_norm"]}


_UNET = {
    "down_block_types": (*("CrossAttnDownBlock2D",) * 3, "DownBlock2D"),
    "up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3),
    "use_linear_projection": True,
}
_DIT = {"patch_size": 2, "in_channels": 4, "out_channels": 8, "attention_bias": True}

SHAPES: Mapping[str, Mapping[str, Shape]] = {
    "full": {
        "unet": Shape(
            title="SD-2-base UNet, 64×64",
            config={
                **_UNET,
                "sample_size": 64,
                "block_out_channels": (320, 640, 1280, 1280),
                "attention_head_dim": (5, 10, 20, 20),  # in this class the number of heads, whatever it is called
                "cross_attention_dim": 1024,
            },
            tokens=77,
            batches=(64, 128, 32),
            compile_seconds=90,
        ),
        "dit": Shape(
            title="DiT-XL/2, 32×32",
            config={
                **_DIT,
                "sample_size": 32,
                "num_layers": 28,
                "num_attention_heads": 16,
                "attention_head_dim": 72,
                "num_embeds_ada_norm": 1000,
            },
            tokens=0,
            batches=(128, 256, 64),
            compile_seconds=60,
        ),
    },
    "small": {
        "unet": Shape(
            title="small UNet, 8×8",
            config={
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "use_linear_projection": True,
                "sample_size": 8,
                "block_out_channels": (32, 32),
                "layers_per_block": 1,
                "attention_head_dim": (2, 2),
                "cross_attention_dim": 32,
            },
            tokens=16,
            batches=(16, 8),
            compile_seconds=60,
        ),
        "dit": Shape(
            title="small DiT, 8×8",
            config={
                **_DIT,
                "sample_size": 8,
                "num_layers": 2,
                "num_attention_heads": 2,
                "attention_head_dim": 32,
                "num_embeds_ada_norm": 10,
            },
            tokens=0,
            batches=(16, 8),
            compile_seconds=60,
        ),
    },
}


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Backbone:
    """The backbone around a new network, as `diffsight.load` would make it."""
    with quiet(), torch.device(device):
        network = frozen(shape.network(), device).to(dtype)
    parts: Any = load("tiny-fashion", device=device, dtype=dtype)
    transform = ImageTransform(size=shape.config["sample_size"] * parts.space.factor)
    if shape.tokens:
        return replace(
            parts, name=shape.title, unet=network, transform=transform, schedule=ddpm(), device=device, dtype=dtype
        )
    return ClassTransformer(
        name=shape.title,
        transformer=network,
        space=parts.space,
        schedule=ddpm(1000, 1e-4, 0.02, "linear"),
        transform=transform,
        class_names=tuple(f"class {number}" for number in range(shape.config["num_embeds_ada_norm"])),
        provenance={},
        device=device,
        dtype=dtype,
    )


def arms(shape: Shape, backbone: Backbone, count: int) -> Condition:
    """What competes: so many classes, or so many random texts of the right length."""
    if not shape.tokens:
        return backbone.condition([str(number) for number in range(count)])
    size = (count, shape.tokens, shape.config["cross_attention_dim"])
    states = torch.randn(size, device=backbone.device, dtype=backbone.dtype)
    names = tuple(f"text {number}" for number in range(count))
    return Condition(names, {"encoder_hidden_states": states}, {"encoder_hidden_states": states[:1]})


def flops_per_call(shape: Shape) -> dict[str, int]:
    """Operations of one row by kind, counted without computing: two for each multiplication and its addition.

    Matrix products, convolutions and attention count; norms and activations, under 1 %, do not.
    """
    meta = torch.device("meta")
    counter = FlopCounterMode(display=False)
    with meta:
        network = shape.network().eval()
        inputs = shape.inputs(1, meta, torch.float32)
    with counter, torch.no_grad():
        network(**inputs)
    return {str(kind): flops for kind, flops in counter.get_flop_counts()["Global"].items()}
