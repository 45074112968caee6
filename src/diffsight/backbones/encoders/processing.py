"""What the encoders of the baselines share: from a picture to bytes, from bytes to what the network is fed."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

# What transformers calls an image processor; its classes have no common type that says what they take.
Processor = Any


def processed(processor: Processor, images: list[Image.Image]) -> Float[Tensor, "b 3 h w"]:
    """What the network is fed for RGB images."""
    # Said, because a picture of three pixels' height could be taken for one of three channels.
    return processor(images, input_data_format="channels_last", return_tensors="pt")["pixel_values"]


def as_bytes(processor: Processor, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """An RGB image, resized and cut as the processor does it, and not normalised yet."""
    cut = processor(
        [image], input_data_format="channels_last", return_tensors="pt", do_rescale=False, do_normalize=False
    )
    return cut["pixel_values"][0].round().clamp(0, 255).to(torch.uint8)


def normalised(processor: Processor, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """What the network is fed for what `as_bytes` gave."""
    values = batch.float()
    if processor.do_rescale:
        values = values * processor.rescale_factor
    if processor.do_normalize:
        mean, std = (
            torch.tensor(each, device=batch.device)[:, None, None]
            for each in (processor.image_mean, processor.image_std)
        )
        values = (values - mean) / std
    return values


def described(processor: Processor) -> str:
    """The settings that change pixels, alike for a processor from any release of transformers."""
    kept = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    settings = {k: v for k, v in processor.to_dict().items() if k in kept or k.startswith("do_")}
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(settings.items())}
    return str(values)


def unit(vectors: Tensor) -> Float[Tensor, "n d"]:
    """Vectors brought to length 1, fp32."""
    return nn.functional.normalize(vectors.float(), dim=-1)
