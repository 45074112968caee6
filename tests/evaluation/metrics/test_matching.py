import json
import math
from itertools import pairwise, permutations, product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.data.queries import Query
from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import mean_of_shares, wilson
from diffsight.evaluation.metrics.matching import grid_chance, judge, summarize


def query(id="q", *, images=1, texts=1, positive=None, tags=()):
    files = tuple(Path(f"{id}-{index}.png") for index in range(images))
    return Query(id=id, images=files, texts=tuple("abcdefghijkl"[:texts]), positive=positive, tags=tags)


def choice(scores, positive=0, *, form="texts", id="q", tags=()):
    row = np.array([scores], dtype=float)
    if form == "texts":
        return judge(query(id, texts=row.size, positive=positive, tags=tags), row)
    return judge(query(id, images=row.size, positive=positive, tags=tags), row.T)


def grid(scores, *, id="g", tags=()):
    table = np.array(scores, dtype=float)
    return judge(query(id, images=len(table), texts=len(table), tags=tags), table)


def ranks_in_all_orders(scores, positive):
    """Place of the positive, from 1, in every order that the scores allow."""
    orders = [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    return np.array([order.index(positive) + 1 for order in orders])


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.data())
def test_ties_count_as_the_mean_over_all_orders(scores, data):
    positive = data.draw(st.integers(0, len(scores) - 1))
    ranks = ranks_in_all_orders(scores, positive)
    for form in ("texts", "images"):
        outcome = choice(scores, positive, form=form)
        assert outcome.hit == pytest.approx((ranks == 1).mean())
        assert outcome.reciprocal_rank == pytest.approx((1 / ranks).mean())
        for k in range(len(scores) + 2):
            assert outcome.within(k) == pytest.approx((ranks <= k).mean())
        assert outcome.tie == (scores.count(max(scores)) > 1)


def test_tie_for_the_first_place_is_reported_also_without_the_positive():
    outcome = choice([1, 2, 2], positive=0)
    assert outcome.tie
    assert outcome.hit == 0
    lower = choice([3, 2, 2], positive=1)
    assert not lower.tie
    assert (lower.better, lower.equal) == (1, 1)


def test_eliminated_candidates_share_the_last_place():
    outcome = choice([-np.inf, 0.0, -np.inf], positive=0)
    assert (outcome.hit, outcome.within(2), outcome.within(3)) == (0, 0.5, 1)


def test_half_precision_is_compared_as_it_is():
    outcome = judge(query(texts=2, positive=0), np.array([[100.01, 100.0]], dtype=np.float16))
    assert outcome.tie
    assert outcome.hit == 0.5


# Winoground's scorer is given s(caption, image): text asks c0_i0 > c1_i0 and c1_i1 > c0_i1, image c0_i0 > c0_i1 and
# c1_i1 > c1_i0. Here images are in rows: [[c0_i0, c1_i0], [c0_i1, c1_i1]].
@pytest.mark.parametrize(
    ("scores", "text", "image", "tie"),
    [
        ([[0.9, 0.1], [0.2, 0.8]], True, True, False),
        ([[0.6, 0.5], [0.7, 0.8]], True, False, False),  # image 1 gets more for either caption
        ([[0.6, 0.7], [0.5, 0.8]], False, True, False),  # caption 1 gets more on either image
        ([[0.1, 0.9], [0.8, 0.2]], False, False, False),
        ([[0.5, 0.5], [0.2, 0.8]], False, True, True),
        ([[0.5, 0.1], [0.5, 0.8]], True, False, True),
        ([[0.5, 0.5], [0.5, 0.5]], False, False, True),
    ],
)
def test_grid_as_in_winoground(scores, text, image, tie):
    outcome = grid(scores)
    assert (outcome.text, outcome.image, outcome.group, outcome.tie) == (text, image, text and image, tie)
    assert outcome.hit is outcome.reciprocal_rank is outcome.positive is None


@given(st.lists(st.integers(0, 2), min_size=9, max_size=9))
def test_grid_of_three_by_its_definition(cells):
    table = np.array(cells, dtype=float).reshape(3, 3)
    pairs = [(own, other) for own, other in product(range(3), repeat=2) if own != other]
    outcome = grid(table)
    assert outcome.text == all(table[own, own] > table[own, other] for own, other in pairs)
    assert outcome.image == all(table[own, own] > table[other, own] for own, other in pairs)
    assert outcome.group == (outcome.text and outcome.image)
    lines = [*table.tolist(), *table.T.tolist()]
    assert outcome.tie == any(line.count(max(line)) > 1 for line in lines)


