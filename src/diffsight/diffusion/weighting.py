"""Weights of the noise levels, each tagged with the space in which it acts (Clark & Jaini 2303.15233).

A weight multiplies a squared error, and the squared errors of one prediction seen as eps, x0, v or flow differ by
factors that depend on the level. "exp(-7t)" on the eps error and on the x0 error are therefore different schemes: a
`Weighting` knows which of them it is, and converts exactly.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.diffusion.prediction import Space, check_space
from diffsight.diffusion.schedule import Schedule
from diffsight.errors import InputError, nearest


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Weighting:
    """One weight per noise level, for squared errors in one space.

    Attributes:
        values: Weight of each level of a schedule, float64.
        space: Whose squared error they multiply.
        name: What the scheme is called.

    Raises:
        InputError: If a value is negative or not finite, all are zero, or the space is unknown.
    """

    values: Float[Tensor, " n"]
    space: Space
    name: str

    def __post_init__(self) -> None:
        check_space(self.space)
        values = torch.as_tensor(self.values).detach().to("cpu", torch.float64)
        object.__setattr__(self, "values", values)
        if values.ndim != 1 or not values.isfinite().all() or (values < 0).any() or not (values > 0).any():
            raise InputError(
                f"The weights {self.name!r} must be finite, not negative and not all zero, one per level; got {values}."
            )

    def __len__(self) -> int:
        return len(self.values)

    def to(self, space: Space, schedule: Schedule) -> "Weighting":
        """Express the same scheme as weights of another space's squared error.

        Args:
            space: Whose squared error the result multiplies.
            schedule: The schedule that the weights were made for.

        Returns:
            Weights that give the same weighted squared error at every level. Where only noise is left, the eps error
            of any x0 is 0, and a level that weighs nothing keeps the weight 0.

        Raises:
            InputError: If a level has a weight, but no finite weight in that space would do: eps at alpha = 0, x0 at
                sigma = 0.
        """
        check_space(space)
        _check_length(self.values, schedule)
        if space == self.space:
            return self
        # One misjudgement moves eps, x0, v and flow by fixed multiples of one another; see _reach.
        before, after = _reach(self.space, schedule), _reach(space, schedule)
        wanted = self.values * before.square()
        impossible = ((after == 0) & (wanted > 0)).nonzero().flatten()
        if len(impossible):
            raise InputError(
                f"The weights {self.name!r} cannot be expressed in {space} space: level {int(impossible[0])} has a "
                f"weight, but its {space} error is always 0. Weigh the v or flow error instead."
            )
        values = torch.where(wanted > 0, wanted / after.square(), 0.0)
        return replace(self, values=values, space=space)

    def take(self, index: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Look up the weights of given levels, float64 on the CPU."""
        return self.values[index.cpu().long()]

    def normalised(self) -> "Weighting":
        """Scale the weights to a mean of 1 over all levels."""
        return replace(self, values=self.values / self.values.mean())


def uniform(schedule: Schedule, space: Space = "eps") -> Weighting:
    """Weigh all levels alike: in eps space Li et al.'s score, and Clark & Jaini's "simple"."""
    return Weighting(values=torch.ones_like(schedule.alpha), space=space, name="uniform")


def snr(schedule: Schedule) -> Weighting:
    """Weigh x0 errors by the signal-to-noise ratio, which is `uniform` in eps space."""
    return Weighting(values=schedule.snr, space="x0", name="snr")


def vdm(schedule: Schedule) -> Weighting:
    """Weigh x0 errors by ``-dSNR/dt``: the continuous likelihood bound of variational diffusion models (2107.00630).

    The slope is taken of log-SNR by central differences, time running from 0 to 1 over the levels. A level of pure
    noise weighs 0.

    Raises:
        InputError: If the schedule has fewer than three levels with signal and noise.
    """
    log_snr = schedule.log_snr
    usable = log_snr.isfinite()
    if usable.sum() < 3:
        raise InputError("VDM weights are a slope over noise levels: they need at least three.")
    values = torch.zeros_like(log_snr)
    slope = torch.gradient(log_snr[usable], spacing=1 / len(schedule))[0]
    values[usable] = -slope * schedule.snr[usable]
    return Weighting(values=values, space="x0", name="vdm")


