"""Sequential tests: drop an arm as soon as it is clear that it is worse than the best one.

All arms of an image see the same draws, so what is tested is the paired difference to the arm that leads,
``d_i(c) = e_i(c) - e_i(leader)``. Most noise is common to both and cancels (Clark & Jaini, Fig. 2).

| policy | looks | holds for | use |
|---|---|---|---|
| `PairedTTest` | Student's t-test, uncorrected | a single look | to reproduce Clark & Jaini |
| `Race` | e-process of signs | any symmetric noise, all looks together | when the error level must be true |
| `PooledRace` | t-test e-process, variance shrunk | near-normal noise, all looks together | when many draws are made |
| `Forecast` | chance to overtake by the last draw | near-normal noise, one look at a time | default: fewest calls |

`Race` and `PooledRace` give up the truly best arm with probability of at most ``error``, over all looks and rivals.
To lose it, one of its K - 1 rivals must seem better than it, and each of them may with ``error / (K - 1)`` (Ville's
inequality on an e-process, and a union bound); that the leader is chosen by the same data is thereby covered. An arm
that is not the best may be dropped by another that is no better: this costs nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffsight.errors import InputError
from diffsight.scoring.elimination import (
    Decision,
    Spacing,
    as_dict,
    check_count,
    check_spacing,
    keep_best,
    spaced_levels,
    survivors_table,
)
from diffsight.scoring.evidence import (
    chance_to_overtake,
    normal_evidence,
    paired_p_values,
    sharpest_at,
    sign_evidence,
)


@dataclass(frozen=True, slots=True)
class PairedTTest:
    """Clark & Jaini, Alg. 1: after each draw, drop the arms whose paired t-test against the leader is under a cutoff.

    The defaults are the paper's, levels drawn at random included. The test is repeated without correction: the chance
    of losing the best arm is well over ``cutoff``, and grows with ``max_draws`` and the number of arms.

    Attributes:
        min_draws: No test before.
        max_draws: No draw after; the least mean error then wins.
        cutoff: An arm is dropped at a two-sided p-value below this.
        step: Draws per look; 1 in the paper.
        spacing: "random" as in the paper, or "nested".
    """

    name: ClassVar[str] = "t-test"
    min_draws: int = 20
    max_draws: int = 2000
    cutoff: float = 2e-3
    step: int = 1
    spacing: Spacing = "random"

    def __post_init__(self) -> None:
        _check(self.min_draws, self.max_draws, self.step, self.spacing)
        _check_level("cutoff", self.cutoff)

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw."""
        return spaced_levels(self.spacing, num_levels, self.max_draws)

    def max_calls(self, num_arms: int) -> int:
        """Denoiser calls per image if nothing can be dropped."""
        return num_arms * self.max_draws

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Drop what is worse than the leader, and ask for the next draws."""

        def is_worse(differences: np.ndarray, rivals: int) -> np.ndarray:
            return paired_p_values(differences) < self.cutoff

        return _look(errors, alive, is_worse, first=self.min_draws, step=self.step, last=self.max_draws)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        return as_dict(self)


@dataclass(frozen=True, slots=True)
class Race:
    """Drop an arm when the signs of its differences leave no doubt; valid at every look, for noise of any size.

    Holds exactly if, for the truly best arm, each draw's difference to a rival is symmetric and unimodal around a
    centre on the right side of zero; draws may differ in size as they like, and tails may be heavy. Where the best arm
    is the worse one at some levels, single centres are on the wrong side: ``block`` averages so many consecutive draws
    first, and as every power of two of nested draws is spread over all levels, only their average has to be right.

    Signs alone are tested, so that no arm can go before ``log2((K - 1) / error)`` blocks, however bad it is.

    Attributes:
        error: Probability of losing the best arm, over all looks and rivals.
        min_draws: No test before; these also set the scale of the test.
        max_draws: No draw after; the least mean error then wins.
        step: Draws per look.
        tuned_for: Draws after which the test is sharpest; it costs little to be wrong by a factor of 4.
        block: Consecutive draws that are averaged before the test.
        spacing: "nested" or "random".
    """

    name: ClassVar[str] = "race"
    error: float = 0.05
    min_draws: int = 8
    max_draws: int = 1000
    step: int = 4
    tuned_for: int = 64
    block: int = 1
    spacing: Spacing = "nested"

    def __post_init__(self) -> None:
        _check(self.min_draws, self.max_draws, self.step, self.spacing, self.tuned_for, self.block)
        _check_level("error", self.error)

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw."""
        return spaced_levels(self.spacing, num_levels, self.max_draws)

    def max_calls(self, num_arms: int) -> int:
        """Denoiser calls per image if nothing can be dropped."""
        return num_arms * self.max_draws

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Drop what is worse than the leader, and ask for the next draws."""

        def is_worse(differences: np.ndarray, rivals: int) -> np.ndarray:
            blocks = _averages(differences, self.block)
            scale = np.sqrt(np.square(blocks[: self.min_draws // self.block]).mean(axis=0))
            effect_variance = sharpest_at(self.tuned_for / self.block, self.error / rivals)
            return sign_evidence(blocks, scale=scale, effect_variance=effect_variance) >= np.log(rivals / self.error)

        return _look(errors, alive, is_worse, first=self.min_draws, step=self.step, last=self.max_draws)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        return as_dict(self)


@dataclass(frozen=True, slots=True)
class PooledRace:
    """Drop an arm when its mean difference is large for its variance, shrunk to that of the image's other arms.

    With few draws an arm's own variance is hardly known. The other living arms of the same image have seen the same
    draws, and lend their average as a prior worth ``prior`` draws; other images never do. The error level holds if
    differences are near normal and their variances scatter no more between arms than the prior says; with ``prior=0``
    or two arms left, each arm's own variance decides (exact for normal noise of any variance). Levels of unlike size
    make the test cautious, skewed differences (rarely, but then by far in favour of the best arm) make it bold.

    Attributes:
        error: Probability of losing the best arm, over all looks and rivals.
        min_draws: No test before.
        max_draws: No draw after; the least mean error then wins.
        step: Draws per look.
        prior: How many draws the pooled variance is worth.
        tuned_for: Draws after which the test is sharpest; it costs little to be wrong by a factor of 4.
        block: Consecutive draws that are averaged before the test; a power of two takes the differences between
            levels out of the variance, at the price of fewer values to estimate it from.
        spacing: "nested" or "random".
    """

    name: ClassVar[str] = "pooled-race"
    error: float = 0.05
    min_draws: int = 8
    max_draws: int = 1000
    step: int = 4
    prior: float = 8.0
    tuned_for: int = 32
    block: int = 1
    spacing: Spacing = "nested"

    def __post_init__(self) -> None:
        _check(self.min_draws, self.max_draws, self.step, self.spacing, self.tuned_for, self.block)
        _check_level("error", self.error)
        if not 0 <= self.prior < float("inf"):
            raise InputError(f"prior must be a number of draws, 0 or more; got {self.prior}.")

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw."""
        return spaced_levels(self.spacing, num_levels, self.max_draws)

    def max_calls(self, num_arms: int) -> int:
        """Denoiser calls per image if nothing can be dropped."""
        return num_arms * self.max_draws

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Drop what is worse than the leader, and ask for the next draws."""

        def is_worse(differences: np.ndarray, rivals: int) -> np.ndarray:
            blocks = _averages(differences, self.block)
            effect_variance = sharpest_at(self.tuned_for / self.block, self.error / rivals)
            evidence = normal_evidence(blocks, effect_variance=effect_variance, prior=self.prior)
            return evidence >= np.log(rivals / self.error)

        return _look(errors, alive, is_worse, first=self.min_draws, step=self.step, last=self.max_draws)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        return as_dict(self)


@dataclass(frozen=True, slots=True)
class Forecast:
    """Drop an arm when it will hardly overtake the leader before the draws run out; the default.

    What counts is not which arm would win with infinitely many draws, but which would win with all ``max_draws``: the
    draws made are known, so that only those to come are uncertain, and a race between equals ends soon. The variance
    of each arm's differences is shrunk to that of the image's other arms, never of other images.

    The stated error is that of one look: the chances of all arms that go at a look add up to at most ``error``, so that
    the winner of all draws is among them no more often (normal differences, flat prior on their mean, variances
    alike). Adding up, and not testing arm by arm, keeps it the same for 10 and for 1,000 classes. As levels are evenly
    spread, which the variance does not know of, the answer is lost much less often (``benchmarks/zero_shot.py``
    measures it). Where the level must hold over all looks together, use `Race`.

    The defaults were chosen on stored errors of ``tiny-fashion`` on 1,000 test photographs, labels seen: what they give
    there is no forecast of what they give elsewhere.

    Attributes:
        error: At a look, the probability that any of the arms dropped would still have won.
        min_draws: No test before.
        max_draws: All draws; the least mean error then wins.
        growth: The next look is after this factor of the draws so far.
        prior: How many draws the pooled variance is worth.
        spacing: "nested" or "random".
    """

    name: ClassVar[str] = "forecast"
    error: float = 0.08
    min_draws: int = 3
    max_draws: int = 64
    growth: float = 1.2
    prior: float = 8.0
    spacing: Spacing = "nested"

    def __post_init__(self) -> None:
        _check(self.min_draws, self.max_draws, 1, self.spacing)
        _check_level("error", self.error)
        if not 1 <= self.growth < float("inf"):
            raise InputError(f"growth must be a factor of at least 1; got {self.growth}.")
        if not 0 <= self.prior < float("inf"):
            raise InputError(f"prior must be a number of draws, 0 or more; got {self.prior}.")

    def grid(self, num_levels: int) -> Int[Tensor, " draws"]:
        """The level index of each draw."""
        return spaced_levels(self.spacing, num_levels, self.max_draws)

    def max_calls(self, num_arms: int) -> int:
        """Denoiser calls per image if nothing can be dropped."""
        return num_arms * self.max_draws

    def next(self, errors: Float[np.ndarray, "draws arms"], alive: Bool[np.ndarray, " arms"]) -> Decision:
        """Drop what will hardly win, and ask for the next draws."""

        def is_worse(differences: np.ndarray, rivals: int) -> np.ndarray:
            chances = chance_to_overtake(differences, horizon=self.max_draws, prior=self.prior)
            order = np.argsort(chances, kind="stable")
            dropped = np.empty(len(order), dtype=bool)
            dropped[order] = np.cumsum(chances[order]) <= self.error
            return dropped

        step = max(1, math.ceil(len(errors) * (self.growth - 1)))
        return _look(errors, alive, is_worse, first=self.min_draws, step=step, last=self.max_draws)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values."""
        return as_dict(self)


