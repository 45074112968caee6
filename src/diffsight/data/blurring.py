"""Blurs of ImageNet-C: out of focus, behind frosted glass, in motion, towards the viewer (2019, §3.2).

At the borders images are mirrored. Pixels are from 0 to 1, RGB.
"""

from math import ceil, cos, radians, sin

import numpy as np
from jaxtyping import Float
from PIL import Image

from diffsight.data.addressed import Draws
from diffsight.data.corruptions import scale_of

# Radius of the disc, and deviation of what smooths its edge.
DEFOCUS = {
    True: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    False: ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
}
# Deviation of the blur before and after, largest displacement, how often pixels are displaced.
GLASS = {
    True: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    False: ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
}
# Half the length of the trail, and its deviation.
MOTION = {
    True: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    False: ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
}
# Below which factor, and in which steps from 1.
ZOOM = {
    True: ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    False: ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
}
_OVERSAMPLED = 8
_LARGE = 16  # pixels; from there on a Gaussian is quicker by its transform


def defocus_blur(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Average over a disc. Radii need not be whole: a pixel at the edge counts by its part inside."""
    small, scale = scale_of(pixels)
    radius, edge = DEFOCUS[small][severity - 1]
    kernel = gaussian(_disc(radius * scale, margin=ceil(4 * edge * scale)), edge * scale)
    return convolve(pixels, kernel / kernel.sum())


def glass_blur(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Blur, take each pixel from a random neighbour, blur again.

    The published code exchanges pixels one after the other, so that some wander far. Here all are displaced at once, by
    the difference of two random steps, as far as two exchanges bring a pixel in the mean (of squares).
    """
    small, scale = scale_of(pixels)
    sigma, reach, times = GLASS[small][severity - 1]
    # Two steps from -reach to below reach have the variance (4·reach² - 1)/6; rounding to whole pixels adds 1/12.
    width_of_steps = max(1.0, scale * scale * (4 * reach * reach - 1) - 0.5) ** 0.5
    height, width = pixels.shape[:2]
    blurred = gaussian(pixels, sigma * scale)
    for turn in range(times):
        there, back = draws.uniform(f"turn {turn}", 2, 2, height, width)
        shift = np.rint(width_of_steps * (there - back)).astype(np.int64)
        rows = np.clip(np.arange(height)[:, None] + shift[0], 0, height - 1)
        columns = np.clip(np.arange(width) + shift[1], 0, width - 1)
        blurred = blurred[rows, columns]
    return gaussian(blurred, sigma * scale)


def motion_blur(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Trail each pixel in one direction, at most 45° from the horizontal."""
    small, scale = scale_of(pixels)
    radius, sigma = MOTION[small][severity - 1]
    return streak(pixels, radius * scale, sigma * scale, draws.between(-45, 45, "angle"))


def zoom_blur(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Average the image with its enlargements about the middle."""
    small, _ = scale_of(pixels)
    stop, step = ZOOM[small][severity - 1]
    factors = np.arange(1, stop, step).tolist()
    enlarged = [enlarge(pixels, factor) for factor in factors]
    return (pixels + sum(enlarged)) / (1 + len(factors))


def enlarge(pixels: Float[np.ndarray, "h w c"], factor: float) -> Float[np.ndarray, "h w c"]:
    """The middle of an image at its full size, bilinear; ``factor`` is at least 1."""
    height, width = pixels.shape[:2]
    left, top = (width - width / factor) / 2, (height - height / factor) / 2
    box = (left, top, width - left, height - top)
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in np.moveaxis(pixels, 2, 0)]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR, box)) for plane in planes]
    return np.stack(resized, axis=2).astype(np.float64)


def gaussian(array: Float[np.ndarray, "h w ..."], sigma: float) -> Float[np.ndarray, "h w ..."]:
    """Gaussian blur over the first two axes, mirrored at the borders."""
    if sigma < _LARGE:
        from scipy.ndimage import gaussian_filter

        return gaussian_filter(array, sigma, mode="reflect", axes=(0, 1))
    from scipy.fft import dctn, idctn

    decay = [np.exp(-0.5 * (sigma * np.pi * np.arange(size) / size) ** 2) for size in array.shape[:2]]
    shape = (*array.shape[:2], *(1 for _ in array.shape[2:]))
    frequencies = np.asarray(dctn(array, axes=(0, 1))) * np.outer(*decay).reshape(shape)
    return np.asarray(idctn(frequencies, axes=(0, 1)))


def streak(array: Float[np.ndarray, "h w c"], radius: float, sigma: float, angle: float) -> Float[np.ndarray, "h w c"]:
    """Trail in one direction: half a Gaussian along a line.

    Args:
        array: What is blurred.
        radius: Half the length of the line, in pixels.
        sigma: Deviation along it, in pixels.
        angle: Of the line to the horizontal, in degrees.
    """
    # Half steps, each shared among the four pixels around it.
    along = np.arange(0, 2 * radius + 0.25, 0.5)
    weights = np.exp(-0.5 * (along / max(sigma, 1e-6)) ** 2)
    reach = ceil(2 * radius) + 1
    rows, columns = reach + along * sin(radians(angle)), reach + along * cos(radians(angle))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = np.abs(1 - down - (rows - top)) * np.abs(1 - right - (columns - left))
        np.add.at(kernel, (np.minimum(top + down, 2 * reach), np.minimum(left + right, 2 * reach)), weights * share)
    return convolve(array, kernel / kernel.sum())


def convolve(array: Float[np.ndarray, "h w c"], kernel: Float[np.ndarray, "m n"]) -> Float[np.ndarray, "h w c"]:
    """Convolve with a kernel of odd size over the first two axes, mirrored at the borders."""
    from scipy.signal import fftconvolve

    rows, columns = (size // 2 for size in kernel.shape)
    padded = np.pad(array, ((rows, rows), (columns, columns), (0, 0)), mode="symmetric")
    return fftconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))


def _disc(radius: float, *, margin: int) -> Float[np.ndarray, "m m"]:
    """A disc by the part of each pixel that it covers."""
    radius = max(radius, 0.5)  # All smaller ones lie in one pixel, too.
    reach = ceil(radius) + margin
    fine = (np.arange((2 * reach + 1) * _OVERSAMPLED) + 0.5) / _OVERSAMPLED - reach - 0.5
    inside = fine[:, None] ** 2 + fine**2 <= radius**2
    size = 2 * reach + 1
    return inside.reshape(size, _OVERSAMPLED, size, _OVERSAMPLED).mean(axis=(1, 3))
