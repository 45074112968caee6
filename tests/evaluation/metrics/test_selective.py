import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.evaluation.metrics.selective import aurc, risk_coverage, selective_accuracy, selective_summary

CONFIDENCE = np.array([0.5, 0.9, 0.8, 0.6])
CORRECT = np.array([True, True, False, True])


def test_curve_by_hand():
    # From the surest: right, wrong, right, right. Risks 0, 1/2, 1/3, 1/4; the best order has 0, 0, 0, 1/4.
    curve = risk_coverage(CONFIDENCE, CORRECT)
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    assert curve.risk == pytest.approx([0, 1 / 2, 1 / 3, 1 / 4])
    assert curve.area == pytest.approx(13 / 48)
    assert curve.best_area == pytest.approx(1 / 16)
    assert curve.excess == pytest.approx(10 / 48)


def test_best_area_is_near_its_limit():
    # Geifman et al. 2019 (1805.08206), eq. 2: r + (1 - r) ln(1 - r) for an error rate r and many images.
    correct = np.arange(20_000) >= 4_000
    curve = risk_coverage(correct.astype(float), correct)
    assert curve.area == pytest.approx(0.2 + 0.8 * np.log(0.8), abs=1e-3)
    assert curve.excess == pytest.approx(0, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=9), st.randoms())
def test_ties_count_with_their_mean_and_the_order_of_images_does_not(images, random):
    confidence = np.array([c / 4 for c, _ in images])
    correct = np.array([right for _, right in images])
    shuffled = list(range(len(images)))
    random.shuffle(shuffled)
    curve = risk_coverage(confidence, correct)
    assert risk_coverage(confidence[shuffled], correct[shuffled]).risk == pytest.approx(curve.risk)
    assert curve.risk[-1] == pytest.approx(1 - correct.mean())
    assert curve.best_area - 1e-12 <= curve.area
    for k in range(1, len(images) + 1):
        if k == len(images) or np.sort(-confidence)[k - 1] < np.sort(-confidence)[k]:  # no tie is cut
            surest = np.argsort(-confidence, kind="stable")[:k]
            assert curve.risk[k - 1] == pytest.approx(1 - correct[surest].mean())


def test_one_confidence_for_all_is_no_order():
    curve = risk_coverage(np.full(10, 0.3), np.arange(10) < 7)
    assert curve.risk == pytest.approx(np.full(10, 0.3))


def test_failures_are_never_covered():
    curve = risk_coverage(CONFIDENCE, CORRECT, failures=4)
    assert curve.coverage.tolist() == [0.125, 0.25, 0.375, 0.5]
    assert curve.area == risk_coverage(CONFIDENCE, CORRECT).area


def test_selective_accuracy_is_that_of_the_surest():
    assert selective_accuracy(CONFIDENCE, CORRECT, 0.5).value == 0.5
    assert selective_accuracy(CONFIDENCE, CORRECT, 0.51).value == pytest.approx(2 / 3)
    whole = selective_accuracy(CONFIDENCE, CORRECT, 1)
    assert (whole.low, whole.high) == pytest.approx((wilson(3, 4).low, wilson(3, 4).high))


def test_interval_of_the_area():
    rng = np.random.default_rng(0)
    confidence = rng.random(400).round(2)
    correct = rng.random(400) < confidence
    found = aurc(confidence, correct)
    spread = np.std(
        [risk_coverage(confidence[i], correct[i]).area for i in (rng.integers(0, 400, 400) for _ in range(400))]
    )
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert aurc(confidence, correct) == found


def test_summary_is_json():
    found = json.loads(json.dumps(selective_summary(CONFIDENCE, CORRECT), allow_nan=False))
    assert [each["coverage"] for each in found["accuracy_at"]] == [0.5, 0.8, 0.9, 0.95]
    assert found["excess"] == pytest.approx(10 / 48)


@pytest.mark.parametrize(
    ("confidence", "correct", "says"),
    [
        ([], [], "at least one"),
        ([0.5], [True, False], "one confidence"),
        ([0.5, np.nan], [True, True], "image 1 is NaN"),
    ],
)
def test_what_makes_no_sense_is_refused(confidence, correct, says):
    with pytest.raises(InputError, match=says):
        risk_coverage(np.array(confidence, float), np.array(correct, bool))


@pytest.mark.parametrize("coverage", [0.0, 1.1])
def test_coverage_is_a_share(coverage):
    with pytest.raises(InputError, match="coverage"):
        selective_accuracy(CONFIDENCE, CORRECT, coverage)


def test_failures_are_a_number():
    with pytest.raises(InputError, match="failures"):
        risk_coverage(CONFIDENCE, CORRECT, failures=-1)
