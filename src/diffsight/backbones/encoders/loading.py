"""Networks that turn images into vectors, as the baselines use them: CLIP and SigLIP with texts, DINOv2 without.

OpenCLIP's models whose weights are on the Hub in transformers' format (``hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K``)
are CLIP models like any other; the package open_clip is not needed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffsight.backbones.encoders.kinds import model_type
from diffsight.errors import ModelError

WITH_TEXTS = ("clip", "siglip")
KINDS = (*WITH_TEXTS, "dinov2")


@runtime_checkable
class ImageEncoder(Protocol):
    """A frozen network that gives a vector for each image."""

    @property
    def name(self) -> str:
        """How the user called it."""
        ...

    @property
    def size(self) -> int:
        """Side of the images that it reads."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def prepare(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """An RGB image, resized and cut."""
        ...

    def vectors(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images that were prepared, fp32, on its device."""
        ...

    def identity(self) -> dict[str, str]:
        """Everything about it that changes numbers."""
        ...


@runtime_checkable
class TextImageEncoder(ImageEncoder, Protocol):
    """One that gives vectors of texts as well, whose cosine with those of images says how well they fit."""

    @property
    def scale(self) -> float:
        """By what cosines are multiplied to be logits."""
        ...

    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, of length 1, fp32, on its device."""
        ...


def encoder_kind(name: str | Path) -> str | None:
    """Which of `KINDS` a name means; None for everything else, see `kinds.model_type`."""
    kind = model_type(name)
    return kind if kind in KINDS else None


def load_encoder(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> ImageEncoder:
    """Load a CLIP, SigLIP or DINOv2.

    Args:
        name: A card's name, a Hub repository (``"hf:org/repo"``), or a local folder in transformers' format.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        ModelError: If it is none of these, cannot be reached, is not complete, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    match encoder_kind(name):
        case "siglip":
            from diffsight.backbones.encoders.siglip import load_siglip

            return load_siglip(name, device=device, dtype=dtype)
        case "dinov2":
            from diffsight.backbones.encoders.dinov2 import load_dinov2

            return load_dinov2(name, device=device, dtype=dtype)
        case "clip":
            from diffsight.backbones.encoders.clip import load_clip

            return load_clip(name, device=device, dtype=dtype)
        case _:
            pass
    if str(name).startswith("hf:"):
        from diffsight.backbones.encoders.kinds import ADVICE
        from diffsight.backbones.hub import download, repository

        download([repository(str(name), None)], ["config.json"], advice=ADVICE)  # says why it cannot be reached
    elif "/" in str(name) and not Path(name).expanduser().exists():
        raise ModelError(f"The folder {name} does not exist. A Hub model is written 'hf:org/repo@revision'.")
    raise ModelError(f"{name} is none of the networks that are known here: {', '.join(KINDS)} of transformers.")
