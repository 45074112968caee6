"""Whether two measures rank the same models, layers or settings alike: Kendall's tau-b and Spearman's rho, by scipy."""

from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import Estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAgreement:
    """How alike two rankings are: 1 for the same order, 0 for none, -1 for the reverse.

    Attributes:
        items: How many were ranked.
        kendall: Tau-b, which corrects for ties: the excess of pairs that both order alike.
        spearman: Correlation of the ranks.
        kendall_p: Two-sided p-value of no agreement, exact without ties where scipy can (up to 33 items or few swaps).
        spearman_p: The same by Student's approximation.
    """

    items: int
    kendall: Estimate
    spearman: Estimate
    kendall_p: float
    spearman_p: float

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def rank_agreement(
    first: Float[np.ndarray, " n"], second: Float[np.ndarray, " m"], *, level: float = 0.95
) -> RankAgreement:
    """Compare two rankings of the same items.

    The intervals are those of Bonett & Wright 2000 (Psychometrika 65, 23-28) on Fisher's scale, with variance
    ``0.437 / (n - 4)`` for tau and ``(1 + rho² / 2) / (n - 3)`` for rho; a perfect agreement gets that of one swap
    less. With fewer than five items nothing is known, and they span -1 to 1.

    Args:
        first: One value for each item; ties are allowed.
        second: The other value of each.
        level: Confidence level of the intervals.

    Raises:
        InputError: If lengths differ, there are fewer than two items, a value is NaN, or all values are equal.
    """
    from scipy.stats import kendalltau, spearmanr

    n = len(first)
    if len(second) != n or n < 2:
        raise InputError(f"Two rankings of the same items, at least two, can be compared; got {n} and {len(second)}.")
    for name, values in (("first", first), ("second", second)):
        if np.isnan(values).any():
            raise InputError(
                f"Value {int(np.isnan(values).argmax())} of the {name} ranking is NaN; leave the item out."
            )
        if (values == values[0]).all():
            raise InputError(f"All values of the {name} ranking are {values[0]}, so there is no order to agree with.")
    by_pairs: Any = kendalltau(first, second)
    by_ranks: Any = spearmanr(first, second)
    tau, rho = float(by_pairs.statistic), float(by_ranks.statistic)
    swap_tau, swap_rho = 1 - 4 / (n * (n - 1)), 1 - 12 / (n * (n * n - 1))
    return RankAgreement(
        items=n,
        kendall=_fisher(tau, swap_tau, 0.437 / (n - 4) if n > 4 else None, level),
        spearman=_fisher(rho, swap_rho, (1 + min(rho * rho, 1.0) / 2) / (n - 3) if n > 4 else None, level),
        kendall_p=float(by_pairs.pvalue),
        spearman_p=float(by_ranks.pvalue),
    )


def _fisher(value: float, largest: float, variance: float | None, level: float) -> Estimate:
    if variance is None:
        return Estimate(value, -1.0, 1.0)
    half = NormalDist().inv_cdf((1 + level) / 2) * variance**0.5
    middle = np.arctanh(np.clip(value, -largest, largest))
    return Estimate(value, min(float(np.tanh(middle - half)), value), max(float(np.tanh(middle + half)), value))
