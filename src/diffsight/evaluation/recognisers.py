"""Networks as `evaluate` sees them: trained here or elsewhere, of torch or as ONNX, alone or one for each seed."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffsight.synthesis.export import SUFFIX, load_onnx
from diffsight.synthesis.trained import CARD
from diffsight.synthesis.trainer import SUMMARY, load_trained


@runtime_checkable
class Prepares(Protocol):
    """From an image to what a network takes."""

    @property
    def size(self) -> int:
        """Side of the square that is left."""
        ...

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Resize and cut an RGB image."""
        ...


@runtime_checkable
class Recogniser(Protocol):
    """What gives a logit of each class for an image."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """What each logit stands for."""
        ...

    @property
    def preprocessing(self) -> Prepares:
        """From an image to what it takes."""
        ...

    @property
    def label(self) -> str:
        """What has to be said beside its numbers."""
        ...

    def run(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images that were preprocessed."""
        ...

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        ...


def is_trained(model: str | Path) -> bool:
    """Whether this is what `train` or `export_onnx` wrote, rather than the name or folder of a diffusion model."""
    path = Path(model)
    return path.suffix.lower() == SUFFIX or (path / CARD).is_file() or (path / SUMMARY).is_file()


def load_recognisers(path: str | Path, *, device: str | torch.device | None = None) -> tuple[Recogniser, ...]:
    """The networks of a directory of `train` (one for each seed), of one seed, or of an ONNX file.

    Raises:
        ModelError: If nothing is there, or it is damaged.
    """
    return (load_onnx(path),) if Path(path).suffix.lower() == SUFFIX else load_trained(path, device=device)


def device_of(model: Recogniser) -> str:
    """Where a network computes."""
    return str(getattr(model, "device", "cpu (onnxruntime)"))
