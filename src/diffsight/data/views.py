"""Augmented views of an image, each with an address: a view is the same whoever asks, whenever and in whatever order.

The augmentation is that of Mukhopadhyay et al. (arXiv:2307.08702, as in ADM's ``random_crop_arr``): a random scale, a
random crop, and a mirror image every second time.
"""

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffsight.data.decoding import to_rgb
from diffsight.data.images import SCALERS, ImageTransform, cut_square
from diffsight.diffusion.noise import key_of
from diffsight.errors import InputError

STREAM = "views-philox4x64-1"


def augmented_view(
    image: Image.Image, transform: ImageTransform, *, image_id: str, view: int, seed: int = 0, flip: bool = True
) -> Float[Tensor, "3 h w"]:
    """Give one view of an image, as a backbone is fed.

    View 0 is the image as ``transform`` gives it. Any other is scaled so that its shorter side has from ``size`` to
    ⌈1.25 · ``size``⌉ pixels, all equally likely, with the filters of the transform's ``resize``; of that a random
    square of ``size`` is cut, and mirrored with probability 1/2. ``crop_first`` resizes what it has cut, so there a
    random square comes first, with a side that leads to the same scale. ``squash`` changes the aspect here, too.
    Luminance and padding are the transform's.

    Args:
        image: As `open_image` gives it.
        transform: What the backbone needs.
        image_id: Whose views; they differ between images.
        view: Number of the view, from 0.
        seed: Chooses among sets of views.
        flip: Whether views may be mirrored. Not for digits or text. Without it, views keep their scale and place.

    Returns:
        (3, output_size, output_size) in [-1, 1], fp32 on the CPU.

    Raises:
        InputError: If view or seed is not a whole number of at least 0.
    """
    for name, value in (("view", view), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"augmented_view: {name} must be a whole number of at least 0; got {value!r}.")
    if view == 0:
        return transform(image)
    image = image if image.mode == "RGB" else to_rgb(image, image_id)
    scale, left, top, mirror = _words(image_id, view=view, seed=seed)
    size, short = transform.size, min(image.size)
    side = size + _below(-(-size // 4) + 1, scale)
    if transform.resize == "crop_first":
        image = _random_square(image, max(1, round(short * size / side)), left, top)
        image = image.resize((size, size), transform.method)
    else:
        image = _random_square(SCALERS[transform.resize](image, side, transform.method), size, left, top)
    if flip and _below(2, mirror):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return transform.finish(image)


def _words(image_id: str, *, view: int, seed: int) -> list[int]:
    """Four random 64-bit words: numpy guarantees the raw stream of Philox, but not what is made of it."""
    # File names may hold bytes that are not text; Python carries them as lone surrogates.
    owner = b"image:" + image_id.encode("utf-8", "surrogatepass")
    return np.random.Philox(key=key_of(f"{STREAM} {seed} {view} ".encode() + owner)).random_raw(4).tolist()


def _below(limit: int, word: int) -> int:
    """A whole number from 0 to under ``limit``, from a random 64-bit word."""
    return word * limit >> 64


def _random_square(image: Image.Image, side: int, left: int, top: int) -> Image.Image:
    return cut_square(image, side, _below(image.width - side + 1, left), _below(image.height - side + 1, top))
