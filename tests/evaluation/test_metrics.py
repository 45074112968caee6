import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from diffsight.errors import InputError
from diffsight.evaluation.metrics import cost, mean_per_class, reliability, summary, top_k, wilson


# Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (score without continuity correction).
@pytest.mark.parametrize(
    ("successes", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, total, low, high):
    estimate = wilson(successes, total)
    assert estimate.value == successes / total
    assert estimate.low == pytest.approx(low, abs=5e-5)
    assert estimate.high == pytest.approx(high, abs=5e-5)


def test_top_k_without_ties_is_that_of_sklearn():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 7)), rng.integers(0, 7, 200)
    for k in (1, 2, 5):
        assert top_k(scores, labels, k).mean() == top_k_accuracy_score(labels, scores, k=k, labels=range(7))


def test_top_k_decides_ties_against_the_label():
    scores = np.array([[3.0, 3.0, 1.0], [3.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    labels = np.array([0, 1, 2])
    assert top_k(scores, labels, 1).tolist() == [False, False, False]
    assert top_k(scores, labels, 2).tolist() == [True, False, False]
    assert top_k(scores, labels, 3).tolist() == [True, True, True]


def test_classes_that_were_never_scored_come_last():
    scores = np.array([[np.nan, -5.0, np.nan]])
    assert top_k(scores, np.array([1])).tolist() == [True]
    assert top_k(scores, np.array([0]), 2).tolist() == [False]


def test_mean_per_class_is_balanced_accuracy():
    rng = np.random.default_rng(1)
    labels = np.concatenate([np.zeros(50, int), np.full(20, 2), np.full(5, 3)])  # class 1 has no image
    predictions = rng.choice([0, 2, 3], 75)
    estimate = mean_per_class(predictions == labels, labels)
    assert estimate.value == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert estimate.low < estimate.value < estimate.high


def test_bootstrap_interval_is_that_of_resampling_by_hand():
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1, 2], [40, 30, 20])
    correct = rng.random(90) < np.array([0.9, 0.5, 0.3])[labels]
    means = [
        np.mean([rng.choice(correct[labels == c], (labels == c).sum()).mean() for c in range(3)]) for _ in range(1000)
    ]
    estimate = mean_per_class(correct, labels, resamples=20_000)
    assert [estimate.low, estimate.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.015)


def test_bootstrap_is_seeded():
    correct, labels = np.arange(60) % 7 > 1, np.arange(60) % 3
    first = mean_per_class(correct, labels)
    assert mean_per_class(correct, labels, seed=np.random.default_rng(0)) == first
    assert mean_per_class(correct, labels, seed=5) != first


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


def test_cost():
    assert cost(np.arange(1, 101)) == {"total": 5050, "mean": 50.5, "median": 50.5, "p95": pytest.approx(95.05)}
    assert cost(np.zeros(0, int)) == {"total": 0, "mean": 0.0, "median": 0.0, "p95": 0.0}


NAMES = ("cat", "dog", "cow", "pig", "hen", "fox")


def report(**changes):
    probabilities = np.full((5, 6), 0.02)
    probabilities[range(5), [0, 1, 1, 2, 3]] = 0.9
    values = {
        "labels": [0, 1, 0, 2, 3],
        "predictions": [0, 1, 1, 2, 3],
        "probabilities": probabilities,
        "ties": [False] * 5,
        "calls": [10, 10, 10, 10, 60],
        "failures": 0,
        "class_names": NAMES,
    } | changes
    result = summary(**values)
    json.dumps(result, allow_nan=False)
    return result


def test_summary():
    result = report()
    assert result["value"] == result["top1"]["value"] == 0.8
    assert result["mean_per_class"]["value"] == pytest.approx(3.5 / 4)
    assert result["top5"]["value"] == 0.8  # the label of the wrong image ties with four others for the second place
    assert result["coverage"] == 1
    assert result["calls"]["total"] == 100
    assert result["calls"]["median"] == 10
    assert result["per_class"][0] == {"name": "cat", "images": 2, "correct": 1}
    assert result["calibration"]["mean_confidence"] == pytest.approx(0.9)
    assert result["calibration"]["ece"] == pytest.approx(0.1)
    assert report(metric="mean_per_class")["value"] == result["mean_per_class"]["value"]


def test_failures_lower_coverage_and_not_accuracy():
    result = report(failures=15)
    assert result["top1"] == report()["top1"]
    assert (result["images"], result["scored"], result["failed"], result["coverage"]) == (20, 5, 15, 0.25)


def test_tie_is_wrong_whatever_was_predicted():
    result = report(ties=[True, False, False, False, False])
    assert result["ties"] == 1
    assert result["top1"]["value"] == 0.6
    assert result["per_class"][0]["correct"] == 0


def test_missing_prediction_is_wrong():
    assert report(predictions=[None, 1, 1, 2, 3])["top1"]["value"] == 0.6


def test_images_without_label_have_no_part_in_accuracy():
    result = report(labels=[None, 1, 0, 2, None])
    assert result["labelled"] == 3
    assert result["top1"]["value"] == pytest.approx(2 / 3)
    assert result["coverage"] == 1
    nothing = report(labels=[None] * 5)
    assert nothing["value"] is nothing["top1"] is nothing["calibration"] is None
    assert nothing["calls"]["total"] == 100


def test_all_images_failed():
    result = report(labels=[], predictions=[], probabilities=np.zeros((0, 6)), ties=[], calls=[], failures=3)
    assert result["value"] is None
    assert result["coverage"] == 0


def test_few_classes_have_no_top5():
    assert report(class_names=NAMES[:5], probabilities=None)["top5"] is None
    assert report(probabilities=None)["calibration"] is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"predictions": [0, 1]}, "5 labels but 2 predictions"),
        ({"labels": [0, 1, 0, 2, 6]}, "label of image 4 is 6"),
        ({"predictions": [0, 1, -3, 2, 3]}, "prediction of image 2 is -3"),
        ({"probabilities": np.full((5, 4), 0.25)}, "6 classes"),
        ({"probabilities": np.full((5, 6), 0.1)}, "probabilities of image 0"),
        ({"probabilities": np.full((5, 6), np.nan)}, "probabilities of image 0"),
    ],
)
def test_impossible_tables_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        report(**changes)
