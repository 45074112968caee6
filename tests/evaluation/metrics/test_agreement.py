import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.errors import InputError
from diffsight.evaluation.metrics.agreement import rank_agreement


def agree(first, second, **options):
    return rank_agreement(np.array(first, float), np.array(second, float), **options)


def test_by_hand():
    # Of ten pairs two are swapped: (8 - 2) / 10. Four ranks differ by 1: 1 - 6 * 4 / (5 * 24).
    found = agree([1, 2, 3, 4, 5], [2, 1, 4, 3, 5])
    assert found.kendall.value == pytest.approx(0.6)
    assert found.spearman.value == pytest.approx(0.8)
    assert found.items == 5


def test_ties_by_hand():
    # Five of six pairs differ in both, all alike; one is tied in the first: 5 / sqrt(5 * 6).
    assert agree([1, 1, 2, 3], [1, 2, 3, 4]).kendall.value == pytest.approx(5 / 30**0.5)


def test_exact_p_value():
    # The same order of five has one chance in 5!, and so has the reverse.
    assert agree(range(5), range(5)).kendall_p == pytest.approx(2 / 120)


def test_interval_by_hand():
    # Bonett & Wright 2000: tanh(artanh(0.6) ± 1.96 sqrt(0.437 / 6)) and tanh(artanh(r) ± 1.96 sqrt((1 + r²/2) / 7)).
    first, second = np.arange(10), np.array([0, 1, 2, 9, 8, 3, 4, 5, 6, 7])
    found = agree(first, second)
    assert found.kendall.value == pytest.approx((34 - 11) / 45)
    middle, half = np.arctanh(23 / 45), 1.959964 * (0.437 / 6) ** 0.5
    assert [found.kendall.low, found.kendall.high] == pytest.approx(np.tanh([middle - half, middle + half]))
    rho = 1 - 6 * (36 + 16 + 5 * 4) / (10 * 99)
    middle, half = np.arctanh(rho), 1.959964 * ((1 + rho**2 / 2) / 7) ** 0.5
    assert [found.spearman.low, found.spearman.high] == pytest.approx(np.tanh([middle - half, middle + half]))


def test_perfect_agreement_of_a_few_is_not_certain():
    found = agree(range(6), range(6))
    assert [found.kendall.value, found.kendall.high] == pytest.approx([1, 1])
    assert found.kendall.low < 0.9
    assert agree([1, 2, 3], [1, 2, 3]).kendall.low == -1
    json.dumps(found.to_dict(), allow_nan=False)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_reversing_one_ranking_turns_the_sign(pairs):
    first, second = (np.array(column, float) for column in zip(*pairs, strict=True))
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return
    found, turned, swapped = agree(first, second), agree(first, -second), agree(second, first)
    for name in ("kendall", "spearman"):
        mine, other = getattr(found, name), getattr(turned, name)
        assert other.value == pytest.approx(-mine.value, abs=1e-12)
        assert other.low == pytest.approx(-mine.high, abs=1e-9)
        assert mine.low <= mine.value <= mine.high
        assert getattr(swapped, name).value == pytest.approx(mine.value, abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        ([1, 2], [1], "got 2 and 1"),
        ([1], [1], "at least two"),
        ([1, np.nan], [1, 2], "Value 1 of the first"),
        ([1, 2], [3, 3], "All values of the second"),
    ],
)
def test_what_cannot_be_ranked_is_refused(first, second, says):
    with pytest.raises(InputError, match=says):
        agree(first, second)
