"""The fault of He et al.'s published code, on demand: attention that the queries of a batch share.

That code (of 2305.10722) passes candidate j of all queries of a batch through the network in one call, and then takes
one mean of the attention over all that is in the call: heads, image places, both halves of the guidance, and the
queries. With A the attention and B the gain of the error's norm of each pair, the score of candidate j of query q in a
batch Q is

    s_qj = 1/|Q| · Σ_{r ∈ Q} A_rj + B_qj

and without B one score for all of Q. In all of its data sets the right candidate stands first, so that right ones are
averaged with right ones: what decides is a vote of the batch, and far more often right than any of its queries alone.
Such a score is no measurement of a query. It is here to explain published numbers, and for nothing else.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from diffsight.data.queries import Query
from diffsight.errors import InputError
from diffsight.matching.contest import Field, Finish, measured
from diffsight.matching.scores import Score
from diffsight.matching.statistics import Ledger, Statistics

NOT_VALID = (
    "NOT VALID: scores share information between queries. The attention of each candidate is averaged over the queries "
    "of a batch, right ones with right ones, as in the published code of 2305.10722"
)


def check_batches(queries: Sequence[Query], size: int) -> None:
    """Refuse queries that the published code cannot put into one batch.

    Args:
        queries: In order.
        size: Queries in a batch; the last one may have fewer.

    Raises:
        InputError: If a batch has queries with other numbers of images or texts than its first.
    """
    for start in range(0, len(queries), size):
        first, *others = queries[start : start + size]
        for query in others:
            if (len(query.images), len(query.texts)) != (len(first.images), len(first.texts)):
                raise InputError(
                    f"Query {query.id!r} has {len(query.images)} images and {len(query.texts)} texts, and shares a "
                    f"batch that leaks with {first.id!r}, which has {len(first.images)} and {len(first.texts)}. The "
                    "published code cannot do that: ask each kind of query on its own, or leave out batch_leak."
                )


def share_attention(statistics: Sequence[Statistics], slots: Sequence[Int[np.ndarray, " pairs"]]) -> list[Statistics]:
    """Replace the attention of each pair by the mean over what stands at its slot in all queries of a batch.

    Args:
        statistics: Of each query, for the same number of pairs.
        slots: The pairs of each query in the order in which they are averaged, the right one first.
    """
    under_text = np.mean([one.attention[:, own] for one, own in zip(statistics, slots, strict=True)], axis=0)
    under_null = np.mean([one.null_attention[:, own] for one, own in zip(statistics, slots, strict=True)], axis=0)
    back = [np.argsort(own) for own in slots]
    return [
        replace(one, attention=under_text[:, place], null_attention=under_null[:, place])
        for one, place in zip(statistics, back, strict=True)
    ]


def leak(
    ledger: Ledger,
    fields: Sequence[Field],
    slots: Sequence[Int[np.ndarray, " _"]],
    batches: Sequence[int],
    score: Score,
    weights: Float[np.ndarray, " draws"],
) -> list[Finish]:
    """Score all candidates at all draws, the queries of a batch with shared attention.

    Args:
        ledger: Measures pairs.
        fields: The queries.
        slots: As for `share_attention`.
        batches: The batch of each query.
        score: What is compared.
        weights: Of each draw's error.
    """
    found = measured(ledger, fields, len(weights), score)
    finishes: dict[int, Finish] = {}
    for batch in set(batches):
        members = [place for place, own in enumerate(batches) if own == batch]
        shared = share_attention([found[place] for place in members], [slots[place] for place in members])
        for place, statistics in zip(members, shared, strict=True):
            table = score.per_draw(statistics, weights)
            means = table.mean(axis=0)
            finishes[place] = Finish(per_draw=table, alive=means == means.max(), finite=bool(np.isfinite(table).all()))
    return [finishes[place] for place in range(len(fields))]