@pytest.mark.parametrize("size", [2, 3])
def test_chance_of_grids_is_the_share_of_all_orders(size):
    orders = np.array(list(permutations(range(size * size))), dtype=np.int8).reshape(-1, size, size)
    own = np.diagonal(orders, axis1=1, axis2=2)
    text = (orders.max(axis=2) == own).all(axis=1)
    image = (orders.max(axis=1) == own).all(axis=1)
    alone, together = grid_chance(size)
    assert text.mean() == pytest.approx(alone, abs=1e-12)
    assert image.mean() == pytest.approx(alone, abs=1e-12)
    assert (text & image).mean() == pytest.approx(together, abs=1e-12)


def test_chance_of_winoground():
    assert grid_chance(2) == (1 / 4, pytest.approx(1 / 6))
    metrics = summarize([grid([[1, 0], [0, 1]])])
    assert (metrics.text.chance, metrics.image.chance, metrics.group.chance) == (0.25, 0.25, pytest.approx(1 / 6))


def test_random_scores_of_a_mixture_are_at_chance():
    rng = np.random.default_rng(0)
    counts = rng.choice([2, 3, 10], 6000)
    # Rounded, so that ties are frequent: they must not lift the results above chance, nor lower them.
    outcomes = [
        choice(np.round(rng.normal(size=n)), int(rng.integers(n)), form=form)
        for n, form in zip(counts, np.resize(["texts", "images"], 6000), strict=True)
    ]
    outcomes += [grid(rng.normal(size=(2, 2))) for _ in range(6000)]
    metrics = summarize(outcomes)
    assert metrics.ties > 1000
    for name in ("accuracy", "recall_at_5", "reciprocal_rank", "text", "image", "group"):
        measure = getattr(metrics, name)
        error = math.sqrt(measure.chance * (1 - measure.chance) / measure.queries)
        assert abs(measure.estimate.value - measure.chance) < 3.5 * error, name
    assert metrics.accuracy.chance == pytest.approx(np.mean(1 / counts))
    assert metrics.recall_at_5.chance == 0.5
    assert metrics.recall_at_5.queries == (counts == 10).sum()


