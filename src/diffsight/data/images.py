"""Images from anywhere to what a backbone is fed: one conversion of what users pass, resizing as the papers do it."""

from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from diffsight.data.decoding import CHANNELS, DEFAULT_LIMITS, ImageInput, ImageLimits, open_image, to_rgb
from diffsight.errors import ImageError, InputError, nearest

__all__ = ["ImageInput", "ImageLimits", "ImageTransform", "Images", "images_from", "open_image"]

RESIZES = ("shortest", "adm", "crop_first", "squash")
INTERPOLATIONS = ("bicubic", "bilinear", "lanczos", "box")


def images_from(X: Any, *, limits: ImageLimits = DEFAULT_LIMITS) -> "Images":  # noqa: ANN401
    """Take what users pass to an estimator as a sequence of images.

    Args:
        X: One image (see `open_image`), or a list of them; a tensor (B, C, H, W); an array (B, H, W) or (B, H, W, C);
            an array of paths; a map-style Dataset of images or (image, label, …); a `Source` or a list of `Sample`.
            An array of three dimensions is one image if its last is 1, 3 or 4, else a batch of grey images.
        limits: What to refuse for its size.

    Returns:
        A sequence of RGB images, each decoded when it is asked for.

    Raises:
        InputError: If there is no image, or ``X`` is no such thing.
        ImageError: If an element is no image; here for its type, later, when it is asked for, for its content.
    """
    if isinstance(X, str | Path | bytes | Image.Image):
        items: Any = (X,)
    elif isinstance(X, Tensor):
        items = _batch(X, single=X.ndim == 2 or (X.ndim == 3 and X.shape[0] in CHANNELS), batched=X.ndim == 4)
    elif isinstance(X, np.ndarray) and X.dtype.kind not in "OUS":
        single = X.ndim == 2 or (X.ndim == 3 and X.shape[-1] in CHANNELS)
        items = _batch(X, single=single, batched=X.ndim in (3, 4))
    elif isinstance(X, Dataset):
        if not hasattr(X, "__len__"):
            raise InputError(f"A {type(X).__name__} has no length; pass a map-style Dataset or a list of its images.")
        items = X
    elif isinstance(X, Iterable) and not isinstance(X, Mapping | Set):
        items = tuple(X)
        for index, item in enumerate(items):
            if not isinstance(item, ImageInput) and not callable(getattr(item, "load", None)):
                raise ImageError(f"X[{index}] is a {type(item).__name__}; it must be an image or the path of one.")
    else:
        raise InputError(f"Images cannot be taken from a {type(X).__name__}; pass a list of images or paths.")
    if len(items) == 0:
        raise InputError("There is no image: X is empty.")
    return Images(items, limits)


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Images of any origin as a sequence; each is decoded when it is asked for, and none is kept.

    Attributes:
        items: A sequence of paths, arrays, Pillow images or samples, or a Dataset.
        limits: What to refuse for its size.
    """

    items: Any
    limits: ImageLimits = DEFAULT_LIMITS

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Image.Image:
        position = range(len(self))[index]
        label = f"X[{position}]"
        try:
            item = self.items[position]
            if isinstance(self.items, Dataset) and isinstance(item, tuple | list):
                item = item[0]
            if not isinstance(item, ImageInput):
                item = item.load()
        except Exception as error:  # A Dataset or a sample is the user's code.
            raise ImageError(f"{label} cannot be had: {error or type(error).__name__}") from error
        known = f" ({item})" if isinstance(item, str | Path) else ""
        return open_image(item, limits=self.limits, name=label + known)

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """From an RGB image to what a backbone is fed, as the papers do it.

    Attributes:
        size: Side of the square that is left after resizing and cropping, in pixels.
        resize: ``shortest``: shortest side to ``size``, then centre crop (Li et al. with Stable Diffusion; equal to
            torchvision's Resize and CenterCrop). ``adm``: halve with a box filter while twice too large, then as
            before (ADM and DiT). ``crop_first``: centre square, then resize (Clark & Jaini). ``squash``: resize both
            sides, changing the aspect.
        interpolation: Filter, antialiased: ``bicubic``, ``bilinear``, ``lanczos`` or ``box``; of the last step if there
            are several.
        pad: Pixels added on each side, repeating the edge.
        grayscale: Take the luminance, in three equal channels.

    Raises:
        InputError: If a setting is unknown or out of range.
    """

    size: int
    resize: str = "shortest"
    interpolation: str = "bicubic"
    pad: int = 0
    grayscale: bool = False

    def __post_init__(self) -> None:
        for field, smallest in (("size", 1), ("pad", 0)):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
                raise InputError(f"ImageTransform: {field} must be a whole number from {smallest}; got {value!r}.")
        for field, known in (("resize", RESIZES), ("interpolation", INTERPOLATIONS)):
            if getattr(self, field) not in known:
                value = getattr(self, field)
                raise InputError(f"ImageTransform: unknown {field} {value!r}. {nearest(str(value), known)}")

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """Resize, crop, pad and scale one image to [-1, 1], fp32 on the CPU."""
        image = image if image.mode == "RGB" else to_rgb(image, "given")
        return self.finish(_RESIZERS[self.resize](image, self.size, self.method))

    def finish(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        """The last steps, after resizing and cropping: luminance, padding, scaling to [-1, 1]."""
        if self.grayscale:
            image = image.convert("L").convert("RGB")
        pixels = np.pad(np.asarray(image), ((self.pad, self.pad), (self.pad, self.pad), (0, 0)), mode="edge")
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)

    @property
    def method(self) -> Image.Resampling:
        """Pillow's name of the filter."""
        return Image.Resampling[self.interpolation.upper()]

    @property
    def output_size(self) -> int:
        """Side of the tensors that come out."""
        return self.size + 2 * self.pad

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Undo `to_dict`.

        Raises:
            InputError: If a setting is unknown, missing or out of range.
        """
        known = [field.name for field in fields(cls)]
        for key in settings:
            if key not in known:
                raise InputError(f"ImageTransform has no setting {key!r}. {nearest(str(key), known)}")
        if "size" not in settings:
            raise InputError("ImageTransform needs a size.")
        return cls(**settings)


def _batch(array: NDArray[Any] | Tensor, *, single: bool, batched: bool) -> Any:  # noqa: ANN401
    if single:
        return (array,)
    if not batched:
        form = "(B, C, H, W)" if isinstance(array, Tensor) else "(B, H, W) or (B, H, W, C)"
        raise InputError(f"X has shape {tuple(array.shape)}; a batch of images must be {form}.")
    return array


def cut_square(image: Image.Image, side: int, left: int, top: int) -> Image.Image:
    """Cut out the square with this upper left corner."""
    return image.crop((left, top, left + side, top + side))


def _scale_shortest(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    short = min(image.size)
    if short != size:
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        image = image.resize((width, height), method)
    return image


def _scale_adm(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), method)


def _squash(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    return image.resize((size, size), method)


def _shortest(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    image = _scale_shortest(image, size, method)
    return cut_square(image, size, round((image.width - size) / 2), round((image.height - size) / 2))


def _adm(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    image = _scale_adm(image, size, method)
    return cut_square(image, size, (image.width - size) // 2, (image.height - size) // 2)


def _crop_first(image: Image.Image, size: int, method: Image.Resampling) -> Image.Image:
    side = min(image.size)
    square = cut_square(image, side, (image.width - side) // 2, (image.height - side) // 2)
    return _squash(square, size, method)


# Those that scale before they crop, without the crop: the shorter side of what they give is `size`.
SCALERS = {"shortest": _scale_shortest, "adm": _scale_adm, "squash": _squash}
_RESIZERS = {"shortest": _shortest, "adm": _adm, "crop_first": _crop_first, "squash": _squash}
