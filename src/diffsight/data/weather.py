"""Weather of ImageNet-C: snow, frost, fog and bright light (Hendrycks & Dietterich 2019, §3.2), all of it computed.

Frost was published with photographs of frosted panes. Here it is drawn: ice crystals that branch at 60°, over haze. Fog
is a sum of octaves of smooth noise, where they had a diamond-square fractal. Pixels are from 0 to 1, RGB.
"""

from math import ceil

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffsight.data.addressed import Draws
from diffsight.data.blurring import gaussian, streak
from diffsight.data.corruptions import channels_of, scale_of

# Mean and deviation of the noise, size of flakes, threshold, radius and deviation of the trail, share of the image.
SNOW = {
    True: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    False: (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
}
# What is left of the image, and how much frost is added.
FROST = {
    True: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    False: ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
}
# Thickness, and by which factor squared each octave is weaker than the one before.
FOG = {
    True: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    False: ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
}
BRIGHTNESS = {True: (0.05, 0.1, 0.15, 0.2, 0.3), False: (0.1, 0.2, 0.3, 0.4, 0.5)}
LUMINANCE = (0.299, 0.587, 0.114)
_ICE = (0.90, 0.97, 1.0)
_CRYSTALS, _ARMS, _NODES = 40, 6, 7


def snow(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Whiten the image, and let flakes with trails fall over it, once as they are and once turned around.

    The layer of flakes is painted at the size of the published table, and scaled to that of the image.
    """
    small, scale = scale_of(pixels)
    mean, deviation, size, threshold, radius, sigma, kept = SNOW[small][severity - 1]
    height, width = (max(1, round(side / scale)) for side in pixels.shape[:2])
    layer = mean + deviation * draws.normal("flakes", ceil(height / size), ceil(width / size))
    layer = _resize(layer, height, width, Image.Resampling.BILINEAR)
    layer = np.clip(np.where(layer < threshold, 0.0, layer), 0, 1)[..., None]
    layer = streak(layer, radius, sigma, draws.between(45, 135, "angle"))[..., 0]
    layer = _resize(layer, pixels.shape[0], pixels.shape[1], Image.Resampling.BILINEAR)[..., None]
    whitened = np.maximum(pixels, 1.5 * (pixels @ np.array(LUMINANCE))[..., None] + 0.5)
    return kept * pixels + (1 - kept) * whitened + layer + layer[::-1, ::-1]


def frost(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Look through a frosted pane."""
    small, _ = scale_of(pixels)
    kept, added = FROST[small][severity - 1]
    ice = ice_crystals(draws, pixels.shape[:2])[..., None]
    return kept * pixels + added * (ice if channels_of(pixels) == 1 else ice * np.array(_ICE))


def fog(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Add clouds of light, and darken the whole so that the brightest value can stay what it is."""
    small, _ = scale_of(pixels)
    thickness, decay = FOG[small][severity - 1]
    highest = pixels.max()
    clouds = fractal(draws, pixels.shape[:2], decay=decay**2)[..., None]
    return (pixels + thickness * clouds) * highest / (highest + thickness)


def brightness(pixels: Float[np.ndarray, "h w 3"], severity: int, draws: Draws) -> Float[np.ndarray, "h w 3"]:
    """Raise the value of hue, saturation and value."""
    small, _ = scale_of(pixels)
    value = pixels.max(axis=2, keepdims=True)
    raised = np.minimum(value + BRIGHTNESS[small][severity - 1], 1)
    # Hue and saturation stay as they are if all channels grow alike; black has neither, and becomes grey.
    return np.where(value > 0, pixels * (raised / np.where(value > 0, value, 1)), raised)


def fractal(draws: Draws, shape: tuple[int, ...], *, decay: float) -> Float[np.ndarray, "h w"]:
    """Clouds from 0 to 1: octaves of smooth noise, each twice as fine as the one before and weaker by ``decay``.

    Args:
        draws: Random numbers.
        shape: Height and width; the clouds fill a square of the longer of them.
        decay: 1: as rough as noise. 4: soft.
    """
    side = max(shape)
    total = np.zeros((side, side))
    octave, cells = 0, 2
    while octave == 0 or cells <= side:
        noise = 2 * draws.uniform(f"octave {octave}", cells + 1, cells + 1) - 1
        total += decay**-octave * _resize(noise, side, side, Image.Resampling.BICUBIC)
        octave, cells = octave + 1, cells * 2
    total = total[: shape[0], : shape[1]]
    return (total - total.min()) / max(np.ptp(total), 1e-12)


def ice_crystals(draws: Draws, shape: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    """A pane of frost from 0 to 1: haze, and crystals whose arms branch at 60°."""
    side = max(shape)
    full = max(2 * side, 256)
    canvas = Image.new("L", (full, full))
    pen = ImageDraw.Draw(canvas)
    width = max(1, round(full / 180))
    for light, pieces in zip((255, 190), _branches(draws), strict=True):
        for piece in (pieces * full).tolist():
            pen.line(piece, fill=light, width=width)
    needles = np.asarray(canvas.resize((side, side), Image.Resampling.BOX)) / 255.0
    glow = gaussian(needles, side / 30)
    haze = fractal(draws, (side, side), decay=1.6)
    pane = 0.05 + 0.45 * haze**1.5 + 0.55 * needles * (0.4 + 0.6 * haze) + 0.8 * glow
    return np.clip(pane, 0, 1)[: shape[0], : shape[1]]


def _branches(draws: Draws) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Arms of the crystals, and what branches off them: x and y of both ends of each piece, in sides of the pane."""
    places = 1.2 * draws.uniform("places", _CRYSTALS, 1, 1, 2) - 0.1
    turns = np.pi / 3 * (draws.uniform("turns", _CRYSTALS, 1, 1) + np.arange(_ARMS)[:, None])
    # Few large crystals and many small ones, as where ice has grown around them.
    length = 0.05 + 0.35 * draws.uniform("reach", _CRYSTALS, 1, 1) ** 3
    length = length * (0.5 + draws.uniform("lengths", _CRYSTALS, _ARMS, 1))
    bend, *long = draws.uniform("uneven", 3, _CRYSTALS, _ARMS, _NODES)
    angles = turns + np.cumsum(0.3 * (bend - 0.5), axis=2)
    steps = (length / _NODES)[..., None] * _direction(angles)
    ends = places + np.cumsum(steps, axis=2)
    shorter = 0.4 * length * (1 - np.arange(_NODES) / _NODES)
    tips = [
        ends + (shorter * each)[..., None] * _direction(angles + side * np.pi / 3)
        for side, each in zip((1, -1), long, strict=True)
    ]
    arms = np.concatenate([ends - steps, ends], axis=3)
    sides = np.stack([np.concatenate([ends, tip], axis=3) for tip in tips])
    return arms.reshape(-1, 4), sides.reshape(-1, 4)


def _direction(angle: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _resize(array: NDArray[np.float64], height: int, width: int, method: Image.Resampling) -> NDArray[np.float64]:
    image = Image.fromarray(array.astype(np.float32)).resize((width, height), method)
    return np.asarray(image).astype(np.float64)
