import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.evaluation.metrics.reliability import reliability


def test_calibration_error_by_hand():
    # Two images at 0.95, one right, and two at 0.55, both right: (|0.5 - 0.95| + |1 - 0.55|) / 2.
    diagram = reliability(np.array([0.95, 0.95, 0.55, 0.55]), np.array([True, False, True, True]))
    assert diagram.error == pytest.approx(0.45)
    assert diagram.counts.tolist() == [0] * 8 + [2] + [0] * 5 + [2]
    assert np.isnan(diagram.accuracy[0])


def test_bins_contain_their_upper_end():
    diagram = reliability(np.array([0.0, 0.5, 0.50001, 1.0]), np.ones(4, bool), bins=2)
    assert diagram.counts.tolist() == [2, 2]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40))
def test_calibration_error_is_the_weighted_gap(images):
    confidence, correct = np.array([c for c, _ in images]), np.array([right for _, right in images])
    expected = 0.0
    for index in range(15):
        low, high = np.linspace(0, 1, 16)[index : index + 2]
        inside = ((confidence > low) | ((index == 0) & (confidence == 0))) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert reliability(confidence, correct).error == pytest.approx(expected, abs=1e-12)
