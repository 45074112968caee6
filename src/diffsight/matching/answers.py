"""The answer to a query: scores, the best candidate, ties; or why there is none."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from diffsight.data.queries import Query


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Match:
    """The answer to one query.

    Attributes:
        id: The query's.
        scores: Of every image with every text, higher is better; NaN after a failure.
        best: Place of the best candidate; None after a failure, in a tie, and where images and texts are paired up.
        tied: Places of all candidates that share the first place exactly; empty unless there is a tie.
        failure: Why there is no answer, or None.
        invalid: Why the scores are no measurement of this query: with ``batch_leak``, and only then.
    """

    id: str
    scores: Float[np.ndarray, "images texts"]
    best: int | None = None
    tied: tuple[int, ...] = ()
    failure: str | None = None
    invalid: str | None = None

    @property
    def order(self) -> list[int]:
        """Candidates from best to worst, for one image or one text; empty after a failure."""
        return [] if self.failure else [int(place) for place in np.argsort(-self.scores.ravel(), kind="stable")]


def answer(query: Query, scores: Float[np.ndarray, "images texts"] | str, *, invalid: str | None = None) -> Match:
    """What the scores of a query, or the reason why there are none, say.

    Args:
        query: What was asked.
        scores: Of every image with every text, or a reason.
        invalid: See `Match`.
    """
    shape = (len(query.images), len(query.texts))
    if isinstance(scores, str):
        return Match(id=query.id, scores=np.full(shape, np.nan), failure=scores)
    if query.form == "grid":
        return Match(id=query.id, scores=scores, invalid=invalid)
    winners = np.flatnonzero(scores.ravel() == scores.max())
    tied = tuple(int(place) for place in winners) if len(winners) > 1 else ()
    return Match(id=query.id, scores=scores, best=None if tied else int(winners[0]), tied=tied, invalid=invalid)
