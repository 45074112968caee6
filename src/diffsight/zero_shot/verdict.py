"""What is said about one image once it has been scored: label, runner-up, probabilities, ties, cost."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffsight.scoring.engine import Scored
from diffsight.zero_shot.calibration import Temperature, gaps, posterior
from diffsight.zero_shot.settings import Contest


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Verdict:
    """The result for one image.

    Attributes:
        id: The image's identity.
        label: Index of the winning class; the first of them in a tie; None for a failed image.
        tied: All winners, more than one in an exact tie.
        probabilities: One per class, summing to 1; NaN for a failed image.
        scores: Negative error of each class relative to the winner on the draws that both have, so 0 for the winner.
        calls: Denoiser calls spent.
        failure: Why there is no result, or None.
    """

    id: str
    label: int | None
    tied: tuple[int, ...]
    probabilities: Float[np.ndarray, " classes"]
    scores: Float[np.ndarray, " classes"]
    calls: int
    failure: str | None = None

    @property
    def tie(self) -> bool:
        """Whether two classes have won exactly alike."""
        return len(self.tied) > 1

    @property
    def ranking(self) -> tuple[int, ...]:
        """Classes from the most to the least probable; empty for a failed image."""
        if self.failure is not None:
            return ()
        return tuple(int(index) for index in np.argsort(-self.probabilities, kind="stable"))


def decide(scored: Scored, contest: Contest, *, scale: float | None = None) -> Verdict:
    """Turn an image's errors into a verdict.

    Args:
        scored: From the engine, or rebuilt from a run.
        contest: What competed.
        scale: Inverse temperature of the probabilities; None takes it from the scatter of the draws, which needs no
            labels (`calibration.posterior`).

    Returns:
        The verdict; a failed image gets one with NaN probabilities.
    """
    count = len(contest.class_names)
    if scored.failure is not None:
        nothing = np.full(count, np.nan)
        return Verdict(
            id=scored.id,
            label=None,
            tied=(),
            probabilities=nothing,
            scores=nothing,
            calls=scored.calls,
            failure=scored.failure,
        )
    table = contest.units.reduce(scored.errors)
    of_unit = posterior(table) if scale is None else Temperature(scale).probabilities(table)
    scores = 0.0 - gaps(table)
    owner = np.asarray(contest.class_of_unit)
    if contest.ensemble == "mixture":
        # p(class) is the sum over its prompts: the mixture of their likelihoods, with equal shares.
        shares = np.bincount(owner, minlength=count)
        probabilities = np.bincount(owner, weights=of_unit, minlength=count) / shares
        probabilities /= probabilities.sum()
        scores = np.log(probabilities / probabilities.max())
        tied = np.flatnonzero(scores == 0)
    else:
        best = np.array([np.flatnonzero(owner == k)[of_unit[owner == k].argmax()] for k in range(count)])
        probabilities = of_unit[best] / of_unit[best].sum()
        scores = scores[best]
        tied = np.unique(owner[scored.alive])
    return Verdict(
        id=scored.id,
        label=int(tied[0]),
        tied=tuple(tied.tolist()),
        probabilities=probabilities,
        scores=scores,
        calls=scored.calls,
    )
