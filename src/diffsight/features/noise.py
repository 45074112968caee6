"""What is mixed into an image before its features are taken."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import InputError, nearest

NOISES = ("fixed", "none", "resample", "mean")
# Draws of a timestep that shares no noise with the others are numbered from here on, times its level.
_APART = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What is mixed into an image before the model looks at it; always addressed by (seed, image, draw).

    Attributes:
        kind: ``"fixed"``: one draw for each image. ``"none"``: the image is only scaled by alpha. ``"resample"``:
            several draws, each with features of its own. ``"mean"``: the mean of the features of several draws.
        draws: How many; 1 for "fixed" and "none", at least 2 for the others.
        shared: Whether all timesteps of a draw see the same noise.
        seed: Of the noise.

    Raises:
        InputError: If kind and number of draws contradict each other.
    """

    kind: str = "fixed"
    draws: int = 1
    shared: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in NOISES:
            raise InputError(f"Unknown noise {self.kind!r}. {nearest(self.kind, NOISES)}")
        if isinstance(self.draws, bool) or not isinstance(self.draws, int) or self.draws < 1:
            raise InputError(f"The number of draws must be at least 1; got {self.draws!r}.")
        if (self.draws > 1) != (self.kind in ("resample", "mean")):
            several = "'resample' or 'mean' for several draws, 'fixed' or 'none' for one"
            raise InputError(f"noise={self.kind!r} does not go with draws={self.draws}: use {several}.")
        NoiseBank(self.seed)

    def eps(self, image_id: str, view: int, levels: Sequence[int], shape: Sequence[int]) -> Float[Tensor, "n *shape"]:
        """The noise of one view of an image: draw by draw, and in each draw level by level."""
        if self.kind == "none":
            return torch.zeros(len(levels), *shape)
        numbers = [
            view * self.draws + draw + (0 if self.shared else (level + 1) * _APART)
            for draw in range(self.draws)
            for level in levels
        ]
        return NoiseBank(self.seed).noise(image_id, numbers, shape)
