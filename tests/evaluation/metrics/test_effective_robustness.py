import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from scipy.stats import linregress

from diffsight.errors import InputError
from diffsight.evaluation.metrics.effective_robustness import ShiftResult, Trend, effective_robustness, fit_trend


def model(name, accuracy, shifted, images=10_000):
    return ShiftResult(
        name=name,
        correct=round(accuracy * images),
        images=images,
        shifted_correct=round(shifted * images),
        shifted_images=images,
    )


def test_line_by_hand():
    # Odds 1, 4 and 9 fall to a quarter: slope 1, intercept -ln 4. A model with odds 3/2 should have odds 3/8 = 0.2727.
    line = [model("a", 0.5, 0.2), model("b", 0.8, 0.5), model("c", 0.9, 9 / 13, 13_000)]
    trend = fit_trend(line)
    assert trend.slope == pytest.approx(1, abs=1e-3)
    assert trend.intercept == pytest.approx(-np.log(4), abs=1e-3)
    assert trend.predict(0.6) == pytest.approx(3 / 11, abs=1e-3)
    found = effective_robustness(model("new", 0.6, 0.4), line)
    assert found.predicted == pytest.approx(3 / 11, abs=1e-3)
    assert found.robustness.value == pytest.approx(0.4 - 3 / 11, abs=1e-3)
    assert found.robustness.low > 0.1


def test_a_published_line_is_taken_as_it_is():
    # By hand from eq. 1 of 2007.00644 with logit: 76.13 % has the logit 1.1597; 1.0709 * 1.1597 - 2.3701 = -1.1282.
    trend = Trend(slope=1.0709, intercept=-2.3701)
    found = effective_robustness(model("resnet50", 0.7613, 0.2409), trend)
    assert found.predicted == pytest.approx(1 / (1 + np.exp(1.1282)), abs=1e-4)
    assert found.robustness.value == pytest.approx(0.2409 - 0.2445, abs=2e-4)
    assert found.robustness.low < 0 < found.robustness.high
    assert json.dumps(found.to_dict(), allow_nan=False)


def test_the_fit_is_that_of_scipy():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.3, 0.9, 12)
    second = expit(0.9 * logit(first) - 0.7 + rng.normal(0, 0.1, 12))
    line = [model(str(index), *pair) for index, pair in enumerate(zip(first, second, strict=True))]
    x, y = np.array([m.accuracy for m in line]), np.array([m.shifted_accuracy for m in line])
    reference = linregress(logit(x), logit(y))
    trend = fit_trend(line)
    assert (trend.slope, trend.intercept) == pytest.approx((reference.slope, reference.intercept))
    apart = y - expit(reference.slope * logit(x) + reference.intercept)
    assert trend.spread == pytest.approx(np.sqrt((apart**2).sum() / 10))
    straight = fit_trend(line, scale="linear")
    assert straight.slope == pytest.approx(linregress(x, y).slope)
    assert fit_trend(line, scale="probit").predict(0.6) == pytest.approx(trend.predict(0.6), abs=0.02)


def test_interval_has_the_width_of_the_counts():
    # With an exact line of slope 0 only the model's own shifted accuracy varies: 1.96 sqrt(0.4 * 0.6 / 500).
    flat = Trend(slope=0.0, intercept=0.0)
    found = effective_robustness(model("x", 0.7, 0.4, 500), flat).robustness
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * (0.4 * 0.6 / 500) ** 0.5, rel=0.06)
    few = [model("a", 0.5, 0.2, 60), model("b", 0.8, 0.5, 60)]
    many = [model("a", 0.5, 0.2, 6000), model("b", 0.8, 0.5, 6000)]
    widths = [
        np.ptp([e.low, e.high])
        for e in (effective_robustness(model("x", 0.6, 0.3), line).robustness for line in (few, many))
    ]
    assert widths[0] > 3 * widths[1]


def test_interval_covers_the_truth():
    rng, inside = np.random.default_rng(1), 0
    truth = [(0.5, 0.2), (0.7, 0.37), (0.8, 0.5), (0.9, 9 / 13)]
    for trial in range(60):
        line = [
            ShiftResult(
                name=str(index),
                correct=int(rng.binomial(400, a)),
                images=400,
                shifted_correct=int(rng.binomial(400, b)),
                shifted_images=400,
            )
            for index, (a, b) in enumerate([*truth, (0.6, 0.4)])
        ]
        found = effective_robustness(line[-1], line[:-1], seed=trial, resamples=400).robustness
        inside += found.low <= 0.4 - 3 / 11 <= found.high
    assert inside >= 52


@given(st.integers(0, 20), st.integers(0, 20))
def test_extreme_counts_have_finite_results(right, shifted):
    line = [model("a", 0.0, 0.0, 20), model("b", 1.0, 1.0, 20), model("c", 0.5, 0.3, 20)]
    mine = ShiftResult(name="x", correct=right, images=20, shifted_correct=shifted, shifted_images=20)
    found = effective_robustness(mine, line, resamples=50).robustness
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_what_makes_no_sense_is_refused():
    a, b = model("a", 0.5, 0.2), model("b", 0.8, 0.5)
    with pytest.raises(InputError, match="at least two"):
        fit_trend([a])
    with pytest.raises(InputError, match="no line goes through"):
        fit_trend([a, model("c", 0.5, 0.9)])
    with pytest.raises(InputError, match="Unknown scale 'logits'"):
        fit_trend([a, b], scale="logits")
    with pytest.raises(InputError, match="a is one of the reference models"):
        effective_robustness(a, [a, b])
    with pytest.raises(InputError, match="12 right answers of 10"):
        ShiftResult(name="x", correct=12, images=10, shifted_correct=0, shifted_images=10)
