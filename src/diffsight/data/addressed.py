"""Random numbers of one image for one purpose: the same whoever asks, whenever and in whatever order."""

from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Float, Int, UInt64

STREAM = "images-philox4x64-1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draws:
    """Random numbers addressed by (seed, image id, purpose) and by what they are for within it.

    They come from the raw words of numpy's Philox, whose stream numpy guarantees, and have nothing in common with those
    that a diffusion model scores the same image with.

    Attributes:
        seed: Chooses among sets of numbers.
        image_id: Whose they are.
        purpose: What is done to the image.
    """

    seed: int
    image_id: str
    purpose: str

    def words(self, what: str, count: int) -> UInt64[np.ndarray, " n"]:
        """Raw 64-bit words."""
        from diffsight.diffusion.noise import key_of  # It comes with torch, and a task's name does without.

        # File names may hold bytes that are not text; Python carries them as lone surrogates.
        owner = b"image:" + self.image_id.encode("utf-8", "surrogatepass")
        key = key_of(f"{STREAM} {self.seed} {self.purpose} {what} ".encode() + owner)
        return np.random.Philox(key=key).random_raw(count)

    def uniform(self, what: str, *shape: int) -> Float[np.ndarray, "..."]:
        """Numbers between 0 and 1, never quite either."""
        words = self.words(what, prod(shape))
        return (((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52).reshape(shape)

    def between(self, low: float, high: float, what: str) -> float:
        """One number between two others."""
        return low + (high - low) * float(self.uniform(what, 1)[0])

    def normal(self, what: str, *shape: int) -> Float[np.ndarray, "..."]:
        """Standard normal numbers."""
        from scipy.special import ndtri  # Slow to import, and a name of a task does not need it.

        return ndtri(self.uniform(what, *shape))

    def below(self, limit: int, what: str, count: int) -> Int[np.ndarray, " n"]:
        """Whole numbers from 0 to under ``limit``."""
        return (self.uniform(what, count) * limit).astype(np.int64)
