"""From a feature map to the few numbers that are kept of it."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diffsight.errors import InputError, nearest

POOLS = ("avg", "max", "gem")


@dataclass(frozen=True, slots=True)
class Pool:
    """Pools a map adaptively to a grid of ``size`` × ``size``, as Mukhopadhyay et al. do (2307.08702).

    ``size`` is the side of what comes out: 1 is global pooling, and more keeps more. A map that is smaller than that
    stays as it is.

    Attributes:
        kind: ``"avg"``, ``"max"``, or ``"gem"``: the generalised mean ``(mean max(x, 1e-6)^power)^(1/power)`` of
            Radenović et al. (1711.02512).
        size: Side of the grid; None keeps the whole map.
        power: Of the generalised mean.

    Raises:
        InputError: If the kind is unknown or a number makes no sense.
    """

    kind: str = "avg"
    size: int | None = 1
    power: float = 3.0

    def __post_init__(self) -> None:
        if self.kind not in POOLS:
            raise InputError(f"Unknown pooling {self.kind!r}. {nearest(self.kind, POOLS)}")
        if self.size is not None and (isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1):
            raise InputError(f"A pooled map has a side of at least 1; got {self.size!r}. None keeps the whole map.")
        if not self.power > 0:
            raise InputError(f"The generalised mean needs a power over 0; got {self.power!r}.")

    def __call__(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c ph pw"]:
        """Pool maps, in fp32 whatever they are in."""
        maps = maps.float()
        if self.size is None:
            return maps
        grid = (min(self.size, maps.shape[2]), min(self.size, maps.shape[3]))
        if self.kind == "max":
            return functional.adaptive_max_pool2d(maps, grid)
        if self.kind == "gem":
            return functional.adaptive_avg_pool2d(maps.clamp(min=1e-6) ** self.power, grid) ** (1 / self.power)
        return functional.adaptive_avg_pool2d(maps, grid)

    def __str__(self) -> str:
        return f"{self.kind} {self.size}" if self.kind != "gem" else f"gem({self.power:g}) {self.size}"
