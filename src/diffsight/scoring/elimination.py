"""Policies: which draws an image is scored on next, and which arms (classes or prompts) are out.

A policy is a frozen value without state. It sees the errors of one image so far, a table of shape (draws, arms) with
weights applied and NaN where an arm was not scored, and answers with a `Decision`. The same table gives the same
answer, so that a run can be stopped anywhere, and policies can be compared on stored tables (`policies.replay`).

Ties are reported: where arms are exactly equal (two classes with one prompt) all of them go on, and all of them win.
"""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffsight.diffusion.schedule import midpoint_grid, nested_grid
from diffsight.errors import InputError

Spacing = Literal["nested", "midpoint", "random"]


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What a policy wants next.

    Attributes:
        alive: The arms that are still in; once finished, the winner, or all winners of an exact tie.
        draws: Indices of the draws to score all living arms on next; empty when finished.
    """

    alive: Bool[np.ndarray, " arms"]
    draws: tuple[int, ...]

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to score."""
        return not self.draws


@runtime_checkable
class Policy(Protocol):
    """What every policy can do. ``name`` is its name in files and on the command line."""

    name: ClassVar[str]

    @property
    def max_draws(self) -> int:
        """The most draws that an image can need."""
        ...

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw, for a schedule of ``num_levels``; ``max_draws`` of them."""
        ...

    def max_calls(self, num_arms: int) -> int:
        """The most denoiser calls that an image can need, if no two arms tie."""
        ...

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Decide on what to score next.

        Args:
            errors: Weighted errors so far, draws in order; living arms have no gaps. Never modified.
            alive: The arms that are still in. Never modified.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values, for fingerprints; `policies.policy_from_dict` reads them."""
        ...


def survivors_table(
    errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]
) -> Float[np.ndarray, "draws survivors"]:
    """The columns of the living arms, float64.

    Raises:
        InputError: If no arm is alive, or a living arm has a gap.
    """
    if not alive.any():
        raise InputError("No arm is alive; a policy needs at least one to choose from.")
    table = errors[:, alive].astype(np.float64, copy=False)
    if not np.isfinite(table).all():
        draw, column = np.argwhere(~np.isfinite(table))[0]
        arm = np.flatnonzero(alive)[column]
        raise InputError(f"Arm {arm} is alive but its error at draw {draw} is {table[draw, column]}; score it first.")
    return table


def keep_best(errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"], count: int) -> np.ndarray:
    """Which of the living arms have the ``count`` least mean errors; more of them where the last place is tied."""
    if alive.sum() <= count:
        return alive.copy()
    means = np.full(len(alive), np.inf)
    means[alive] = survivors_table(errors, alive).mean(axis=0)
    return alive & (means <= np.partition(means, count - 1)[count - 1])


def spaced_levels(spacing: Spacing, num_levels: int, num_draws: int) -> Int[Tensor, " draws"]:
    """Level indices of a policy's draws.

    Args:
        spacing: "nested" has every prefix evenly spread (van der Corput); "midpoint" is Li et al.'s ascending grid;
            "random" is uniform and independent, as in Clark & Jaini, the same for all images and runs.
        num_levels: Length of the schedule.
        num_draws: Length of the grid.

    Raises:
        InputError: If the midpoint grid is asked for more draws than there are levels.
    """
    if spacing == "random":
        uniform = np.random.Generator(np.random.PCG64(0)).random(num_draws)
        return torch.from_numpy((uniform * num_levels).astype(np.int64))
    return (midpoint_grid if spacing == "midpoint" else nested_grid)(num_levels, num_draws)


def as_dict(policy: Any) -> dict[str, Any]:  # noqa: ANN401 - any frozen dataclass with a name
    """Name and fields of a policy as plain JSON values."""
    fields = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(policy).items()}
    return {"name": policy.name, **fields}


