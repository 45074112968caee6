import logging

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from diffsight.errors import InputError
from diffsight.features.heads.columns import ArrayColumns
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.logistic import FALLBACK, GRID, Logistic, fit_logistic, hold_out


@pytest.fixture(scope="module")
def digits():
    """Standardised digits: features and labels to train on, and to test on."""
    images, labels = load_digits(return_X_y=True)
    scaler = StandardScaler().fit(images[:500])
    return scaler.transform(images[:500]), labels[:500], scaler.transform(images[500:]), labels[500:]


def accuracy(solution, features, labels):
    return ((features @ solution.coefficients.T + solution.intercepts).argmax(axis=1) == labels).mean()


def test_the_grid_is_that_of_dinov2():
    assert len(GRID) == 45
    assert (GRID[0], GRID[-1]) == (1e-6, 1e5)
    assert min(GRID, key=lambda C: abs(np.log(C))) == FALLBACK


def test_it_is_scikit_learns_regression(digits):
    features, labels, _, _ = digits
    solution = fit_logistic(features.astype(np.float32), labels, num_classes=10, C=0.1)
    oracle = LogisticRegression(C=0.1, max_iter=1000).fit(features.astype(np.float32).astype(np.float64), labels)
    np.testing.assert_allclose(solution.coefficients, oracle.coef_)
    np.testing.assert_allclose(solution.intercepts, oracle.intercept_)
    assert solution.converged
    assert solution.trials == ()


def test_two_classes_have_one_row_each(digits):
    features, labels, _, _ = digits
    pair = labels < 2
    solution = fit_logistic(features[pair], labels[pair], num_classes=2, C=1.0)
    oracle = LogisticRegression(C=1.0, max_iter=1000).fit(features[pair], labels[pair])
    logits = features[pair] @ solution.coefficients.T + solution.intercepts
    assert solution.coefficients.shape == (2, 64)
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], oracle.decision_function(features[pair]))


def test_the_search_finds_a_good_strength_and_refits_on_all(digits):
    features, labels, test_features, test_labels = digits
    solution = fit_logistic(features, labels, num_classes=10)
    assert solution.C in GRID
    tried = [C for C, _ in solution.trials]
    assert tried == sorted(tried)
    assert len(tried) <= 14
    assert dict(solution.trials)[solution.C] == max(dict(solution.trials).values())
    # The grid around the peak is complete.
    peak = GRID.index(solution.C)
    assert {GRID[peak - 1], GRID[peak + 1]} <= set(tried)
    again = fit_logistic(features, labels, num_classes=10, C=solution.C)
    np.testing.assert_array_equal(solution.coefficients, again.coefficients)
    every = [
        accuracy(fit_logistic(features, labels, num_classes=10, C=C), test_features, test_labels) for C in GRID[::6]
    ]
    assert accuracy(solution, test_features, test_labels) > max(every) - 0.02


def test_the_same_seed_gives_the_same_solution(digits):
    features, labels, _, _ = digits
    first, again = (fit_logistic(features, labels, num_classes=10, seed=3) for _ in range(2))
    assert (first.C, first.trials) == (again.C, again.trials)
    np.testing.assert_array_equal(first.coefficients, again.coefficients)


def test_a_tenth_of_each_class_is_held_out_and_no_class_is_lost():
    labels = np.repeat([0, 1, 2, 3, 4], [100, 25, 4, 2, 1])
    held = hold_out(labels, seed=0)
    assert np.bincount(labels[held], minlength=5).tolist() == [10, 2, 1, 1, 0]
    assert not np.array_equal(held, hold_out(labels, seed=1))
    assert np.array_equal(held, hold_out(labels, seed=0))


def test_a_class_with_one_example_is_fitted_all_the_same(digits):
    features, labels, _, _ = digits
    keep = np.concatenate([np.flatnonzero(labels < 3), np.flatnonzero(labels == 3)[:1]])
    solution = fit_logistic(features[keep], labels[keep], num_classes=4)
    assert solution.trials
    assert solution.coefficients.shape == (4, 64)


def test_with_one_example_of_each_class_the_strength_is_the_documented_one(digits):
    features, labels, _, _ = digits
    ones = np.array([np.flatnonzero(labels == label)[0] for label in range(10)])
    solution = fit_logistic(features[ones], labels[ones], num_classes=10)
    assert solution.C == FALLBACK
    assert solution.trials == ()
    assert accuracy(solution, features[ones], labels[ones]) == 1


def test_running_out_of_steps_is_recorded_and_logged(digits, caplog):
    features, labels, _, _ = digits
    assert not fit_logistic(features, labels, num_classes=10, C=1e4, max_iter=2).converged
    columns = ArrayColumns({"x": features[:, None, :, None, None]})
    with caplog.at_level(logging.WARNING):
        fit_head(columns, labels, Logistic(C=1e4, max_iter=2), device="cpu")
    assert "after 2 steps" in caplog.text


def test_a_class_without_examples_is_refused(digits):
    features, labels, _, _ = digits
    with pytest.raises(InputError, match=r"classes \[10, 11\] have none"):
        fit_logistic(features, labels, num_classes=12)


def test_the_head_is_the_regression_on_standardised_pooled_means(digits):
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=60)
    maps = rng.standard_normal((60, 2, 5, 4, 4)) * [[[[3]], [[1]], [[10]], [[1]], [[0.1]]]] + 7
    maps[np.arange(60), :, labels] += 5
    head = fit_head(ArrayColumns({"x": maps}), labels, Logistic(C=0.3, pool=2), device="cpu")
    scaled = (maps - maps.mean(axis=(0, 1, 3, 4))[:, None, None]) / maps.std(axis=(0, 1, 3, 4))[:, None, None]
    vectors = scaled.mean(axis=1).reshape(60, 5, 2, 2, 2, 2).mean(axis=(3, 5)).reshape(60, -1)
    oracle = LogisticRegression(C=0.3, max_iter=1000).fit(vectors, labels)
    np.testing.assert_allclose(head.probabilities(ArrayColumns({"x": maps})), oracle.predict_proba(vectors), atol=1e-3)
    assert head.num_parameters == 3 * 20 + 3
    one_view = head.logits(ArrayColumns({"x": maps[:, :1]})) + head.logits(ArrayColumns({"x": maps[:, 1:]}))
    np.testing.assert_allclose(head.logits(ArrayColumns({"x": maps})), one_view / 2, atol=1e-4)


@pytest.mark.parametrize("options", [{"C": 0.0}, {"C": float("inf")}, {"max_iter": 0}, {"pool": -1}], ids=str)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match=r"above 0|at least 1"):
        Logistic(**options)
