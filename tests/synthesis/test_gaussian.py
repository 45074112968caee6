import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from diffsight.errors import InputError
from diffsight.synthesis.gaussian import GaussianClassifier


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    labels = np.repeat(["cat", "dog", "bird"], [30, 40, 50])
    centres = {"cat": 0.0, "dog": 1.0, "bird": -1.2}
    mixing = rng.normal(size=(5, 5))
    features = np.stack([rng.normal(size=5) @ mixing + centres[label] for label in labels])
    return features, labels, rng.normal(size=(25, 5)) * 2


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
@pytest.mark.parametrize("priors", ["uniform", "frequencies"])
def test_with_a_shared_covariance_it_is_linear_discriminant_analysis(data, shrinkage, priors):
    features, labels, new = data
    found = GaussianClassifier(shrinkage=shrinkage, priors=priors).fit(features, labels)
    weights = np.array([50, 30, 40]) / 120  # scikit-learn pools the covariances of the classes by their priors
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=weights).fit(features, labels)
    given = oracle.predict_proba(new) / (1 if priors == "frequencies" else weights)
    assert found.classes_.tolist() == oracle.classes_.tolist()
    np.testing.assert_allclose(found.predict_proba(new), given / given.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_with_a_covariance_of_each_class_it_is_bayes_rule(data, shrinkage):
    features, labels, new = data
    found = GaussianClassifier(covariance="per-class", shrinkage=shrinkage).fit(features, labels)
    densities = []
    for name in ("bird", "cat", "dog"):
        covariance = np.cov(features[labels == name], rowvar=False, bias=True)
        covariance = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / 5 * np.eye(5)
        densities.append(multivariate_normal(features[labels == name].mean(axis=0), covariance).pdf(new))
    expected = np.stack(densities, axis=1)
    np.testing.assert_allclose(found.predict_proba(new), expected / expected.sum(axis=1, keepdims=True), rtol=1e-6)
    assert found.predict(new).tolist() == found.classes_[expected.argmax(axis=1)].tolist()


@pytest.mark.parametrize("covariance", ["shared", "per-class"])
def test_more_features_than_images_are_shrunk_by_formula(covariance):
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(8, 60)), rng.normal(size=(8, 60)) + 1.5])
    labels = np.repeat([0, 1], 8)
    found = GaussianClassifier(covariance=covariance).fit(features, labels)
    assert (found.shrinkage_ > 0.3).all()
    assert found.score(rng.normal(size=(20, 60)) + 1.5, np.ones(20)) == 1
    with pytest.raises(InputError, match="singular with the shrinkage 0"):
        GaussianClassifier(covariance=covariance, shrinkage=0).fit(features, labels)


def test_it_is_an_estimator(data):
    features, labels, new = data
    found = clone(GaussianClassifier(covariance="per-class")).fit(features, labels)
    assert found.predict_proba(new).sum(axis=1) == pytest.approx(1)
    assert found.get_params() == {"covariance": "per-class", "shrinkage": None, "priors": "uniform"}


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({"covariance": "tied"}, {}, "Unknown covariance 'tied'"),
        ({"shrinkage": 2.0}, {}, "shrinkage is from 0 to 1"),
        ({"priors": "even"}, {}, "'uniform' or 'frequencies'"),
        ({}, {"labels": ["cat"] * 120}, "at least two classes"),
        ({}, {"labels": ["dog"] + ["cat"] * 119}, "'dog'.* has a single image"),
        ({}, {"labels": ["cat"]}, "120 images and labels"),
        ({}, {"features": np.full((120, 2), np.inf)}, "image 0 are not finite"),
    ],
)
def test_what_makes_no_sense_is_refused(data, options, change, message):
    features, labels, _ = data
    with pytest.raises(InputError, match=message):
        GaussianClassifier(**options).fit(change.get("features", features), change.get("labels", labels))


def test_it_has_to_be_fitted_and_to_the_same_features(data):
    features, labels, _ = data
    with pytest.raises(InputError, match="call fit first"):
        GaussianClassifier().predict(features)
    with pytest.raises(InputError, match="4 features; it was fitted to 5"):
        GaussianClassifier().fit(features, labels).predict(features[:, :4])
