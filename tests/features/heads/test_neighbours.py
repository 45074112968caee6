import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from diffsight.errors import InputError
from diffsight.features.heads import neighbours
from diffsight.features.heads.columns import ArrayColumns
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.neighbours import Neighbours, find_neighbours, vote

CLASSES = 4


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    references = rng.standard_normal((150, 12)).astype(np.float32) * rng.uniform(0.1, 30, (150, 1)).astype(np.float32)
    queries = rng.standard_normal((37, 12)).astype(np.float32)
    return references, rng.integers(CLASSES, size=150), queries


def probabilities(references, labels, queries, **options):
    return vote(
        torch.from_numpy(queries),
        torch.from_numpy(references),
        torch.from_numpy(labels),
        num_classes=CLASSES,
        **options,
    ).numpy()


@pytest.mark.parametrize("k", [1, 10, 150])
def test_votes_are_those_of_scikit_learn(data, k):
    references, labels, queries = data

    def weights(distances):
        return np.exp((1 - distances) / 0.07)

    oracle = KNeighborsClassifier(k, metric="cosine", weights=weights, algorithm="brute").fit(references, labels)
    np.testing.assert_allclose(probabilities(*data, k=k), oracle.predict_proba(queries), atol=1e-5)


def test_votes_are_those_of_the_definition(data):
    references, labels, queries = (array.astype(np.float64) for array in data)
    cosines = queries @ references.T / np.linalg.norm(references, axis=1) / np.linalg.norm(queries, axis=1)[:, None]
    expected = np.zeros((len(queries), CLASSES))
    for row, order in enumerate(np.argsort(-cosines, axis=1)[:, :7]):
        shares = np.exp(cosines[row, order] / 0.2)
        np.add.at(expected[row], labels[order].astype(int), shares / shares.sum())
    np.testing.assert_allclose(probabilities(*data, k=7, temperature=0.2), expected, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 7, 149, 1000])
def test_neighbours_do_not_depend_on_chunks(data, chunk):
    references, _, queries = (torch.from_numpy(array) for array in data)
    expected = find_neighbours(queries, references, k=20)
    cosines, index = find_neighbours(queries, references, k=20, chunk=chunk)
    torch.testing.assert_close(cosines, expected[0])
    assert torch.equal(index, expected[1])
    assert (cosines.diff(dim=1) <= 0).all()


def test_queries_are_looked_at_in_chunks(data, monkeypatch):
    expected = probabilities(*data, k=9)
    monkeypatch.setattr(neighbours, "_QUERIES", 5)
    np.testing.assert_allclose(probabilities(*data, k=9), expected, atol=1e-6)


def test_references_may_be_memory_mapped(data, tmp_path):
    references, labels, queries = data
    np.save(tmp_path / "references.npy", references.astype(np.float16))
    mapped = np.load(tmp_path / "references.npy", mmap_mode="r")
    cosines, index = find_neighbours(torch.from_numpy(queries), mapped, k=5, chunk=40)
    expected = find_neighbours(torch.from_numpy(queries), torch.from_numpy(references), k=5)
    torch.testing.assert_close(cosines, expected[0], atol=2e-3, rtol=0)
    assert (index == expected[1]).float().mean() > 0.95
    assert labels[index.numpy()].shape == (37, 5)


def test_with_fewer_references_than_k_all_of_them_vote(data):
    references, labels, queries = data
    few = probabilities(references[:3], labels[:3], queries, k=20)
    np.testing.assert_allclose(few.sum(axis=1), 1, atol=1e-6)
    absent = np.setdiff1d(np.arange(CLASSES), labels[:3])
    assert not few[:, absent].any()


def test_length_does_not_matter_and_a_vector_without_any_is_far_from_all(data):
    references, labels, queries = data
    np.testing.assert_allclose(probabilities(references, labels, 1e3 * queries), probabilities(*data), atol=1e-5)
    cosines, _ = find_neighbours(torch.zeros(1, 12), torch.from_numpy(references), k=3)
    assert not cosines.any()


def test_the_head_keeps_the_mean_of_all_views_unscaled():
    rng = np.random.default_rng(1)
    maps = rng.standard_normal((30, 3, 4, 2, 2)).astype(np.float32)
    labels = rng.integers(3, size=30)
    columns = ArrayColumns({"a": maps, "b": maps[:, :, :2] + 1})
    head = fit_head(columns, labels, Neighbours(k=5, pool=1), device="cpu")
    vectors = np.concatenate([array.mean(axis=(1, 3, 4)) for array in (maps, maps[:, :, :2] + 1)], axis=1)
    np.testing.assert_allclose(head.network.references, vectors, atol=1e-6)
    torch_vectors = torch.from_numpy(vectors)
    expected = vote(torch_vectors, torch_vectors, torch.from_numpy(labels), num_classes=3, k=5)
    torch.testing.assert_close(head.probabilities(columns), expected, atol=1e-5, rtol=1e-5)
    assert head.logits(columns).isfinite().all()
    assert head.num_parameters == 0
    assert head.scaling == {}


def test_digits_are_recognised_without_training():
    images, labels = load_digits(return_X_y=True)
    maps = images.reshape(-1, 1, 64, 1, 1)
    head = fit_head(ArrayColumns({"x": maps[:1000]}), labels[:1000], Neighbours(k=10), device="cpu")
    right = head.logits(ArrayColumns({"x": maps[1000:]})).argmax(dim=1).numpy() == labels[1000:]
    oracle = KNeighborsClassifier(10, metric="cosine").fit(images[:1000], labels[:1000])
    assert right.mean() == pytest.approx(oracle.score(images[1000:], labels[1000:]), abs=0.02)


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"pool": 0}, {"temperature": -1.0}, {"temperature": float("nan")}], ids=str
)
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InputError, match=r"at least 1|more than 0"):
        Neighbours(**options)
