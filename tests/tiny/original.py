"""A tiny Stable Diffusion under the names of its authors' code, as single files have them."""

import re

from safetensors.torch import save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name, layers):
    """Of a UNet with so many layers per block."""
    path, _, kind = name.rpartition(".")
    if path in _OUTSIDE:
        return f"{_OUTSIDE[path]}.{kind}"
    side, *rest = name.split(".", 1)
    if side == "mid_block":
        part, number, inside = rest[0].split(".", 2)
        place = f"middle_block.{2 * int(number) if part == 'resnets' else 1}"
    else:
        block, part, number, inside = rest[0].split(".", 3)
        number = layers if part == "downsamplers" else int(number)
        step = int(block) * (layers + 1) + number + (side == "down_blocks")
        column = {"resnets": 0, "attentions": 1, "downsamplers": 0}.get(part)
        if part == "upsamplers":
            step, column = step + layers, 1 if block == "0" else 2  # The tiny one's first level has no attention.
        place = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{step}.{column}"
        if part == "downsamplers":
            inside = inside.replace("conv.", "op.")
    if part == "resnets":
        module, _, kind = inside.rpartition(".")
        inside = f"{_RESNET[module]}.{kind}"
    return f"{place}.{inside}"


def vae_name(name, levels):
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = name.replace("mid_block.attentions.0", "mid.attn_1")
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{levels - 1 - int(found[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{levels - 1 - int(found[1])}.upsample", name)
    if "attn_1" in name:
        for ours, theirs in _ATTENTION.items():
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def save_original(pipeline, file):
    """All weights of a Stable Diffusion pipeline in one file."""
    layers, levels = pipeline.unet.config.layers_per_block, len(pipeline.vae.config.block_out_channels)
    state = {
        f"model.diffusion_model.{unet_name(key, layers)}": value for key, value in pipeline.unet.state_dict().items()
    }
    for key, value in pipeline.vae.state_dict().items():
        square = value[:, :, None, None] if "attentions" in key and value.ndim == 2 else value  # 1×1 convolutions.
        state[f"first_stage_model.{vae_name(key, levels)}"] = square
    for key, value in pipeline.text_encoder.state_dict().items():
        state[f"cond_stage_model.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    save_file({key: value.contiguous() for key, value in state.items()}, file)
    return file
