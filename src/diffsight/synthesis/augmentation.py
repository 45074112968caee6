"""Random changes of training images, each addressed by seed, epoch and image."""

from collections.abc import Sequence
from math import exp, log, sqrt

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffsight.data.images import cut_square
from diffsight.synthesis.networks import SMALL
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.preprocessing import Preprocessing, pixels
from diffsight.synthesis.randomness import uniforms

STILL = ("shift", "none")  # Kinds of change that leave the size of an image as it is.
_TRIES = 10
_RATIOS = (log(3 / 4), log(4 / 3))


def augmented(
    image: Image.Image, preprocessing: Preprocessing, settings: TrainSettings, *address: str | int
) -> UInt8[Tensor, "3 h w"]:
    """One random version of an image.

    Args:
        image: In RGB.
        preprocessing: What the network takes.
        settings: Which changes.
        address: Of the random numbers: the same address gives the same version.
    """
    kind, size = kind_of(settings, preprocessing.size), preprocessing.size
    mirror, x, y, angle, *rest = uniforms(4 + 4 * _TRIES, "augment", *address).tolist()
    if kind == "crop":
        box = random_box(image.width, image.height, settings.crop_scale, rest)
        image = image.crop(box).resize((size, size), preprocessing.method)
    elif kind == "rotate":
        image = _random_square(preprocessing.resize(image.rotate(180 * (angle - 0.5))), size, x, y)
    else:
        image = preprocessing.square(image)
    if kind == "shift":
        margin = size // 8
        wider = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
        image = _random_square(Image.fromarray(wider), size, x, y)
    if settings.flip and mirror < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return pixels(image)


def augmented_batch(
    images: UInt8[Tensor, "b 3 side side"], settings: TrainSettings, numbers: Float[np.ndarray, "b 4"]
) -> UInt8[Tensor, "b 3 side side"]:
    """What `augmented` makes of images that have the network's size already and are shifted or left where they are.

    Args:
        images: On any device.
        settings: Which changes.
        numbers: The first of each image's address.
    """
    count, side = len(images), images.shape[-1]
    mirrors, *shares = numbers[:, :3].T
    margin = side // 8 if kind_of(settings, side) == "shift" else 0
    # Row and column of the picture behind each of the new one: reflected at the borders, as numpy pads.
    along = np.arange(-margin, side - margin)
    across, down = ((along + (share * (2 * margin + 1)).astype(np.int64)[:, None]) for share in shares)
    across, down = (np.abs(places) for places in (across, down))
    across, down = (np.where(places < side, places, 2 * (side - 1) - places) for places in (across, down))
    if settings.flip:
        across = np.where(mirrors[:, None] < 0.5, across[:, ::-1], across)
    device = images.device
    rows, columns = (torch.from_numpy(np.ascontiguousarray(places)).to(device) for places in (down, across))
    each, channels = torch.arange(count, device=device), torch.arange(3, device=device)
    return images[each[:, None, None, None], channels[:, None, None], rows[:, None, :, None], columns[:, None, None]]


def kind_of(settings: TrainSettings, size: int) -> str:
    """What ``augment="auto"`` stands for with images of this side."""
    if settings.augment != "auto":
        return settings.augment
    return "shift" if size <= SMALL else "crop"


def random_box(width: int, height: int, smallest: float, numbers: Sequence[float]) -> tuple[int, int, int, int]:
    """A random part of an image, by the law of torchvision's RandomResizedCrop, which has no generator of its own.

    Args:
        width: Of the image.
        height: Of the image.
        smallest: Part of the area.
        numbers: From 0 to 1, four for each try.

    Returns:
        Left, top, right and bottom.
    """
    for area, shape, x, y in zip(*[iter(numbers)] * 4, strict=True):
        target = width * height * (smallest + (1 - smallest) * area)
        ratio = exp(_RATIOS[0] + (_RATIOS[1] - _RATIOS[0]) * shape)
        w, h = round(sqrt(target * ratio)), round(sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(x * (width - w + 1)), int(y * (height - h + 1))
            return left, top, left + w, top + h
    # The middle, as near to the whole as the limits of the shape allow.
    ratio = width / height
    w = width if ratio <= 4 / 3 else round(height * 4 / 3)
    h = height if ratio >= 3 / 4 else round(width * 4 / 3)
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _random_square(image: Image.Image, side: int, x: float, y: float) -> Image.Image:
    return cut_square(image, side, int(x * (image.width - side + 1)), int(y * (image.height - side + 1)))