def _look(
    errors: np.ndarray,
    alive: np.ndarray,
    is_worse: Callable[[np.ndarray, int], np.ndarray],
    *,
    first: int,
    step: int,
    last: int,
) -> Decision:
    """One step of a race: test the living arms against the leader, then finish or ask for more draws.

    ``is_worse`` gets the differences of the leader's rivals, and how many rivals there were at the start.
    """
    table, count = survivors_table(errors, alive), len(errors)
    alive = alive.copy()
    if first <= count < last and table.shape[1] > 1:
        leader = table.mean(axis=0).argmin()
        differences = np.delete(table - table[:, [leader]], leader, axis=1)
        rivals = int(np.isfinite(errors[0]).sum()) - 1
        dropped = np.insert(is_worse(differences, rivals), leader, values=False)
        alive[alive] = ~dropped
        table = table[:, ~dropped]
    # Arms that have been the same at every draw (two classes with one prompt) cannot be told apart by more of them.
    same = count >= first and (table == table[:, :1]).all()
    if count >= last or table.shape[1] == 1 or same:
        return Decision(keep_best(errors, alive, 1), ())
    return Decision(alive, tuple(range(count, min(last, first if count < first else count + step))))


def _averages(differences: np.ndarray, block: int) -> np.ndarray:
    """Means of consecutive draws; an unfinished block waits for the next look."""
    count, arms = len(differences) // block, differences.shape[1]
    return differences[: count * block].reshape(count, block, arms).mean(axis=1)


def _check(min_draws: int, max_draws: int, step: int, spacing: str, tuned_for: int = 1, block: int = 1) -> None:
    check_count("step", step)
    check_count("tuned_for", tuned_for)
    check_count("block", block)
    check_count("min_draws", min_draws, least=2 * block)
    check_count("max_draws", max_draws, least=min_draws)
    check_spacing(spacing, "nested", "random")


def _check_level(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be a probability between 0 and 1; got {value}.")
