"""Digital corruptions of ImageNet-C: contrast, a warped grid, large pixels, JPEG (Hendrycks & Dietterich 2019, §3.2).

Pixels are from 0 to 1, RGB.
"""

import io

import numpy as np
from jaxtyping import Float
from PIL import Image

from diffsight.data.addressed import Draws
from diffsight.data.blurring import gaussian
from diffsight.data.corruptions import scale_of

CONTRAST = {True: (0.75, 0.5, 0.4, 0.3, 0.15), False: (0.4, 0.3, 0.2, 0.1, 0.05)}
PIXELATE = {True: (0.95, 0.9, 0.85, 0.75, 0.65), False: (0.6, 0.5, 0.4, 0.3, 0.25)}
JPEG = {True: (80, 65, 58, 50, 40), False: (25, 18, 15, 10, 7)}
# Strength and smoothness of the local displacement, and largest displacement of three points of the whole: in sides of
# the small table; in 244ths of them, a slip that they published with, in the large one.
ELASTIC = {
    True: ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    False: ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
}
_UNIT = {True: 32, False: 244}


def contrast(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Pull all values towards the mean of their channel."""
    small, _ = scale_of(pixels)
    means = pixels.mean(axis=(0, 1))
    return means + CONTRAST[small][severity - 1] * (pixels - means)


def elastic_transform(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Tilt and stretch the whole a little, and displace what is near together alike.

    As published, the first severities move the whole further and the last ones crumple it more: only the latter grows
    from severity to severity, and the distance from the clean image does not.
    """
    from scipy.ndimage import map_coordinates

    small, scale = scale_of(pixels)
    strength, smooth, corner = (value * _UNIT[small] * scale for value in ELASTIC[small][severity - 1])
    places = np.indices(pixels.shape[:2]).astype(np.float64)
    places += local_displacement(draws, pixels.shape[:2], strength=strength, smooth=smooth)
    middle = (np.array(pixels.shape[:2]) / 2)[:, None]
    third = min(pixels.shape[:2]) / 3
    points = middle + third * np.array([[1.0, -1.0, -1.0], [1.0, 1.0, -1.0]])
    moved = points + corner * (2 * draws.uniform("corners", 2, 3) - 1)
    matrix = points @ np.linalg.inv(np.vstack([moved, np.ones(3)]))  # from where a point comes, given where it is
    source = np.tensordot(matrix[:, :2], places, axes=1) + matrix[:, 2, None, None]
    planes = [map_coordinates(plane, source, order=1, mode="reflect") for plane in np.moveaxis(pixels, 2, 0)]
    return np.stack(planes, axis=2)


def local_displacement(
    draws: Draws, shape: tuple[int, ...], *, strength: float, smooth: float
) -> Float[np.ndarray, "2 h w"]:
    """By how many pixels each place is displaced down and to the right: smoothed noise.

    Args:
        draws: Random numbers.
        shape: Height and width.
        strength: What the smoothed noise, which was from -1 to 1, is multiplied by.
        smooth: Deviation of the smoothing, in pixels.
    """
    noise = 2 * draws.uniform("displacement", *shape, 2) - 1
    return np.moveaxis(strength * gaussian(noise, smooth), 2, 0)


def pixelate(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Fewer and larger pixels, with a box filter both ways."""
    small, _ = scale_of(pixels)
    share = PIXELATE[small][severity - 1]
    image = _image(pixels)
    less = image.resize((max(1, int(image.width * share)), max(1, int(image.height * share))), Image.Resampling.BOX)
    return np.asarray(less.resize(image.size, Image.Resampling.BOX)) / 255.0


def jpeg_compression(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Save as JPEG with Pillow's default subsampling, and read again; versions of libjpeg may differ by rounding."""
    small, _ = scale_of(pixels)
    buffer = io.BytesIO()
    _image(pixels).save(buffer, "JPEG", quality=JPEG[small][severity - 1])
    buffer.seek(0)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB")) / 255.0


def _image(pixels: Float[np.ndarray, "h w 3"]) -> Image.Image:
    return Image.fromarray(np.rint(pixels * 255).astype(np.uint8))
