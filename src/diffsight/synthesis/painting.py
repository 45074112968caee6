"""From prescriptions to pictures, in full batches of mixed classes; and any picture again, to the bit.

A picture depends on its prompt, scale and noise. How a device rounds depends, in the last bits, on the shape of a batch
and the place in it, and eight bits a pixel can show that. So both are kept of each picture, prompts are encoded one by
one, and a picture that is drawn again goes to the same place of a batch of the same shape.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from diffsight.backbones.base import Backbone, Condition
from diffsight.backbones.sampling import Sampler, draw, join, to_pixels
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ModelError
from diffsight.synthesis.tricks import Prescription

_REMEMBERED = 512  # Prompts whose encoding is kept.


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One picture that is asked for.

    Attributes:
        label: Its class.
        name: What that is called.
        index: Its number in the class.
        attempt: How often it has been drawn before.
        prescription: What it is made from, beside its noise.
    """

    label: int
    name: str
    index: int
    attempt: int
    prescription: Prescription


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Painted:
    """One picture.

    Attributes:
        order: What was asked for.
        pixels: RGB.
        rows: Rows of the batch that it was drawn in.
        place: Its row in it.
    """

    order: Order
    pixels: UInt8[np.ndarray, "h w 3"]
    rows: int
    place: int


@dataclass(slots=True, eq=False, kw_only=True)
class Painter:
    """Draws batches with one model, one sampler and one seed.

    Attributes:
        backbone: The model.
        sampler: How.
        seed: Of the noise.
        calls: Denoiser calls so far.
        limit: The most rows that the device's memory was found to hold, or None.
    """

    backbone: Backbone
    sampler: Sampler
    seed: int
    calls: int = 0
    limit: int | None = None
    _encoded: OrderedDict[str, Condition] = field(default_factory=OrderedDict)

    def paint(self, orders: Sequence[Order]) -> Iterator[Painted]:
        """Draw a batch; in parts, if the device runs out of memory.

        Raises:
            ModelError: If a single row does not fit.
            NumericsError: If the model draws something that is not a number.
        """
        rows = min(len(orders), self.limit or len(orders))
        if rows < len(orders):
            for start in range(0, len(orders), rows):
                yield from self.paint(orders[start : start + rows])
            return
        try:
            pixels = self._pixels(orders)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise ModelError(
                    f"{self.backbone.name} does not fit {self.backbone.device}: a single image ran out of memory. Free "
                    "memory, or use dtype 'bf16' or device 'cpu'."
                ) from error
            pixels = None
        if pixels is None:
            torch.cuda.empty_cache()
            self.limit = max(1, rows // 2)
            yield from self.paint(orders)
            return
        guided = any(order.prescription.guidance_scale != 1 for order in orders)
        self.calls += rows * self.sampler.calls(guided=guided)
        for place, order in enumerate(orders):
            yield Painted(order=order, pixels=pixels[place], rows=rows, place=place)

    def again(self, order: Order, *, rows: int, place: int) -> UInt8[np.ndarray, "h w 3"]:
        """Draw a picture as it was drawn, in a batch of this shape that holds nothing else.

        Args:
            order: What was asked for.
            rows: Rows of its batch.
            place: Its row in it.
        """
        return self._pixels([order] * rows)[place]

    def _pixels(self, orders: Sequence[Order]) -> UInt8[np.ndarray, "b h w 3"]:
        condition = join([self._encode(order.prescription.prompt) for order in orders])
        scales = torch.tensor([order.prescription.guidance_scale for order in orders], dtype=torch.float32)
        noise = torch.cat([self._noise(order) for order in orders])
        return to_pixels(self.backbone, draw(self.backbone, condition, scales, noise, sampler=self.sampler))

    def _noise(self, order: Order) -> Float[Tensor, "1 c h w"]:
        """Addressed by seed, class, number and attempt."""
        bank = NoiseBank(self.seed)
        return bank.noise(f"{order.name}/{order.index}", [order.attempt], self.backbone.latent_shape)

    def _encode(self, prompt: str) -> Condition:
        if prompt not in self._encoded:
            self._encoded[prompt] = self.backbone.condition([prompt])
        self._encoded.move_to_end(prompt)
        if len(self._encoded) > _REMEMBERED:
            self._encoded.popitem(last=False)
        return self._encoded[prompt]


def resized(
    pixels: UInt8[np.ndarray, "h w 3"], size: int | None, *, antialias: bool
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize a picture to a square, bilinearly, as torchvision does it with and without ``antialias`` (A.2).

    Args:
        pixels: The picture.
        size: Side of the square; None leaves the picture as it is.
        antialias: Whether to filter what the smaller picture cannot hold.
    """
    if size is None or pixels.shape[:2] == (size, size):
        return pixels
    values = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    smaller = functional.interpolate(values, (size, size), mode="bilinear", antialias=antialias, align_corners=False)
    return smaller[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy()