def check_count(name: str, value: int, least: int = 1) -> None:
    """Refuse what is not a whole number of at least ``least``.

    Raises:
        InputError: Then.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}; got {value!r}.")


def check_spacing(spacing: str, *known: str) -> None:
    """Refuse a spacing of levels that a policy cannot use.

    Raises:
        InputError: Then.
    """
    if spacing not in known:
        raise InputError(f"spacing must be one of {', '.join(map(repr, known))}; got {spacing!r}.")


@dataclass(frozen=True, slots=True)
class Exhaustive:
    """Score every arm on every draw.

    Attributes:
        num_draws: How many.
        spacing: "nested", "midpoint" (Li et al.; at most one draw per level) or "random".
    """

    name: ClassVar[str] = "exhaustive"
    num_draws: int = 100
    spacing: Spacing = "nested"

    def __post_init__(self) -> None:
        check_count("num_draws", self.num_draws)
        check_spacing(self.spacing, "nested", "midpoint", "random")

    @property
    def max_draws(self) -> int:
        """The most draws that an image can need."""
        return self.num_draws

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw."""
        return spaced_levels(self.spacing, num_levels, self.num_draws)

    def max_calls(self, num_arms: int) -> int:
        """Denoiser calls per image."""
        return num_arms * self.num_draws

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Ask for all draws that are missing, then name the winner."""
        survivors_table(errors, alive)
        if len(errors) < self.num_draws:
            return Decision(alive.copy(), tuple(range(len(errors), self.num_draws)))
        return Decision(keep_best(errors, alive, 1), ())

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        return as_dict(self)


@dataclass(frozen=True, slots=True)
class Staged:
    """Score on more and more draws, and after each stage keep only the best arms (Li et al., Alg. 2).

    Attributes:
        keep: How many arms are left after each stage, falling to 1.
        samples: How many draws have been made by the end of each stage, rising.
        paper_exact: Draw levels as the authors' code does: each stage takes its own centred subset of the midpoint
            grid and adds what it has not yet seen. The subsets are not nested, so more draws are made than ``samples``
            says (ImageNet: 50, 150, 550, 1000), unevenly spread. Otherwise draws come from the nested grid.
    """

    name: ClassVar[str] = "staged"
    keep: tuple[int, ...] = (5, 1)
    samples: tuple[int, ...] = (50, 500)
    paper_exact: bool = False

    def __post_init__(self) -> None:
        if len(self.keep) != len(self.samples) or not self.keep:
            raise InputError(
                f"keep and samples must have one entry per stage; got {len(self.keep)} and {len(self.samples)}."
            )
        for value in (*self.keep, *self.samples):
            check_count("Every entry of keep and samples", value)
        if any(later >= earlier for earlier, later in zip(self.keep, self.keep[1:], strict=False)):
            raise InputError(f"keep must fall from stage to stage; got {self.keep}.")
        if any(later <= earlier for earlier, later in zip(self.samples, self.samples[1:], strict=False)):
            raise InputError(f"samples must rise from stage to stage; got {self.samples}.")
        if self.keep[-1] != 1:
            raise InputError(f"The last stage must keep 1 arm; got keep={self.keep}.")

    @property
    def max_draws(self) -> int:
        """The most draws that an image can need."""
        return self.samples[-1]

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """How many draws have really been made by the end of each stage."""
        return _subset_order(self.samples)[1] if self.paper_exact else self.samples

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw."""
        if not self.paper_exact:
            return nested_grid(num_levels, self.max_draws)
        return midpoint_grid(num_levels, self.max_draws)[torch.tensor(_subset_order(self.samples)[0])]

    def max_calls(self, num_arms: int) -> int:
        """Denoiser calls per image, if no two arms tie for a last place."""
        calls, arms, start = 0, num_arms, 0
        for end, keep in zip(self.stage_ends, self.keep, strict=True):
            if arms > 1:
                calls, arms, start = calls + arms * (end - start), min(arms, keep), end
        return calls

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Go on to the end of the stage; at its end, keep the best."""
        survivors_table(errors, alive)
        ends, seen = self.stage_ends, len(errors)
        if seen in ends:
            alive = keep_best(errors, alive, self.keep[ends.index(seen)])
        following = next((end for end in ends if end > seen), None)
        if following is None or alive.sum() == 1:
            return Decision(keep_best(errors, alive, 1), ())
        return Decision(alive.copy(), tuple(range(seen, following)))

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        return as_dict(self)


@lru_cache(maxsize=64)
def _subset_order(samples: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Points of the midpoint grid in the order in which the paper's code visits them, and the end of each stage."""
    visited: dict[int, None] = {}
    ends = []
    for count in samples:
        step = samples[-1] // count
        visited.update(dict.fromkeys(range(step // 2, samples[-1], step)[:count]))
        ends.append(len(visited))
    return tuple(visited), tuple(ends)
