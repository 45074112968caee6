import numpy as np
import pytest

from diffsight.evaluation.metrics.cost import cost, speed


def test_cost():
    assert cost(np.arange(1, 101)) == {"total": 5050, "mean": 50.5, "median": 50.5, "p95": pytest.approx(95.05)}
    assert cost(np.zeros(0, int)) == {"total": 0, "mean": 0.0, "median": 0.0, "p95": 0.0}


def test_time_of_an_image():
    assert speed(3.0, 6, "cpu") == {"seconds": 3.0, "seconds_per_image": 0.5, "with_reading": 2.0, "device": "cpu"}


@pytest.mark.parametrize(("seconds", "images"), [(None, 6), (0.0, 6), (3.0, 0)])
def test_what_was_not_measured_has_no_time(seconds, images):
    found = speed(seconds, images, "cpu")
    assert found["seconds_per_image"] is found["with_reading"] is None
    assert found["seconds"] == seconds
