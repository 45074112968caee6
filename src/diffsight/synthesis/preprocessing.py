"""From any image to what a trained network takes; the same in training's evaluation, in use, and in an ONNX file."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from diffsight.data.images import INTERPOLATIONS, SCALERS, cut_square
from diffsight.errors import InputError, nearest

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALISATIONS = ("imagenet", "none", "own")
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Shorter side to ``scale``, centre square of ``size``, channels brought to mean 0 and deviation 1.

    Attributes:
        size: Side of the square, in pixels.
        scale: To what the shorter side is resized first; at least ``size``.
        interpolation: Filter, antialiased.
        mean: Of the channels, which are from 0 to 1.
        std: Their deviation.

    Raises:
        InputError: If a setting makes no sense.
    """

    size: int
    scale: int
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.scale:
            raise InputError(f"An image of {self.size} pixels cannot be cut from one of {self.scale}. Resize to more.")
        if self.interpolation not in INTERPOLATIONS:
            raise InputError(f"Unknown filter {self.interpolation!r}. {nearest(self.interpolation, INTERPOLATIONS)}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError(f"Three means and three positive deviations are needed; got {self.mean} and {self.std}.")

    @property
    def method(self) -> Image.Resampling:
        """Pillow's name of the filter."""
        return Image.Resampling[self.interpolation.upper()]

    def resize(self, image: Image.Image) -> Image.Image:
        """Bring the shorter side to ``scale``."""
        return SCALERS["shortest"](image, self.scale, self.method)

    def square(self, image: Image.Image) -> Image.Image:
        """Resize, and cut the middle."""
        image = self.resize(image)
        left, top = (round((side - self.size) / 2) for side in image.size)
        return cut_square(image, self.size, left, top)

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Resize and cut an RGB image; not normalised yet."""
        return pixels(self.square(image))

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Preprocessing":
        """Undo `to_dict`."""
        values: dict[str, Any] = {**settings, "mean": tuple(settings["mean"]), "std": tuple(settings["std"])}
        return cls(**values)


def pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An RGB image as a tensor."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def to_unit(batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Bytes to the range from 0 to 1."""
    return batch.float() / 255


class Normalised(nn.Module):
    """A network that takes images from 0 to 1, and normalises them itself.

    Attributes:
        network: What takes normalised images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.network((images - self.mean) / self.std)
