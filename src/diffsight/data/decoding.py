"""Decode an image of any origin safely into RGB.

Decoding refuses what it would have to guess and never gives a picture that is silently wrong: sixteen-bit values are
scaled instead of clipped, transparent pixels lie on white, photographs stand upright as their EXIF orientation says.
"""

import io
import logging
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffsight.errors import ImageError

log = logging.getLogger(__name__)

ImageInput = str | Path | bytes | Image.Image | np.ndarray | Tensor
CHANNELS = (1, 3, 4)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"})

_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 0x0112, 258, 262, 0
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Python restores warning filters correctly only when one thread at a time changes them.
_FILTERS = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What is too large to decode. The defaults hold any camera's picture and stop decompression bombs.

    Attributes:
        max_pixels: Width × height. Pillow itself stops at 178,956,970.
        max_bytes: Size of the file.
        max_aspect: Long side over short side; resizing by the shortest side blows up a thin strip.
    """

    max_pixels: int = 89_478_485
    max_bytes: int = 256 * 2**20
    max_aspect: float = 100.0


DEFAULT_LIMITS = ImageLimits()


def open_image(source: ImageInput, *, limits: ImageLimits = DEFAULT_LIMITS, name: str | None = None) -> Image.Image:
    """Give any image as RGB with eight bits, upright, transparent pixels on white.

    Args:
        source: A file (JPEG, PNG, WebP, BMP, GIF or TIFF; the first frame if it is animated), the bytes of one, a
            Pillow image, an array (H, W) or (H, W, 1, 3 or 4), or a tensor (C, H, W). Arrays and tensors hold uint8,
            uint16, or floats in [0, 1].
        limits: What to refuse for its size.
        name: What to call the image in errors; by default its path or a description.

    Returns:
        A decoded image without metadata: opening it again changes nothing.

    Raises:
        ImageError: If the image cannot be read or must not be, naming it and the reason.
    """
    label = name or _describe(source)
    try:
        if isinstance(source, np.ndarray | Tensor):
            image = _from_array(source)
        elif isinstance(source, Image.Image):
            image = source
        else:
            image = _read(source, limits)
        _check_size(image, limits)
        image.load()
        return to_rgb(image, label)
    except ImageError as error:
        raise ImageError(f"Image {label} {error}") from error
    except Exception as error:  # Damaged files make Pillow raise almost anything, SyntaxError and IndexError included.
        reason = str(error) or type(error).__name__
        raise ImageError(f"Image {label} is damaged or of an unknown kind: {reason}.") from error


def _describe(source: ImageInput) -> str:
    if isinstance(source, str | Path):
        return repr(str(source))
    if isinstance(source, bytes):
        return f"given as {len(source)} bytes"
    if isinstance(source, Image.Image):
        return repr(getattr(source, "filename", "")) if getattr(source, "filename", "") else "given as Pillow image"
    return f"given as {type(source).__name__} of shape {tuple(source.shape)}"


def _read(source: str | Path | bytes, limits: ImageLimits) -> Image.Image:
    if isinstance(source, bytes):
        size = len(source)
    else:
        path = Path(source).expanduser()
        if path.is_dir():
            raise ImageError(f"is a folder; a folder of images is the source 'folder:{path}'.")
        if not path.exists():
            raise ImageError("does not exist.")
        if not path.is_file():
            raise ImageError("is not a regular file.")
        size = path.stat().st_size
    if size == 0:
        raise ImageError("is empty (0 bytes).")
    if size > limits.max_bytes:
        raise ImageError(f"has {size:,} bytes, over the limit of {limits.max_bytes:,}.")
    if not isinstance(source, bytes):
        try:
            source = path.read_bytes()  # pyright: ignore[reportPossiblyUnboundVariable]
        except OSError as error:
            raise ImageError(f"cannot be read: {error.strerror}.") from error
    try:
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_check_size` refuses earlier.
            return Image.open(io.BytesIO(source), formats=FORMATS)
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"is not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, or its head is damaged."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"has too many pixels: {error}") from error


def _check_size(image: Image.Image, limits: ImageLimits) -> None:
    short, long = sorted(image.size)
    if short < 1:
        raise ImageError(f"has no pixels ({image.width}×{image.height}).")
    if short * long > limits.max_pixels:
        size = f"{image.width}×{image.height}"
        raise ImageError(f"has {size} = {short * long:,} pixels, over the limit of {limits.max_pixels:,}.")
    if long > limits.max_aspect * short:
        raise ImageError(f"is too thin ({image.width}×{image.height}): over {limits.max_aspect:g} to 1. Crop it first.")


def to_rgb(image: Image.Image, label: str) -> Image.Image:
    """Give a decoded image upright, on white, with eight bits, and without metadata; ``label`` names it in the log."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception as error:  # Of an image that is sound otherwise; viewers show it as it is stored, too.
        log.warning("Image %s has unreadable EXIF data (%s); taken as upright.", label, error)
        orientation = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    rgb.info = {}  # Or a second call would turn it again.
    return rgb


def _to_eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F":
        return _from_array(values)
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0] if image.mode != "I" else 16
    low, high = int(values.min()), int(values.max())
    if image.mode == "I" and (low < 0 or 0 < high <= 255 or high >= 2**16):
        raise ImageError(
            f"has 32-bit values from {low} to {high}, and does not say which is white. Save it with 8 bits."
        )
    scaled = np.round(values.astype(np.float64) * (255 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - scaled if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else scaled)


def _from_array(source: NDArray[Any] | Tensor) -> Image.Image:
    shape = tuple(source.shape)
    if isinstance(source, Tensor):
        if source.ndim != 2 and (source.ndim != 3 or shape[0] not in CHANNELS):
            raise ImageError("must be (C, H, W) with 1, 3 or 4 channels.")
        source = source.detach().cpu()
        source = (source.float() if source.is_floating_point() else source).numpy()
        source = np.moveaxis(source, 0, -1) if source.ndim == 3 else source
    elif source.ndim != 2 and (source.ndim != 3 or shape[-1] not in CHANNELS):
        raise ImageError("must be (H, W) or (H, W, C) with 1, 3 or 4 channels.")
    if source.size == 0:
        raise ImageError("is empty.")
    if source.dtype == np.uint16:
        source = np.round(source / 257).astype(np.uint8)
    elif source.dtype.kind == "f":
        low, high = float(source.min()), float(source.max())
        if not (np.isfinite(low) and np.isfinite(high)):  # The extremes of an array that holds a NaN are NaN.
            raise ImageError("holds NaN or infinite values.")
        if low < -1e-6 or high > 1 + 1e-6:
            hint = "divide by 255" if low >= 0 else "use (x + 1) / 2 if it is scaled to [-1, 1]"
            raise ImageError(f"has values from {low:.4g} to {high:.4g}; floats must be in [0, 1]: {hint}.")
        source = np.round(source.clip(0, 1) * 255).astype(np.uint8)
    elif source.dtype != np.uint8:
        raise ImageError(f"holds {source.dtype}; it must hold uint8, uint16, or floats in [0, 1].")
    return Image.fromarray(np.ascontiguousarray(source[..., 0] if source.shape[2:] == (1,) else source))