def exponential(schedule: Schedule, rate: float = 7.0) -> Weighting:
    """Weigh x0 errors by ``exp(-rate * t)`` with ``t = k / N``: Clark & Jaini's heuristic.

    On Stable Diffusion's schedule this is close to uniform in eps space, tilted to high noise. (The paper's Appendix B
    prints a rate of 6.)
    """
    return Weighting(values=torch.exp(-rate * _times(schedule)), space="x0", name="exp")


def vlb(schedule: Schedule) -> Weighting:
    """Weigh as the discrete variational bound of a DDPM does (Ho et al. 2006.11239, eq. 12, with ``sigma² = beta``).

    In eps space this is ``beta² / (2 beta (1 - beta) (1 - alpha_bar))``, in nats. It is stored for the x0 error, where
    it stays finite at zero terminal SNR.

    Raises:
        InputError: If the schedule is not a DDPM's.
    """
    beta = schedule.beta
    if beta is None:
        raise InputError(f"The discrete bound 'vlb' needs a DDPM schedule, not {schedule.kind!r}. Use 'vdm'.")
    previous_alpha_bar = torch.cat([beta.new_ones(1), schedule.alpha[:-1].square()])
    values = beta * previous_alpha_bar / (2 * schedule.sigma**4)
    return Weighting(values=values, space="x0", name="vlb")


def bucketed(schedule: Schedule, values: Sequence[float] | Float[Tensor, " buckets"], space: Space) -> Weighting:
    """Weigh by buckets of equal width in time, such as Clark & Jaini's 20 learned ones.

    Raises:
        InputError: If there are no buckets, more than levels, or a value makes no sense.
    """
    table = torch.as_tensor(values, dtype=torch.float64)
    if table.ndim != 1 or not 1 <= len(table) <= len(schedule):
        raise InputError(
            f"Buckets must be a list of 1 to {len(schedule)} weights (the number of levels); "
            f"got shape {tuple(table.shape)}."
        )
    bucket = torch.arange(len(schedule)) * len(table) // len(schedule)
    return Weighting(values=table[bucket], space=space, name="bucketed")


def explicit(schedule: Schedule, values: Sequence[float] | Float[Tensor, " n"], space: Space) -> Weighting:
    """Weigh by a user's own table, one value per level.

    Raises:
        InputError: If the length is not that of the schedule, or a value makes no sense.
    """
    table = torch.as_tensor(values, dtype=torch.float64)
    _check_length(table, schedule)
    return Weighting(values=table, space=space, name="explicit")


BY_NAME: dict[str, Callable[[Schedule], Weighting]] = {
    "uniform": uniform,
    "snr": snr,
    "vdm": vdm,
    "exp": exponential,
    "vlb": vlb,
}


def by_name(name: str, schedule: Schedule) -> Weighting:
    """Make the weights "uniform" (in eps space), "snr", "vdm", "exp" (rate 7) or "vlb".

    Raises:
        InputError: If the name is unknown, or the schedule does not have these weights.
    """
    if name not in BY_NAME:
        raise InputError(f"Unknown weighting {name!r}. {nearest(name, BY_NAME)}")
    return BY_NAME[name](schedule)


def _reach(space: Space, schedule: Schedule) -> Tensor:
    """How far one and the same misjudgement moves a view, up to sign.

    ``x_t`` is given, so an error ``sigma * d`` in x0 is an error ``-alpha * d`` in eps; v and flow follow from these.
    """
    alpha, sigma = schedule.alpha, schedule.sigma
    match space:
        case "x0":
            return sigma
        case "eps":
            return alpha
        case "v":
            return alpha.square() + sigma.square()
        case "flow":
            return alpha + sigma


def _times(schedule: Schedule) -> Tensor:
    return torch.arange(len(schedule), dtype=torch.float64) / len(schedule)


def _check_length(values: Tensor, schedule: Schedule) -> None:
    if values.ndim != 1 or len(values) != len(schedule):
        raise InputError(
            f"Weights of shape {tuple(values.shape)} do not fit a schedule of {len(schedule)} levels: one per level."
        )
