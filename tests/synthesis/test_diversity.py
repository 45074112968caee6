import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist

from diffsight.errors import InputError
from diffsight.synthesis import diversity


@pytest.fixture
def sides():
    rng = np.random.default_rng(0)
    return rng.normal(size=(40, 6)), rng.normal(size=(30, 6)) * 1.3 + 0.4


def test_vendi_counts_different_images():
    assert diversity.vendi_score(np.eye(7) * 3) == pytest.approx(7)
    assert diversity.vendi_score(np.ones((7, 4), np.float32)) == pytest.approx(1)
    assert diversity.vendi_score(np.eye(7)[[0, 0, 0, 1, 1, 1]]) == pytest.approx(2)


def test_vendi_is_the_entropy_of_the_kernel(sides):
    for features in (sides[0], sides[1].T):  # more images than features, and fewer
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(unit))
        eigenvalues = eigenvalues[eigenvalues > 1e-12]
        assert diversity.vendi_score(features) == pytest.approx(np.exp(-(eigenvalues * np.log(eigenvalues)).sum()))


def test_vendi_grows_with_the_number_of_images():
    features = np.random.default_rng(0).normal(size=(400, 200))
    scores = [diversity.vendi_score(features[:count]) for count in (50, 100, 200, 400)]
    assert scores == sorted(scores)
    assert scores[-1] > 3 * scores[0]


def test_mean_cosine(sides):
    unit = sides[0] / np.linalg.norm(sides[0], axis=1, keepdims=True)
    pairs = [unit[i] @ unit[j] for i in range(40) for j in range(40) if i != j]
    assert diversity.mean_cosine(sides[0]) == pytest.approx(np.mean(pairs))
    assert diversity.mean_cosine(np.ones((3, 2))) == pytest.approx(1)


def test_frechet_distance_is_that_of_the_moments(sides):
    real, generated = sides
    of_real, of_generated = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    shift = real.mean(axis=0) - generated.mean(axis=0)
    expected = shift @ shift + np.trace(of_real + of_generated - 2 * sqrtm(of_real @ of_generated).real)
    assert diversity.frechet_distance(real, generated) == pytest.approx(expected)
    assert diversity.frechet_distance(generated, real) == pytest.approx(expected)
    assert diversity.frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_known_gaussians():
    signs = np.array([[a, b] for a in (-1, 1) for b in (-1, 1)], float)  # covariance 4/3 of the unit matrix
    real, generated = signs * [1, 2], signs * [3, 5] + [10, 0]
    assert diversity.frechet_distance(real, generated) == pytest.approx(100 + 4 / 3 * ((3 - 1) ** 2 + (5 - 2) ** 2))


def test_frechet_distance_with_fewer_images_than_features():
    features = np.random.default_rng(0).normal(size=(5, 50))
    assert diversity.frechet_distance(features, features + 2) == pytest.approx(200)


def test_kernel_distance_is_an_unbiased_mmd(sides):
    real, generated = sides[0][:20], sides[1][:20]

    def kernel(x, y):
        return (x @ y / 6 + 1) ** 3

    pairs = [(i, j) for i in range(20) for j in range(20)]
    apart = [(i, j) for i, j in pairs if i != j]
    expected = np.mean([kernel(real[i], real[j]) for i, j in apart])
    expected += np.mean([kernel(generated[i], generated[j]) for i, j in apart])
    expected -= 2 * np.mean([kernel(real[i], generated[j]) for i, j in pairs])
    found = diversity.kernel_distance(real, generated)
    assert found.value == pytest.approx(expected)
    assert (found.sd, found.subsets, found.size) == (None, 1, 20)


def test_kernel_distance_over_subsets():
    rng = np.random.default_rng(1)
    same = diversity.kernel_distance(rng.normal(size=(600, 8)), rng.normal(size=(500, 8)), subsets=60, subset_size=100)
    other = diversity.kernel_distance(rng.normal(size=(600, 8)), rng.normal(size=(500, 8)) + 0.7, subset_size=100)
    assert (same.subsets, same.size, other.subsets) == (60, 100, 100)
    assert abs(same.value) < 0.02 < 0.2 < other.value
    assert same.sd is not None
    assert same.sd > 0


def test_neighbourhood_by_brute_force(sides, monkeypatch):
    monkeypatch.setattr(diversity, "_PAIRS", 100)  # many blocks
    real, generated = sides[0], np.concatenate([sides[1], sides[0][:4]])

    def balls(features, k):
        return np.sort(cdist(features, features), axis=1)[:, k]

    between = cdist(real, generated)
    found = diversity.neighbourhood(real, generated, k=4, precision_k=2)
    precision = [any(between[i, j] <= balls(real, 2)[i] for i in range(40)) for j in range(34)]
    recall = [any(between[i, j] <= balls(generated, 2)[j] for j in range(34)) for i in range(40)]
    within = between <= balls(real, 4)[:, None]
    assert found.precision == np.mean(precision)
    assert found.recall == np.mean(recall)
    assert found.density == pytest.approx(within.sum() / (4 * 34))
    assert found.coverage == within.any(axis=1).mean()
    assert diversity.neighbourhood(real, generated, k=2, precision_k=None).precision == found.precision


def test_neighbourhood_of_equal_and_of_distant_sets(sides):
    real = sides[0]
    same = diversity.neighbourhood(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = diversity.neighbourhood(real, real + 100)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diversity.vendi_score(np.zeros((0, 3))), "At least 1 images"),
        (lambda: diversity.vendi_score(np.eye(3)[[0, 1]] * [[1], [0]]), "features of image 1"),
        (lambda: diversity.mean_cosine(np.ones((1, 3))), "At least 2 images"),
        (lambda: diversity.frechet_distance(np.ones((3, 3)), np.ones((3, 4))), "from one network"),
        (lambda: diversity.frechet_distance(np.ones((3, 3)), np.full((3, 3), np.nan)), "generated image 0"),
        (lambda: diversity.kernel_distance(np.eye(3), np.eye(3), subset_size=1), "at least 2 images"),
        (lambda: diversity.neighbourhood(np.eye(3), np.eye(9)[:, :3]), "At least 6 real images"),
        (lambda: diversity.neighbourhood(np.eye(9), np.eye(9), k=0), "at least 1; got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
