import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from diffsight.evaluation.metrics.accuracy import mean_per_class, top_k, wilson


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
