"""Noise of ImageNet-C: what a camera adds to each pixel (Hendrycks & Dietterich 2019, §3.2).

Pixels are from 0 to 1, RGB; what is painted may leave that range, and `Corruption` clips it.
"""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from diffsight.data.addressed import Draws
from diffsight.data.corruptions import channels_of, scale_of

GAUSSIAN = {True: (0.04, 0.06, 0.08, 0.09, 0.10), False: (0.08, 0.12, 0.18, 0.26, 0.38)}
PHOTONS = {True: (500, 250, 100, 75, 50), False: (60, 25, 12, 5, 3)}
STRUCK = {True: (0.01, 0.02, 0.03, 0.05, 0.07), False: (0.03, 0.06, 0.09, 0.17, 0.27)}


def gaussian_noise(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Add normal noise of one deviation everywhere, as in low light."""
    small, _ = scale_of(pixels)
    noise = draws.normal("noise", *pixels.shape[:2], channels_of(pixels))
    return pixels + GAUSSIAN[small][severity - 1] * noise


def shot_noise(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Count photons: each value is a Poisson number with the mean ``value · photons``, divided by ``photons``."""
    small, _ = scale_of(pixels)
    photons = PHOTONS[small][severity - 1]
    channels = channels_of(pixels)
    chance = draws.uniform("noise", *pixels.shape[:2], channels)
    return np.broadcast_to(_poisson(pixels[..., :channels] * photons, chance) / photons, pixels.shape)


def impulse_noise(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Salt and pepper: a share of the values becomes white or black, both equally likely."""
    small, _ = scale_of(pixels)
    share = STRUCK[small][severity - 1]
    chance = draws.uniform("noise", *pixels.shape[:2], channels_of(pixels))
    return np.where(chance < share / 2, 0.0, np.where(chance > 1 - share / 2, 1.0, pixels))


def _poisson(means: NDArray[np.float64], chance: NDArray[np.float64]) -> Int[np.ndarray, "..."]:
    """Poisson numbers by the inverse of their distribution function; an image has few different means."""
    from scipy.special import pdtr

    values, which = np.unique(means, return_inverse=True)
    which = which.reshape(means.shape)
    counts = np.empty(means.shape, dtype=np.int64)
    order = np.argsort(which, axis=None, kind="stable")
    pieces = np.split(order, np.cumsum(np.bincount(which.ravel(), minlength=len(values)))[:-1])
    for mean, places in zip(values.tolist(), pieces, strict=True):
        highest = int(mean + 12 * np.sqrt(mean) + 24)
        counts.flat[places] = np.searchsorted(pdtr(np.arange(highest), mean), chance.flat[places])
    return counts