@pytest.mark.parametrize(("successes", "total"), [(0, 20), (15, 148), (81, 263), (29, 29), (1, 1)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_interval_of_successes_is_wilsons(successes, total, level):
    estimate = mean_of_shares([1.0] * successes + [0.0] * (total - successes), level=level)
    expected = wilson(successes, total, level=level)
    assert estimate.value == expected.value
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("values", [[0.0, 0.5, 1.0], [0.0, 1 / 3], [0.5], [0.5, 1.0]])
def test_interval_of_shares_contains_the_truth_as_often_as_stated(values):
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.ones(len(values)))
    truth = float(shares @ values)
    samples = rng.choice(values, size=(2000, 60), p=shares)
    estimates = [mean_of_shares(sample.tolist()) for sample in samples]
    assert np.mean([one.low <= truth <= one.high for one in estimates]) > 0.94
    assert all(one.high - one.low > 0.05 for one in estimates)  # also where all queries are the same tie


def test_summary_by_hand():
    outcomes = [
        choice([3, 1], 0, id="a", tags=("x",)),
        choice([3, 1], 1, id="b", tags=("x", "y")),
        choice([1, 1], 1, id="c"),
        choice([7, 6, 5, 5, 5, 5], 2, id="d", form="images", tags=("y",)),
        grid([[2, 1], [1, 2]], id="e", tags=("x",)),
        grid([[2, 2], [1, 3]], id="f", tags=("x",)),
    ]
    metrics = summarize(outcomes)
    assert (metrics.queries, metrics.scored, metrics.failed, metrics.ties) == (6, 6, 0, 2)
    assert metrics.accuracy.estimate.value == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert metrics.accuracy.chance == pytest.approx((3 / 2 + 1 / 6) / 4)
    assert metrics.accuracy.queries == 4
    assert metrics.recall_at_5.estimate.value == pytest.approx(3 / 4)  # places 3 to 6 are open, of which 3 to 5 count
    assert (metrics.recall_at_5.queries, metrics.recall_at_5.chance) == (1, pytest.approx(5 / 6))
    fourth = (1 / 3 + 1 / 4 + 1 / 5 + 1 / 6) / 4
    assert metrics.reciprocal_rank.estimate.value == pytest.approx((1 + 0.5 + 0.75 + fourth) / 4)
    assert (metrics.text.estimate.value, metrics.image.estimate.value, metrics.group.estimate.value) == (0.5, 1, 0.5)
    expected = wilson(1, 2)
    assert (metrics.text.estimate.low, metrics.text.estimate.high) == pytest.approx((expected.low, expected.high))
    assert list(metrics.by_tag) == ["x", "y"]
    assert metrics.by_tag["x"] == summarize([outcomes[i] for i in (0, 1, 4, 5)]).by_tag["x"]
    assert (metrics.by_tag["y"].queries, metrics.by_tag["y"].accuracy.estimate.value) == (2, 0)
    assert metrics.by_tag["y"].text is None


def test_level_is_that_of_the_intervals():
    outcomes = [choice([3, 1], index % 2) for index in range(40)]
    narrow, wide = summarize(outcomes, level=0.5).accuracy.estimate, summarize(outcomes, level=0.99).accuracy.estimate
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high


def test_majority_shows_that_places_give_answers_away():
    leaky = summarize([choice([0, 1, 2], int(index % 10 == 0), id=str(index)) for index in range(100)])
    assert leaky.majority_position == 0
    assert leaky.majority.estimate.value == pytest.approx(0.9)
    assert leaky.majority.estimate.low > leaky.majority.chance == pytest.approx(1 / 3)
    even = summarize([choice([0, 1, 2], index % 3) for index in range(99)])
    assert even.majority.estimate.value == pytest.approx(1 / 3)


def test_majority_place_that_some_queries_do_not_have():
    metrics = summarize([choice([0, 1], 0), choice([0, 1, 2, 3], 3), choice([0, 1, 2, 3], 3)])
    assert metrics.majority_position == 3
    assert metrics.majority.estimate.value == pytest.approx(2 / 3)
    assert metrics.majority.chance == pytest.approx((0 + 1 / 4 + 1 / 4) / 3)


def test_failures_lower_coverage_and_nothing_else():
    good = [choice([2, 1], 0), choice([2, 1], 1), grid([[2, 1], [1, 2]])]
    bad = [choice([np.nan, 1], 1), grid([[2, 1], [np.nan, 2]])]
    bad.append(judge(query(texts=2, positive=0), np.array([[1.0, 0.0]]), failure="The file is empty."))
    assert [one.failed for one in bad] == [
        "1 of its 2 scores are NaN.",
        "1 of its 4 scores are NaN.",
        "The file is empty.",
    ]
    assert all(one.hit is one.reciprocal_rank is one.text is None and not one.tie for one in bad)
    metrics, without = summarize(good + bad), summarize(good)
    assert (metrics.queries, metrics.scored, metrics.failed, metrics.coverage) == (6, 3, 3, 0.5)
    assert metrics.accuracy == without.accuracy
    assert metrics.group == without.group


@pytest.mark.parametrize("outcomes", [[], [choice([np.nan, 1], 0, tags=("x",))]])
def test_nothing_is_known_without_a_scored_query(outcomes):
    metrics = summarize(outcomes)
    assert metrics.accuracy is metrics.majority is metrics.majority_position is metrics.group is None
    assert metrics.coverage == (0 if outcomes else None)
    json.dumps(metrics.to_dict(), allow_nan=False)


def test_summary_as_json():
    outcomes = [choice([3, 1], 0, tags=("x",)), choice([2, 2], 0), grid([[2, 1], [1, 2]])]
    values = json.loads(json.dumps(summarize(outcomes).to_dict(), allow_nan=False))
    assert set(values["accuracy"]) == {"value", "low", "high", "chance", "queries"}
    assert values["accuracy"]["value"] == 0.75
    assert values["recall_at_5"] is None
    assert (values["ties"], values["coverage"], values["majority_position"]) == (1, 1, 0)
    assert values["by_tag"]["x"]["accuracy"]["queries"] == 1
    assert "by_tag" not in values["by_tag"]["x"]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: judge(query("lost", texts=2), np.zeros((1, 2))), "'lost' has no positive"),
        (lambda: judge(query(texts=3, positive=0), np.zeros((3, 1))), r"shape \(3, 1\).* 1 image\(s\) and 3 text"),
        (lambda: summarize([choice([1, 0])], level=95), "got 95"),
    ],
)
def test_what_makes_no_sense_is_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
