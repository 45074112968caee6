"""Checkpoints of OpenAI's guided-diffusion (ADM), turned once into a local folder that `diffsight.load` reads.

The authors' network is a ``UNet2DModel`` under other names, so that weights are only moved. ``input_blocks.i`` is the
block ``enc.i`` of `diffsight.backbones.layers`, ``middle_block`` is ``mid``, and ``output_blocks.j`` is ``dec.j``.
"""

import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import count
from pathlib import Path

import torch
from diffusers import DDPMPipeline, UNet2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffsight.backbones.converting.adm_networks import (
    KINDS,
    ADMConfig,
    empty_network,
    find_kind,
    scheduler,
    time_table,
)
from diffsight.backbones.folders import one_line
from diffsight.errors import InputError, ModelError

# For each tensor of the authors', the names of those that it becomes, and the shape that it must have.
Plan = Mapping[str, tuple[Sequence[str], tuple[int, ...]]]

# Modules with weights inside a ResNet and inside an attention block: the authors' names, and diffusers'.
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "proj_out": ("to_out.0",)}
# Where training scripts keep the state dict of a network.
_WRAPPERS = ("state_dict", "model_state_dict", "ema_state_dict", "model", "ema", "module")


def convert_adm(checkpoint: Path | str, out: Path | str, *, kind: str | ADMConfig) -> Path:
    """Write a local folder in diffusers' format with a checkpoint's weights, whole or not at all.

    The authors' class-conditional models have no null class, and features need one. They get it as an additional class:
    the mean of all class embeddings. That is an average, and nothing that the network was trained with.

    Args:
        checkpoint: The ``.pt`` file as published, or its state dict as safetensors.
        out: The folder; it must not exist.
        kind: The name of a published model, from `KINDS`, or a configuration of one's own.

    Returns:
        The folder.

    Raises:
        InputError: If the kind is unknown, or the folder exists.
        ModelError: If diffusers cannot represent the kind, the checkpoint is none of that kind or cannot be read, or
            the folder cannot be written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    config = kind if isinstance(kind, ADMConfig) else find_kind(kind)
    if out.exists():
        raise InputError(f"{out} exists already. Remove it, or give another folder.")
    state = read_state(checkpoint)
    network = empty_network(config)
    plan = _plan(config, network)
    if misfit := _misfit(state, plan):
        others = [name for name, other in KINDS.items() if not _misfit(state, _plan(other, empty_network(other)))]
        raise ModelError(
            f"{checkpoint} is no checkpoint of {'this configuration' if isinstance(kind, ADMConfig) else kind}: "
            f"{misfit}. " + (f"It is one of {' and '.join(others)}." if others else "Nor is it one of any other kind.")
        )
    weights = {}
    for key, (names, _) in plan.items():
        weights |= zip(names, _moved(key, state[key].float(), config), strict=True)
    if config.tabulates_time:
        weights["time_proj.weight"] = time_table(config.channels, config.widths[0])[0].float()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
            unfinished = Path(place) / out.name
            _write(unfinished, network, weights, config, origin=checkpoint.name)
            unfinished.rename(out)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out} cannot be written, and nothing of it was left: {one_line(error)}.") from error
    return out


def read_state(checkpoint: Path) -> dict[str, Tensor]:
    """Read a state dict, and nothing that could run code.

    Raises:
        ModelError: If the file is not there, is damaged, or holds anything but named tensors.
    """
    if not checkpoint.is_file():
        raise ModelError(f"There is no file {checkpoint}.")
    try:
        if checkpoint.suffix == ".safetensors":
            return load_file(checkpoint)
        # torch's older format is no archive and cannot be mapped into memory.
        mapped = zipfile.is_zipfile(checkpoint)
        state = torch.load(checkpoint, weights_only=True, mmap=mapped, map_location="cpu")
    except Exception as error:  # Whatever a foreign file makes the readers raise.
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise ModelError(
                f"{checkpoint} holds not only weights but {found[1]}. To read that can run code, so it is refused. "
                "Take the file as its authors publish it, or save its state dict alone where you trust it."
            ) from error
        raise ModelError(
            f"{checkpoint} cannot be read as weights: it is damaged, not complete, or of another format. Compare its "
            "size with that of the published file."
        ) from error
    if not isinstance(state, Mapping):
        raise ModelError(f"{checkpoint} holds a {type(state).__name__} and no state dict.")
    if strange := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        inside = next((key for key in _WRAPPERS if isinstance(state.get(key), Mapping)), None)
        advice = f" Save what is under {inside!r} alone, and convert that." if inside else ""
        raise ModelError(
            f"{checkpoint} is no state dict of a network, but perhaps a training checkpoint: its {strange[0]!r} is a "
            f"{type(state[strange[0]]).__name__} and no tensor.{advice}"
        )
    return dict(state)


def _write(folder: Path, network: UNet2DModel, weights: dict[str, Tensor], config: ADMConfig, *, origin: str) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    pipeline = DDPMPipeline(unet=network, scheduler=scheduler(config))
    pipeline.save_config(folder)
    pipeline.scheduler.save_config(folder / "scheduler")
    network.save_config(folder / "unet")
    save_file(weights, file, metadata={"format": "pt"})
    file.chmod((folder / "model_index.json").stat().st_mode)  # safetensors makes files for their owner alone.
    own = {"null_class": config.classes} if config.classes else {}
    own |= {"converted_from": {"file": origin, "flags": asdict(config)}}
    (folder / "diffsight.json").write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")


def _modules(config: ADMConfig) -> Iterator[tuple[str, Sequence[str]]]:
    """Modules with weights in the order of execution: the authors' name, and diffusers' one or three."""
    yield "time_embed.0", ["time_embedding.linear_1"]
    yield "time_embed.2", ["time_embedding.linear_2"]
    yield "label_emb", ["class_embedding"]
    yield "input_blocks.0.0", ["conv_in"]
    block = count(1)
    for level, side in enumerate(config.sides):
        ours = f"down_blocks.{level}"
        for i in range(config.res_blocks):
            theirs = f"input_blocks.{next(block)}"
            yield from _resnet(f"{theirs}.0", f"{ours}.resnets.{i}")
            if side in config.attention:
                yield from _attention(f"{theirs}.1", f"{ours}.attentions.{i}")
        if side != config.sides[-1]:
            yield from _resnet(f"input_blocks.{next(block)}.0", f"{ours}.downsamplers.0")
    yield from _resnet("middle_block.0", "mid_block.resnets.0")
    yield from _attention("middle_block.1", "mid_block.attentions.0")
    yield from _resnet("middle_block.2", "mid_block.resnets.1")
    block = count()
    for level, side in enumerate(reversed(config.sides)):
        ours = f"up_blocks.{level}"
        for i in range(config.res_blocks + 1):
            theirs, place = f"output_blocks.{next(block)}", count()
            yield from _resnet(f"{theirs}.{next(place)}", f"{ours}.resnets.{i}")
            if side in config.attention:
                yield from _attention(f"{theirs}.{next(place)}", f"{ours}.attentions.{i}")
            if i == config.res_blocks and side != config.sides[0]:
                yield from _resnet(f"{theirs}.{next(place)}", f"{ours}.upsamplers.0")
    yield "out.0", ["conv_norm_out"]
    yield "out.2", ["conv_out"]


def _resnet(theirs: str, ours: str) -> Iterator[tuple[str, Sequence[str]]]:
    return ((f"{theirs}.{part}", [f"{ours}.{name}"]) for part, name in _RESNET.items())


def _attention(theirs: str, ours: str) -> Iterator[tuple[str, Sequence[str]]]:
    return ((f"{theirs}.{part}", [f"{ours}.{name}" for name in names]) for part, names in _ATTENTION.items())


def _plan(config: ADMConfig, network: UNet2DModel) -> Plan:
    ours = network.state_dict()
    plan = {}
    for module, modules in _modules(config):
        for part in ("weight", "bias"):
            names = [f"{name}.{part}" for name in modules]
            if names[0] not in ours:  # Only where its width changes has a ResNet a skip_connection, for example.
                continue
            first, *rest = ours[names[0]].shape
            match module.rpartition(".")[2], part:
                case "label_emb", _:
                    first -= 1  # The null class is ours.
                case "qkv" | "proj_out", "weight":
                    rest.append(1)  # A convolution over the tokens.
            if module == "time_embed.0" and part == "weight":
                rest = [config.channels]
            plan[f"{module}.{part}"] = names, (first * len(names), *rest)
    return plan


def _misfit(state: Mapping[str, Tensor], plan: Plan) -> str:
    """How a state dict differs from what was to be expected; empty if it does not."""
    found = {
        "missing": [key for key in plan if key not in state],
        "unknown": [key for key in state if key not in plan],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {shape}"
            for key, (_, shape) in plan.items()
            if key in state and tuple(state[key].shape) != shape
        ],
    }
    return "; ".join(
        f"{how}: {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
        for how, keys in found.items()
        if keys
    )


def _moved(key: str, tensor: Tensor, config: ADMConfig) -> Sequence[Tensor]:
    """What a tensor of theirs becomes."""
    if key == "label_emb.weight":
        return [torch.cat([tensor, tensor.mean(0, keepdim=True)])]
    if key == "time_embed.0.weight" and config.tabulates_time:
        return [(tensor.double() @ time_table(config.channels, config.widths[0])[1]).float()]
    if key.endswith((".qkv.weight", ".proj_out.weight")):
        tensor = tensor.squeeze(-1)
    if ".qkv." not in key:
        return [tensor.contiguous()]
    if config.new_attention_order:
        return [part.clone() for part in tensor.chunk(3)]
    heads = tensor.unflatten(0, (-1, 3, config.head_channels))
    return [part.flatten(0, 1) for part in heads.unbind(1)]
