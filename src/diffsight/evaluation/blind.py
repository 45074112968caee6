"""How far the texts of queries give the answers away to somebody who sees no image.

A benchmark whose wrong captions are clumsier, longer or off the subject is solved in part by reading alone. Its results
mean little until they stand beside those of a blind model.
"""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array, csr_array, hstack
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from diffsight.data.queries import Picture, Query, picture_identity
from diffsight.errors import ImageError, InputError
from diffsight.evaluation.metrics.accuracy import Estimate, mean_of_shares
from diffsight.evaluation.metrics.matching import Measure, judge

FEWEST_QUERIES = 20  # with fewer, the interval spans half of all that is possible
FEWEST_TO_TRAIN = 10

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Blind:
    """What can be had without looking at the images.

    Attributes:
        texts: Accuracy of choosing among texts by reading them; None where it cannot be known.
        images: The same for choosing among images: exactly chance, as there is nothing to read. None without such
            queries.
        reason: Why ``texts`` is None, or None.
    """

    texts: Measure | None
    images: Measure | None
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "texts": None if self.texts is None else self.texts.to_dict(),
            "images": None if self.images is None else self.images.to_dict(),
            "reason": self.reason,
        }


def blind_baseline(queries: Iterable[Query], *, folds: int = 5, level: float = 0.95) -> Blind:
    """Choose among texts by a model that only reads them, cross-validated.

    The model is a logistic regression on the TF-IDF of words and pairs of words and on the length, both relative to the
    other texts of the query, which says of each text whether it is right. The best of a query is its answer; a tie
    counts as in `metrics.matching`. Words are runs of letters and digits, so it reads little in scripts without spaces.

    No text (as words, whatever its case and punctuation) and no image (file, or pixels) that a model is tested with was
    in its training. Queries that share one, or are linked by others that do, are tested together. Where this would
    leave less than 20 groups or put over half of the queries into one, as with wrong texts that are the right ones of
    other queries, only those that share an image are tested together, and texts of the test are left out of the
    training.

    A result far above its chance says that texts leak. One near chance does not say that they do not: a better reader
    may find more. One far below it says that right texts of one part are like wrong texts of the others, as in sets
    that are balanced on purpose. It is None, with a reason, for less than 20 queries, and where less than 20 images or
    too few texts are left to learn from: for instance if all queries choose among the same few texts.

    Args:
        queries: Those with several texts and a positive are read; those with several images are counted; grids, which
            ask which text is right for an image and therefore cannot be answered by reading, have no part.
        folds: Into how many parts the queries are divided; each is tested by a model trained on the others.
        level: Confidence level of the interval, which treats queries as independent.

    Raises:
        InputError: If ``folds`` is not 2 to 20 or ``level`` not between 0 and 1.
    """
    if not 2 <= folds <= FEWEST_QUERIES:
        raise InputError(f"folds must be 2 to {FEWEST_QUERIES}, to train on some queries and test others; got {folds}.")
    known = [query for query in queries if query.positive is not None]
    images = [query for query in known if query.form == "images"]
    by_luck = None
    if images:
        chance = _chance(images)
        by_luck = Measure(estimate=Estimate(chance, chance, chance), chance=chance, queries=len(images))
    texts = [query for query in known if query.form == "texts"]
    if len(texts) < FEWEST_QUERIES:
        reason = f"{len(texts)} queries choose among texts and have a positive, and it takes {FEWEST_QUERIES}."
        return Blind(texts=None, images=by_luck, reason=reason)
    hits = _hits(texts, folds)
    if hits is None:
        reason = "The queries share so many texts or images that too few are left to learn from."
        return Blind(texts=None, images=by_luck, reason=reason)
    measure = Measure(estimate=mean_of_shares(hits, level=level), chance=_chance(texts), queries=len(texts))
    return Blind(texts=measure, images=by_luck)


