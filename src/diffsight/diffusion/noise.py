"""Noise with an address: the draw-th noise of an image is the same whoever asks, whenever and in whatever order.

All classes of an image are compared under the same noise, a run can be continued anywhere, and nothing depends on
batches, workers or global random state.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.errors import InputError

STREAM = "philox4x64-ndtri-1"
_BLOCK = 4  # Philox gives four 64-bit words per counter value.


@dataclass(frozen=True, slots=True)
class NoiseBank:
    """Standard normal noise addressed by (seed, image id, draw).

    The words come from numpy's Philox generator, whose stream numpy guarantees; each is mapped to a normal by the
    inverse distribution function, so that no version of numpy or torch can change a stored run.

    Attributes:
        seed: Chooses among banks.
        shared: Give all images the same noise, as Li et al. do for DiT.

    Raises:
        InputError: If the seed is not a whole number of at least 0.
    """

    seed: int = 0
    shared: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise InputError(f"A seed must be a whole number of at least 0; got {self.seed!r}.")

    def noise(
        self, image_id: str, draws: Sequence[int] | Int[Tensor, " n"], shape: Sequence[int]
    ) -> Float[Tensor, "n *shape"]:
        """Give the noise of some draws of one image.

        Args:
            image_id: Whose noise; without effect if the bank is ``shared``.
            draws: Numbers of the draws, in any order. Consecutive ones are quicker.
            shape: Shape of one draw. Shapes of different size have unrelated noise.

        Returns:
            One draw per row, fp32 on the CPU.

        Raises:
            InputError: If a draw is negative or a size is under 1.
        """
        shape = tuple(shape)
        numbers = draws.tolist() if isinstance(draws, Tensor) else list(draws)
        size = prod(shape)
        if any(side < 1 for side in shape):
            raise InputError(f"Noise needs a shape of sizes of at least 1; got {shape}.")
        if any(number < 0 for number in numbers):
            raise InputError(f"Draws are counted from 0; got {min(numbers)}.")
        key = self._key(image_id, size)
        blocks = -(-size // _BLOCK)
        words = [
            np.random.Philox(key=key, counter=start * blocks).random_raw((stop - start) * blocks * _BLOCK)
            for start, stop in _runs(numbers)
        ]
        if not words:
            return torch.empty(0, *shape)
        # The upper 52 bits, at the middle of their interval: exact in float64, and never 0 or 1.
        uniform = ((np.concatenate(words) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
        normal = torch.special.ndtri(torch.from_numpy(uniform)).float()
        return normal.view(len(numbers), blocks * _BLOCK)[:, :size].reshape(len(numbers), *shape)

    def fingerprint(self) -> str:
        """Everything that the noise depends on, readable."""
        return f"{STREAM} seed={self.seed}{' shared' if self.shared else ''}"

    def _key(self, image_id: str, size: int) -> int:
        # File names may hold bytes that are not text; Python carries them as lone surrogates.
        owner = b"" if self.shared else b"image:" + image_id.encode("utf-8", "surrogatepass")
        return key_of(f"{STREAM} {self.seed} {size} ".encode() + owner)


def key_of(address: bytes) -> int:
    """The key of numpy's Philox generator that an address stands for: 128 bits that are the same everywhere."""
    return int.from_bytes(hashlib.blake2b(address, digest_size=16).digest(), "little")


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut a list of numbers into stretches that count up by one: (start, stop) each."""
    if not numbers:
        return
    cuts = [0, *(i + 1 for i, (a, b) in enumerate(pairwise(numbers)) if b != a + 1), len(numbers)]
    for left, right in pairwise(cuts):
        yield numbers[left], numbers[right - 1] + 1
