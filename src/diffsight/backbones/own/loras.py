"""LoRA: low-rank changes of weights, read and fused by diffusers' own loaders (diffusers' and kohya's formats)."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffsight.backbones.folders import one_line, read_json
from diffsight.backbones.own.model_file import Lora
from diffsight.errors import ModelError

log = logging.getLogger(__name__)

_ADAPTER = "diffsight"
_SECOND = (".lora_B.", ".up.", "lora_up.")  # Of the two matrices of a layer, the one that comes last.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ReadLora:
    """A LoRA as diffusers reads it, for the parts of one pipeline.

    Attributes:
        name: Of the file.
        scale: What it is multiplied by.
        state: Its matrices, under names that begin with the part's.
        alphas: Of the layers, in formats that have them.
        metadata: Its configuration, in the format that has one.
    """

    name: str
    scale: float
    state: Mapping[str, Tensor]
    alphas: Mapping[str, Any] | None
    metadata: Mapping[str, Any] | None

    def fuse(self, network: nn.Module, part: str, *, quantized: bool = False) -> None:
        """Add it to a network's weights, where it says something of that part.

        Args:
            network: Of diffusers or transformers, in fp32 for full accuracy.
            part: Its folder.
            quantized: Whether its weights are, and so nothing can be added to them.

        Raises:
            ModelError: If it does not fit.
        """
        from diffusers import ModelMixin, StableDiffusionPipeline
        from diffusers.loaders.lora_base import fuse_text_encoder_lora
        from diffusers.utils import recurse_remove_peft_layers

        mine = [key for key in self.state if key.startswith(f"{part}.")]
        if not mine:
            return
        if quantized:
            raise ModelError(f"{self.name} changes the {part}, which cannot be fused in 8 or 4 bits. Use 'offload'.")
        # Without memory for it nothing is drawn for the matrices, which are read anyway.
        options: dict[str, Any] = {"adapter_name": _ADAPTER, "low_cpu_mem_usage": True}
        options |= {"network_alphas": self.alphas, "metadata": self.metadata}
        try:
            if isinstance(network, ModelMixin):
                network.load_lora_adapter(dict(self.state), prefix=part, **options)
            else:
                with torch.random.fork_rng(devices=[]):  # transformers draws numbers that it does not use.
                    StableDiffusionPipeline.load_lora_into_text_encoder(
                        dict(self.state), text_encoder=network, prefix=part, **options
                    )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
            raise ModelError(
                f"{self.name} does not fit the {part}: {one_line(error)} Its first keys are {', '.join(mine[:3])}. Is "
                "it for another model?"
            ) from error
        fitted = sum(1 for module in network.modules() if _ADAPTER in getattr(module, "lora_A", ()))
        expected = sum(1 for key in mine if any(mark in key for mark in _SECOND))
        if not fitted:
            raise ModelError(f"No layer of {self.name} fits the {part}. Its first keys are {', '.join(mine[:3])}.")
        if fitted < expected:
            log.warning(
                "Only %d of the %d layers that %s changes in the %s are there.", fitted, expected, self.name, part
            )
        if isinstance(network, ModelMixin):
            network.fuse_lora(lora_scale=self.scale)
            network.unload_lora()
            return
        fuse_text_encoder_lora(network, lora_scale=self.scale)
        recurse_remove_peft_layers(network)
        del network.peft_config
        network._hf_peft_config_loaded = False  # pyright: ignore[reportArgumentType]


def read_loras(loras: Sequence[Lora], pipeline: str, parts: Sequence[str], config: Path) -> tuple[ReadLora, ...]:
    """Read LoRA files for a pipeline.

    Args:
        loras: Which.
        pipeline: The class name in ``model_index.json``.
        parts: Its networks.
        config: The folder with the denoiser's ``config.json``.

    Raises:
        ModelError: If diffusers has no loader for the pipeline, peft is not installed, or a file is no LoRA for it.
    """
    if not loras:
        return ()
    import diffusers

    kind = getattr(diffusers, pipeline)
    if not hasattr(kind, "lora_state_dict"):
        raise ModelError(f"diffusers has no loader of LoRA for a {pipeline}. Fuse it yourself, and give the folder.")
    if find_spec("peft") is None:
        raise ModelError("LoRA needs peft, which is not installed: pip install 'diffsight[lora]'.")
    # diffusers' own pipelines ask for exactly this; only SDXL's tells of its UNet, whose blocks kohya counts otherwise.
    options: dict[str, Any] = {"return_lora_metadata": True, "return_alphas": True}
    if pipeline.startswith("StableDiffusionXL"):
        read = read_json(config / "config.json", "without a denoiser's config.json")
        options["unet_config"] = diffusers.configuration_utils.FrozenDict(read)
    return tuple(_read(kind, lora, parts, options) for lora in loras)


def _read(kind: Any, lora: Lora, parts: Sequence[str], options: Mapping[str, Any]) -> ReadLora:  # noqa: ANN401
    name = lora.file.name
    try:
        with safe_open(lora.file, framework="pt") as file:
            keys = list(file.keys())
        first = ", ".join(keys[:3])
        if any("dora_scale" in key for key in keys):
            raise ModelError(f"{name} is a DoRA, of which diffusers would read a part only. Fuse it where it was made.")
        # By folder and name: diffusers 0.36 asks for both where there is no network.
        state, *alphas, metadata = kind.lora_state_dict(
            str(lora.file.parent), weight_name=name, use_safetensors=True, local_files_only=True, **options
        )
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name} cannot be read as a LoRA: {one_line(error)}") from error
    if not any("lora" in key and key.startswith(tuple(f"{part}." for part in parts)) for key in state):
        raise ModelError(
            f"{name} is no LoRA for this model: it changes nothing in {' or '.join(parts)}. Its first keys are "
            f"{first or 'none'}."
        )
    if strange := [key for key in state if "lora" not in key]:
        raise ModelError(f"{name} holds something else than a LoRA, which would be left out: {', '.join(strange[:3])}.")
    return ReadLora(
        name=name, scale=lora.scale, state=state, alphas=alphas[0] if alphas else None, metadata=metadata or None
    )
