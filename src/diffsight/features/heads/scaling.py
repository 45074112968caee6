"""Standardisation of feature maps: measured on the training rows, channel by channel, and kept with the head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from diffsight.features.heads.columns import Columns, read, spans

# As many rows are measured at once as have about this many values: 16 MB.
_VALUES_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Scaling:
    """Standardisation of one column: every channel to mean 0 and standard deviation 1.

    Attributes:
        mean: Of each channel, fp32.
        scale: Standard deviation of each channel, fp32; 1 for one that is constant.
    """

    mean: Float[Tensor, " c"]
    scale: Float[Tensor, " c"]

    def __call__(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Standardise maps on the device where they and this are."""
        return (maps - self.mean[:, None, None]) / self.scale[:, None, None]

    def to(self, device: torch.device) -> "Scaling":
        """The same on another device."""
        return Scaling(self.mean.to(device), self.scale.to(device))


def scaled(
    maps: Mapping[str, Float[Tensor, "b _ _ _"]], scaling: Mapping[str, Scaling]
) -> Mapping[str, Float[Tensor, "b _ _ _"]]:
    """Standardise each column that has a scaling; with none at all, the maps as they are."""
    return {name: scale(maps[name]) for name, scale in scaling.items()} if scaling else maps


def fit_scaling(columns: Columns, names: Sequence[str]) -> dict[str, Scaling]:
    """Mean and standard deviation of each channel over rows, positions and views, in one pass and fp64.

    A channel whose spread is below fp32's resolution of its mean is constant but for rounding, and is only centred.

    Raises:
        InputError: If a value is not finite.
    """
    return {name: _fit_one(columns, name) for name in names}


def _fit_one(columns: Columns, name: str) -> Scaling:
    shape = columns.shape(name)
    count, mean, squares = 0, torch.zeros(shape[0], dtype=torch.float64), torch.zeros(shape[0], dtype=torch.float64)
    for indices in spans(len(columns), max(1, _VALUES_AT_ONCE // prod(shape))):
        for view in range(columns.views):
            values = read(columns, name, indices, view).to("cpu", torch.float64)
            more = values.numel() // shape[0]
            variance, centre = torch.var_mean(values, dim=(0, 2, 3), correction=0)
            # Merging means and squared deviations (Chan et al. 1979) loses no digits where the mean is large.
            step = centre - mean
            mean = mean + step * (more / (count + more))
            squares = squares + more * variance + step.square() * (count * more / (count + more))
            count += more
    deviation = (squares / count).sqrt()
    constant = deviation <= torch.finfo(torch.float32).eps * mean.abs()
    return Scaling(mean.float(), torch.where(constant, 1.0, deviation).float())
