"""Which method to take, computed from the rows; and what can be said without labels: who agrees with whom."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffsight.evaluation.comparing.rows import Row, labels_of
from diffsight.evaluation.metrics.accuracy import wilson


def recommend(rows: Sequence[Row], labels: Sequence[int], *, classes: int) -> list[dict[str, Any]]:
    """For each number of labels the cheapest method that is as good as the best.

    A method counts as good as the best if its accuracy is within the 95 % interval of the best one, or within its
    deviation over the seeds where that reaches further. With labels, methods that need none or fewer compete as well.

    Args:
        rows: Of a comparison with known accuracy.
        labels: Of each class.
        classes: How many there are. A result that is not told from guessing is called so.

    Returns:
        For each number of labels with a result ``labels``, ``row`` (its key), ``method`` and ``reason``.
    """
    found = []
    for number in sorted(set(labels)):
        known = [row for row in rows if row.value is not None and row.labels <= number]
        if not known:
            continue
        best = max(known, key=lambda row: (row.value or 0.0, -_cost(row)))
        floor = min(best.low or 0.0, (best.value or 0.0) - (best.sd or 0.0))
        fine = [row for row in known if (row.value or 0.0) >= floor]
        chosen = min(fine, key=lambda row: (_cost(row), row.labels, -(row.value or 0.0)))
        reason = _reason(chosen, best, number)
        if (chosen.low or 0.0) <= 1 / classes:
            reason += f" It is not told from guessing, which gives {_share(1 / classes)}."
        found.append({"labels": number, "row": chosen.key, "method": chosen.title, "reason": reason})
    return found


def _reason(chosen: Row, best: Row, labels: int) -> str:
    own = f"{_share(chosen.value)} [{_share(chosen.low)}, {_share(chosen.high)}]"
    needs = "" if chosen.labels == labels else f"; it needs {'only ' * (chosen.labels > 0)}{labels_of(chosen.labels)}"
    if chosen.key == best.key:
        return f"The most accurate with {own}, and nothing cheaper comes within its interval{needs}."
    spread = f" (± {_share(best.sd)} over seeds)" if best.sd is not None else ""
    return (
        f"{own} is within the uncertainty of the best, {best.title} with {labels_of(best.labels)}: "
        f"{_share(best.value)} [{_share(best.low)}, {_share(best.high)}]{spread}. It takes {_time(chosen.seconds)} for "
        f"an image, and that one {_time(best.seconds)}{needs}."
    )


def agreement(answers: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """How often methods give the same answer.

    Args:
        answers: For each row's key the predicted class of each image by its id.

    Returns:
        ``keys``; ``pairs``, a matrix of shares in their order (None where two share no image); ``others``, for each key
        the share of images on which it agrees with the most frequent answer of the others, with ``low`` and ``high`` at
        95 %, where these have one.
    """
    keys = list(answers)
    pairs = [[_same(answers[a], answers[b]) for b in keys] for a in keys]
    others: dict[str, Any] = {}
    for key in keys:
        hits = total = 0
        for id, answer in answers[key].items():
            votes = Counter(answers[other][id] for other in keys if other != key and id in answers[other])
            ranked = votes.most_common(2)
            if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
                continue
            total += 1
            hits += ranked[0][0] == answer
        share = wilson(hits, total) if total else None
        others[key] = share and {"value": share.value, "low": share.low, "high": share.high, "images": total}
    return {"keys": keys, "pairs": pairs, "others": others}


def recommend_unlabelled(rows: Sequence[Row], agreed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What can be said of images without labels: nothing about accuracy, only agreement and cost.

    Of the methods that agree with the others as often as the one that does most (within its 95 % interval), the
    cheapest. Methods that share an error agree as well, and so this is no sign of being right.
    """
    done = [row for row in rows if row.failure is None and row.key in agreed["keys"]]
    if not done:
        return []
    known = [row for row in done if agreed["others"].get(row.key)]
    warning = "The images have no labels, so nothing is known about accuracy"
    if len(done) < 3 or not known:
        chosen = min(done, key=_cost)
        off = [pair for number, line in enumerate(agreed["pairs"]) for pair in line[number + 1 :] if pair is not None]
        said = f" Both agree on {_share(off[0])} of the images." if len(done) == 2 and off else ""
        reason = f"{warning}.{said} This is the cheapest, with {_time(chosen.seconds)} for an image."
    else:
        most = max(known, key=lambda row: agreed["others"][row.key]["value"])
        floor = agreed["others"][most.key]["low"]
        fine = [row for row in known if agreed["others"][row.key]["value"] >= floor]
        chosen = min(fine, key=_cost)
        share, highest = (agreed["others"][row.key]["value"] for row in (chosen, most))
        reason = (
            f"{warning}; methods that err alike agree as well. It gives the answer of most others for {_share(share)} "
            f"of the images (the most is {_share(highest)}), at {_time(chosen.seconds)} for each."
        )
    advice = " To know more, sort some images into one folder for each class and compare again."
    return [{"labels": 0, "row": chosen.key, "method": chosen.title, "reason": reason + advice}]


def _same(first: Mapping[str, int], second: Mapping[str, int]) -> float | None:
    shared = first.keys() & second.keys()
    return float(np.mean([first[id] == second[id] for id in shared])) if shared else None


def _cost(row: Row) -> float:
    return float("inf") if row.seconds is None else row.seconds


def _share(value: float | None) -> str:
    return "?" if value is None else f"{value:.1%}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    return f"{1000 * seconds:.2g} ms" if seconds < 0.1 else f"{seconds:.2g} s"
