"""Text encoders in little memory: offloaded, or quantised by the library that does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from diffsight.errors import InputError, ModelError

TEXT_ENCODERS = ("offload", "8bit", "4bit")
_LIBRARIES = ("bitsandbytes", "accelerate")


def check_text_encoder(how: str | None) -> None:
    """Refuse an unknown way to keep text encoders.

    Raises:
        InputError: With those that are known.
    """
    if how is not None and how not in TEXT_ENCODERS:
        raise InputError(f"Unknown text_encoder {how!r}. Use one of {', '.join(TEXT_ENCODERS)}, or None.")


def quantized(how: str, device: torch.device) -> dict[str, Any]:
    """How transformers has to be told to read a quantised text encoder.

    Args:
        how: ``"8bit"`` (LLM.int8, 2208.07339) or ``"4bit"`` (NF4, computed in bf16; 2305.14314, §3).
        device: Where it is to lie.

    Raises:
        ModelError: If it cannot be done here: bitsandbytes is missing, or there is no NVIDIA GPU.
    """
    if device.type != "cuda":
        raise ModelError(
            f"A text encoder in {how} needs an NVIDIA GPU, and this model is to run on {device.type}. Leave it in full "
            "precision (text_encoder: None), or use 'offload' where the GPU's memory is small."
        )
    if missing := [library for library in _LIBRARIES if find_spec(library) is None]:
        raise ModelError(
            f"A text encoder in {how} needs {' and '.join(_LIBRARIES)}, and {missing[0]} is not installed: "
            f"pip install {' '.join(_LIBRARIES)}"
        )
    return {"quantization_config": quantization(how), "device_map": {"": device}}


def quantization(how: str) -> Any:  # noqa: ANN401 - imported when it is needed
    """The settings of bitsandbytes: ``"8bit"`` as the library has it, ``"4bit"`` as QLoRA has it."""
    from transformers import BitsAndBytesConfig

    if how == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


@contextmanager
def visiting(encoder: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Let an offloaded encoder run on a device, and send it home afterwards.

    Args:
        encoder: One that lies on the device already stays where it is; None is nothing to move.
        device: Of the denoiser.
    """
    home = next((parameter.device for parameter in encoder.parameters()), device) if encoder is not None else device
    if encoder is None or home.type == device.type:
        yield
        return
    encoder.to(device)
    try:
        yield
    finally:
        encoder.to(home)
