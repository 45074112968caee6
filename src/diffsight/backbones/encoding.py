"""From images to latents; what cannot be read becomes a failure and stops nobody."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from diffsight.backbones.base import Backbone
from diffsight.data.images import Images
from diffsight.errors import ImageError, ModelError

_ENCODED = 2**22  # Pixels that go through a VAE at once: 16 pictures of 512, 4 of 1024.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Encoded:
    """An image ready for the network: its latent, or why there is none."""

    id: str
    x0: Float[Tensor, "c h w"] | None
    failure: str | None = None


def encode_images(
    backbone: Backbone,
    images: Iterable[tuple[str, Callable[[], Image.Image]]],
    *,
    group: int = 16,
    prepare: Callable[[str, Image.Image], Tensor] | None = None,
) -> Iterator[Encoded]:
    """Decode and encode images in groups of a fixed size; an image that cannot be read becomes a failure.

    Args:
        backbone: Whose transform and VAE to use.
        images: Identities and what opens the image (raising ImageError if it is bad).
        group: How many go through the VAE at once. Groups are cut by position, so that latents do not depend on where
            an interrupted run goes on.
        prepare: From identity and image to the network's input, instead of the backbone's transform.

    Yields:
        One item per image, in order.

    Raises:
        ModelError: If a single image does not fit the device; a group that does not goes through in parts.
    """
    batch: list[tuple[str, torch.Tensor | str]] = []

    def encode() -> Iterator[Encoded]:
        good = [item for _, item in batch if not isinstance(item, str)]
        latents = iter(_latents(backbone, torch.stack(good)) if good else ())
        for id, item in batch:
            failure = item if isinstance(item, str) else None
            yield Encoded(id=id, x0=None if failure else next(latents), failure=failure)
        batch.clear()

    for id, opener in images:
        try:
            image = opener()
            batch.append((id, prepare(id, image) if prepare else backbone.transform(image)))
        except ImageError as error:
            batch.append((id, str(error)))
        if len(batch) == group:
            yield from encode()
    yield from encode()


def _latents(backbone: Backbone, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
    """Encode images, few large ones at a time."""
    parts = images.split(max(1, _ENCODED // images[0, 0].numel()))
    return torch.cat([_within_memory(backbone, part) for part in parts])


def _within_memory(backbone: Backbone, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
    """Encode images; if the device runs out of memory, in halves."""
    try:
        return backbone.encode(images)
    except torch.OutOfMemoryError as error:
        if len(images) == 1:
            raise ModelError(
                f"{backbone.name} does not fit {backbone.device}: encoding a single image ran out of memory. Free "
                "memory, or use device 'cpu'."
            ) from error
        torch.cuda.empty_cache()
    return torch.cat([_within_memory(backbone, half) for half in images.chunk(2)])


def by_content(
    images: Images, ids: list[str], positions: range | None = None
) -> Iterator[tuple[str, Callable[[], Image.Image]]]:
    """Name images by their pixels, so that their noise depends neither on place nor on file; fills ``ids``."""
    for position in positions if positions is not None else range(len(images)):
        try:
            image = images[position]
        except ImageError as error:
            ids.append(f"unreadable-{position}")
            yield ids[-1], partial(_refuse, error)
        else:
            content = f"{image.size}".encode() + image.tobytes()
            ids.append(hashlib.sha256(content).hexdigest()[:16])
            yield ids[-1], partial(Image.Image.copy, image)


def _refuse(error: ImageError) -> Image.Image:
    raise error
