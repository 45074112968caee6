"""The 15 corruptions of ImageNet-C at five severities, and lower resolution: what is done to an image, by name.

The types and the numbers behind each severity are Hendrycks & Dietterich's (2019, arXiv:1903.12261, §3.2 and their
released settings). How they are rendered is our own: `pixel_noise`, `blurring`, `weather` and `digital` say where they
differ. Results on such images can be compared with one another, but not to the digit with published ones.

**Size.** They published two tables: for 224 pixels (ImageNet-C) and for 32 (CIFAR-10-C). An image takes the one that is
nearer in ratio to its shorter side (below √(32·224) ≈ 85 the small one), and all lengths in pixels (radii, widths,
displacements, flakes) grow and shrink with that side. Strengths of noise are no lengths and stay.

**Severity.** A higher one is farther from the clean image, except where the published numbers are not meant so: see
`elastic_transform`; in small images a stronger glass blur smooths what it displaced, and 30 large pixels on 32 fit
worse than 28; the fourth frost leaves less of the image than the third without adding more light; the fourth fog is
rougher than the third and no thicker.

**Randomness.** Everything random has the address (seed, image id, type): severities of an image share their random
numbers, so that a higher one is more of the same. A grey image (three equal channels) stays grey: it gets one noise,
not one for each channel.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from diffsight.data.addressed import Draws
from diffsight.errors import InputError, nearest

# What an image becomes may change with it; it is part of every run's fingerprint.
RENDERING = 1
NOISE = ("gaussian-noise", "shot-noise", "impulse-noise")
BLUR = ("defocus-blur", "glass-blur", "motion-blur", "zoom-blur")
WEATHER = ("snow", "frost", "fog", "brightness")
DIGITAL = ("contrast", "elastic-transform", "pixelate", "jpeg-compression")
CORRUPTIONS = NOISE + BLUR + WEATHER + DIGITAL
SEVERITIES = (1, 2, 3, 4, 5)
RESOLUTION = "resolution"

Pixels = Float[np.ndarray, "h w 3"]
Renderer = Callable[[Any, int, Draws], Any]


@dataclass(frozen=True, slots=True)
class Corruption:
    """One type of corruption at one severity.

    Attributes:
        name: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        seed: Chooses among the random numbers.

    Raises:
        InputError: If one of them is not possible.
    """

    name: str
    severity: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise InputError(f"Unknown corruption {self.name!r}. {nearest(str(self.name), CORRUPTIONS)}")
        if isinstance(self.severity, bool) or self.severity not in SEVERITIES:
            raise InputError(f"{self.name}: a severity is 1, 2, 3, 4 or 5; got {self.severity!r}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"{self.name}: a seed is a whole number of at least 0; got {self.seed!r}.")

    @property
    def spec(self) -> str:
        """It in one word, for `parse_change`: ``fog:3``, or ``fog:3:7`` with the seed 7."""
        return f"{self.name}:{self.severity}" + (f":{self.seed}" if self.seed else "")

    def __call__(self, pixels: UInt8[np.ndarray, "h w 3"], *, image_id: str) -> UInt8[np.ndarray, "h w 3"]:
        """Corrupt an image.

        Args:
            pixels: RGB, of any size.
            image_id: Whose random numbers are taken.
        """
        draws = Draws(seed=self.seed, image_id=image_id, purpose=self.name)
        rendered = _renderers()[self.name](pixels / 255.0, self.severity, draws)
        return np.rint(np.clip(rendered, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Resolution:
    """Fewer pixels in the same place: down to a shorter side of ``side``, and back to the size that the image had.

    The question of Clark & Jaini (2303.15233), whose Stable Diffusion falls from 61.9 % on ImageNet to 34.6 % at
    64 pixels and 15.5 % at 32. Both steps are Pillow's bicubic filter, the first antialiased; which filter they took is
    not known to us. An image that is no larger stays as it is.

    Attributes:
        side: In pixels.

    Raises:
        InputError: If it is not a whole number of at least 1.
    """

    side: int

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 1:
            raise InputError(f"{RESOLUTION}: a side is a whole number of pixels, at least 1; got {self.side!r}.")

    @property
    def spec(self) -> str:
        """It in one word, for `parse_change`: ``resolution:64``."""
        return f"{RESOLUTION}:{self.side}"

    def __call__(self, pixels: UInt8[np.ndarray, "h w 3"], *, image_id: str = "") -> UInt8[np.ndarray, "h w 3"]:
        """Take away what a smaller image would not show; ``image_id`` is without effect."""
        height, width = pixels.shape[:2]
        share = self.side / min(height, width)
        if share >= 1:
            return pixels.copy()
        small = Image.fromarray(pixels).resize(
            (max(1, round(width * share)), max(1, round(height * share))), Image.Resampling.BICUBIC
        )
        return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


Change = Corruption | Resolution


def corrupt(
    image: UInt8[np.ndarray, "h w 3"], name: str, severity: int, *, image_id: str, seed: int = 0
) -> UInt8[np.ndarray, "h w 3"]:
    """Corrupt an image: the same arguments give the same image.

    Args:
        image: RGB, of any size.
        name: One of `CORRUPTIONS`.
        severity: From 1 to 5.
        image_id: Whose random numbers are taken.
        seed: Chooses among the random numbers.

    Raises:
        InputError: If name, severity or seed is not possible.
    """
    return Corruption(name, severity, seed)(image, image_id=image_id)


def parse_change(spec: str) -> Change:
    """Undo `Corruption.spec` or `Resolution.spec`.

    Args:
        spec: ``TYPE:SEVERITY``, ``TYPE:SEVERITY:SEED`` or ``resolution:PIXELS``.

    Raises:
        InputError: If there is no such type, severity, seed or resolution.
    """
    name, *rest = spec.split(":")
    if name not in (*CORRUPTIONS, RESOLUTION):
        raise InputError(f"Unknown corruption {name!r}. {nearest(name, (*CORRUPTIONS, RESOLUTION))}")
    most = 1 if name == RESOLUTION else 2
    if not 1 <= len(rest) <= most or not all(part.isascii() and part.isdigit() and len(part) < 19 for part in rest):
        form = f"{RESOLUTION}:64" if name == RESOLUTION else f"{name}:3, with a severity from 1 to 5"
        raise InputError(f"{spec!r} is not of the form {form}.")
    numbers = [int(part) for part in rest]
    return Resolution(*numbers) if name == RESOLUTION else Corruption(name, *numbers)


def split_change(uri: str) -> tuple[str, Change | None]:
    """Part a name such as ``fashion-mnist@fog:3`` or ``folder:photos@resolution:64`` from what is done to its images.

    Only what follows the last ``@`` counts, and only if it has a colon and no slash: ``folder:/home/me@work`` has none.

    Args:
        uri: Name of a task or a source.

    Raises:
        InputError: If there is no such change.
    """
    base, at, spec = uri.rpartition("@")
    if not at or ":" not in spec or "/" in spec:
        return uri, None
    return base, parse_change(spec)


def scale_of(pixels: Float[np.ndarray, "h w ..."]) -> tuple[bool, float]:
    """Which published table an image of this size takes, and how its lengths are scaled.

    Returns:
        Whether it is the table for 32 pixels, and the factor of all lengths in it.
    """
    side = min(pixels.shape[:2])
    small = side < sqrt(32 * 224)
    return small, side / (32 if small else 224)


def channels_of(pixels: Pixels) -> int:
    """How many channels of noise an image needs: one if it is grey, so that it stays grey."""
    return 1 if (pixels == pixels[..., :1]).all() else 3


def _renderers() -> dict[str, Renderer]:
    """What paints each type; scipy, which they need, is slow to import, and a task's name does without."""
    from diffsight.data import blurring, digital, pixel_noise, weather

    return {
        "gaussian-noise": pixel_noise.gaussian_noise,
        "shot-noise": pixel_noise.shot_noise,
        "impulse-noise": pixel_noise.impulse_noise,
        "defocus-blur": blurring.defocus_blur,
        "glass-blur": blurring.glass_blur,
        "motion-blur": blurring.motion_blur,
        "zoom-blur": blurring.zoom_blur,
        "snow": weather.snow,
        "frost": weather.frost,
        "fog": weather.fog,
        "brightness": weather.brightness,
        "contrast": digital.contrast,
        "elastic-transform": digital.elastic_transform,
        "pixelate": digital.pixelate,
        "jpeg-compression": digital.jpeg_compression,
    }