def _hits(queries: Sequence[Query], folds: int) -> list[float] | None:
    """Success of each query in the fold that tests it, or None where a fold has too little to train on."""
    texts = [text for query in queries for text in query.texts]
    owner = np.repeat(np.arange(len(queries)), [query.count for query in queries])
    right = np.concatenate([np.arange(query.count) == query.positive for query in queries])
    keys = _numbers([" ".join(_words(text)) for text in texts])
    pictures = _numbers([_identity(query.images[0]) for query in queries])
    groups = _linked(
        np.concatenate([owner, np.arange(len(queries))]), np.concatenate([keys, keys.max() + 1 + pictures])
    )
    sizes = np.bincount(groups)
    if len(sizes) < FEWEST_QUERIES or sizes.max() > len(queries) / 2:
        groups = pictures
        if pictures.max() + 1 < FEWEST_QUERIES:
            return None
    scores = np.zeros(len(texts))
    for _, part in GroupKFold(folds).split(groups, groups=groups):
        test = np.isin(owner, part)
        train = _whole(~test & ~np.isin(keys, keys[test]), owner, right)
        if len(np.unique(owner[train])) < FEWEST_TO_TRAIN:
            return None
        scores[test] = _read(texts, owner, right, train=train, test=test)
    of_query = np.split(scores, np.cumsum([query.count for query in queries])[:-1])
    hits = [judge(query, own[None, :]).hit for query, own in zip(queries, of_query, strict=True)]
    return [hit for hit in hits if hit is not None]


def _read(
    texts: Sequence[str],
    owner: Int[np.ndarray, " n"],
    right: Bool[np.ndarray, " n"],
    *,
    train: Bool[np.ndarray, " n"],
    test: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, " k"]:
    """Learn which of the texts in ``train`` are right, and score those in ``test``."""
    sentences = [" ".join(_words(text)) for text in texts]
    words = TfidfVectorizer(token_pattern=r"\S+", lowercase=False, ngram_range=(1, 2))  # noqa: S106 - of words
    words.fit([sentences[row] for row in train.nonzero()[0].tolist()])
    lengths = np.log1p([len(text) for text in texts])[:, None]
    # In units of its spread, or the regularisation would take a small but constant difference for nothing.
    spread = _relative(csr_array(lengths[train]), owner[train]).toarray().std()
    if spread > 1e-9:  # below it is rounding
        lengths /= spread

    def describe(rows: Bool[np.ndarray, " n"]) -> csr_array:
        counts = words.transform([sentences[row] for row in rows.nonzero()[0].tolist()])
        return _relative(csr_array(hstack([counts, csr_array(lengths[rows])])), owner[rows])

    model = LogisticRegression(max_iter=1000).fit(describe(train), right[train])
    return model.decision_function(describe(test))


def _relative(features: csr_array, owner: Int[np.ndarray, " k"]) -> csr_array:
    # What all candidates of a query have in common, such as the question that they answer, decides nothing.
    _, place, count = np.unique(owner, return_inverse=True, return_counts=True)
    rows = np.arange(len(owner))
    sums = csr_array((np.ones(len(owner)), (place, rows))) @ features
    return csr_array(features - csr_array((1 / count[place], (rows, place))) @ sums)


def _whole(
    free: Bool[np.ndarray, " n"], owner: Int[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    # A query without its right text, or without a wrong one, has nothing to compare.
    whole = (np.bincount(owner, free & right) > 0) & (np.bincount(owner, free & ~right) > 0)
    return free & whole[owner]


def _linked(queries: Int[np.ndarray, " links"], things: Int[np.ndarray, " links"]) -> Int[np.ndarray, " n"]:
    """Give queries that are linked by the things they have, over any number of steps, the same number."""
    count = int(queries.max()) + 1
    size = count + int(things.max()) + 1
    links = coo_array((np.ones(len(queries)), (queries, count + things)), shape=(size, size))
    return connected_components(links, directed=False)[1][:count]


def _numbers(names: Sequence[Hashable]) -> Int[np.ndarray, " n"]:
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(name, len(known)) for name in names])


def _identity(picture: Picture) -> Hashable:
    try:
        return picture_identity(picture)
    except ImageError:
        return id(picture)  # Damaged: the business of whoever looks at it.


def _words(text: str) -> list[str]:
    lower = text.casefold()
    return _WORD.findall(lower) or lower.split() or ["-"]


def _chance(queries: Sequence[Query]) -> float:
    return float(np.mean([1 / query.count for query in queries]))
