"""An image's features depend on the image, the draw and the model, and on nothing beside it."""

import numpy as np
import pytest

from diffsight import FeatureExtractor, load
from diffsight.backbones.cards import assets
from diffsight.features.noise import Noise
from diffsight.features.probe import FeatureProbe


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def photographs():
    return sorted((assets() / "samples").rglob("*.png"))[:48]


@pytest.fixture(scope="module")
def options(backbone):
    every = [layer.name for layer in backbone.layers]
    return {"layers": every, "timesteps": [30, 500], "noise": Noise(kind="mean", draws=2), "pool": 2}


@pytest.fixture(scope="module")
def reference(backbone, photographs, options):
    return FeatureExtractor(backbone, **options, batch_size=64).transform(photographs)


@pytest.mark.parametrize("batch_size", [1, 17, 256])
def test_batch_size(backbone, photographs, options, reference, batch_size):
    found = FeatureExtractor(backbone, **options, batch_size=batch_size).transform(photographs[:20])
    np.testing.assert_allclose(found, reference[:20], atol=1e-5)


def test_order_and_neighbours(backbone, photographs, options, reference):
    order = np.random.default_rng(0).permutation(len(photographs))[:20]
    found = FeatureExtractor(backbone, **options).transform([photographs[i] for i in order])
    np.testing.assert_allclose(found, reference[order], atol=1e-5)


def test_other_layers_and_timesteps(backbone, photographs, options, reference):
    alone = FeatureExtractor(backbone, **(options | {"layers": ["mid"], "timesteps": [500]}))
    columns = FeatureExtractor(backbone, **options).fit().columns_
    widths = [shape[0] * 4 for shape in (m.shape[2:] for m in alone.maps(photographs[:1]).values())]
    starts = np.cumsum(
        [0, *(256 if c.startswith(("enc.0", "enc.1", "enc.2", "dec.2", "dec.3")) else 512 for c in columns)]
    )
    start = starts[columns.index("mid@500")]
    assert widths == [512]
    np.testing.assert_allclose(alone.transform(photographs), reference[:, start : start + 512], atol=1e-5)


def test_interruption_and_cache(backbone, photographs, options, reference, tmp_path):
    extractor = FeatureExtractor(backbone, **options)
    cache = extractor.extract(photographs, out=tmp_path / "cache")
    columns = [cache.rows(name, np.arange(len(cache))).flatten(1).numpy() for name in cache.names]
    np.testing.assert_allclose(np.concatenate(columns, axis=1), reference, atol=1e-5)


def test_what_a_probe_says_of_an_image(backbone, photographs):
    labels = [path.parent.name for path in photographs]
    probe = FeatureProbe(FeatureExtractor(backbone, ["mid"], [30])).fit(photographs, labels)
    together = probe.decision_function(photographs)
    for position in (0, 17, 47):
        np.testing.assert_allclose(probe.decision_function(photographs[position]), together[[position]], atol=1e-4)
