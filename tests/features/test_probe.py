import json
import logging

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_score

from diffsight import load
from diffsight.backbones.cards import assets
from diffsight.errors import ImageError, InputError, ModelError
from diffsight.features.extractor import FeatureExtractor
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.specs import Linear
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool
from diffsight.features.probe import FeatureProbe


@pytest.fixture(scope="module")
def tiny():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def photographs():
    """The 100 sample photographs and the names of their folders."""
    files = sorted((assets() / "samples").rglob("*.png"))
    return files, np.array([file.parent.name for file in files])


@pytest.fixture(scope="module")
def halves(photographs):
    files, names = photographs
    train = np.arange(len(files)) % 10 < 6
    return (
        [f for f, t in zip(files, train, strict=True) if t],
        names[train],
        [f for f, t in zip(files, train, strict=True) if not t],
        names[~train],
    )


@pytest.mark.parametrize("head", ["logistic", "knn", "linear"])
def test_few_photographs_are_enough_to_learn_from(tiny, halves, head):
    train, labels, test, truth = halves
    probe = FeatureProbe(FeatureExtractor(tiny, ["mid"], [30], pool=2), head).fit(train, labels)
    # Six photographs of each of ten classes; guessing gives 10 %.
    assert probe.score(test, truth) >= 0.6
    probabilities = probe.predict_proba(test)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (probe.classes_[probabilities.argmax(axis=1)] == probe.predict(test)).all()


def test_an_image_is_recognised_the_same_alone(tiny, halves):
    train, labels, test, _ = halves
    probe = FeatureProbe(FeatureExtractor(tiny, ["mid"], [30])).fit(train, labels)
    together = probe.decision_function(test)
    np.testing.assert_allclose(probe.decision_function(test[5]), together[5:6], atol=1e-4)


def test_training_sees_the_views_and_recognition_does_not(tiny, halves):
    train, labels, test, _ = halves
    extractor = FeatureExtractor(tiny, ["mid"], [30], views=3, flip=False)
    recipe = Recipe(epochs=3)
    calls = []
    probe = FeatureProbe(extractor, "linear", recipe=recipe)
    probe.fit(train, labels, progress=lambda images, spent: calls.append(spent))
    assert calls[-1] == 3 * len(train)
    probe.logits(test, progress=lambda images, spent: calls.append(spent))
    assert calls[-1] == len(test)


def test_several_draws_are_averaged_in_recognition(tiny, halves):
    train, labels, test, _ = halves
    noise = Noise(kind="resample", draws=3)
    probe = FeatureProbe(FeatureExtractor(tiny, ["mid"], [500], noise=noise)).fit(train, labels)
    maps = FeatureExtractor(tiny, ["mid"], [500], noise=noise).maps(test[:4])["mid@500"]
    from diffsight.features.heads.columns import ArrayColumns

    each = [probe.head_.logits(ArrayColumns({"mid@500": maps[:, draw : draw + 1]})) for draw in range(3)]
    np.testing.assert_allclose(probe.logits(test[:4]), sum(each) / 3, atol=1e-4)


def test_the_cache_changes_nothing(tiny, halves, tmp_path, monkeypatch):
    train, labels, test, _ = halves
    extractor = FeatureExtractor(tiny, ["mid"], [30])
    in_memory = FeatureProbe(extractor).fit(train, labels)
    cached = FeatureProbe(extractor, root=tmp_path).fit(train, labels)
    np.testing.assert_allclose(cached.decision_function(test), in_memory.decision_function(test), atol=1e-4)
    monkeypatch.setattr(type(tiny), "predict", lambda *_: pytest.fail("the model was asked"))
    FeatureProbe(extractor, "knn", root=tmp_path).fit(train, labels)


def test_it_is_a_scikit_learn_classifier(tiny, halves):
    train, labels, _, _ = halves
    probe = FeatureProbe(FeatureExtractor(tiny, ["mid"], [30]), "knn")
    assert clone(probe).extractor.backbone is tiny
    scores = cross_val_score(probe, np.array([str(file) for file in train]), labels, cv=2)
    assert scores.mean() > 0.4
    pairs = [file for file, name in zip(train, labels, strict=True) if name in ("bag", "sandal")]
    two = FeatureProbe(FeatureExtractor(tiny, ["mid"], [30])).fit(pairs, [file.parent.name for file in pairs])
    assert two.decision_function(pairs).ndim == 1
    assert ((two.decision_function(pairs) > 0) == (two.predict(pairs) == two.classes_[1])).all()


@pytest.mark.parametrize("head", ["logistic", "knn", Linear(pool=1)])
def test_what_is_saved_predicts_the_same(tiny, halves, tmp_path, head):
    train, labels, test, _ = halves
    extractor = FeatureExtractor(tiny, ["b5", "dec.1"], [30, 80], pool=Pool("gem", 2), noise=Noise(seed=3))
    probe = FeatureProbe(extractor, head, recipe=Recipe(epochs=2)).fit(train, labels)
    probe.save(tmp_path / "probe")
    assert {file.suffix for file in (tmp_path / "probe").iterdir()} == {".json", ".safetensors"}
    for again in (FeatureProbe.load(tmp_path / "probe"), FeatureProbe.load(tmp_path / "probe", tiny)):
        np.testing.assert_allclose(again.decision_function(test), probe.decision_function(test), atol=1e-4)
        assert (again.predict(test) == probe.predict(test)).all()


def test_another_model_is_refused(tiny, sd, halves, tmp_path):
    train, labels, _, _ = halves
    FeatureProbe(FeatureExtractor(tiny, ["mid"], [30])).fit(train, labels).save(tmp_path / "probe")
    with pytest.raises(ModelError, match=r"trained on another model than .*its latents is"):
        FeatureProbe.load(tmp_path / "probe", sd)


def test_another_dtype_is_told(tiny, halves, tmp_path, caplog):
    train, labels, test, _ = halves
    probe = FeatureProbe(FeatureExtractor(tiny, ["mid"], [30])).fit(train, labels)
    probe.save(tmp_path / "probe")
    half = load("tiny-fashion", device="cpu", dtype="bf16")
    with caplog.at_level(logging.WARNING, "diffsight"):
        again = FeatureProbe.load(tmp_path / "probe", half)
    assert "trained in float32, and the model is now in bfloat16" in caplog.text
    assert (again.predict(test) == probe.predict(test)).mean() > 0.9


@pytest.mark.parametrize("damage", ["absent", "no json", "a list", "without layers", "huge"])
def test_a_damaged_probe_is_refused(tiny, halves, tmp_path, damage):
    train, labels, _, _ = halves
    FeatureProbe(FeatureExtractor(tiny, ["mid"], [30])).fit(train, labels).save(tmp_path / "probe")
    file = tmp_path / "probe" / "probe.json"
    record = json.loads(file.read_text())
    match damage:
        case "absent":
            file.unlink()
        case "no json":
            file.write_text("{")
        case "a list":
            file.write_text("[]")
        case "without layers":
            del record["layers"]
            file.write_text(json.dumps(record))
        case "huge":
            file.write_text(" " * 2_000_000)
    with pytest.raises(ModelError, match=r"probe"):
        FeatureProbe.load(tmp_path / "probe", tiny)


def test_wrong_input_is_named(tiny, halves, tmp_path):
    train, labels, _, _ = halves
    extractor = FeatureExtractor(tiny, ["mid"], [30])
    with pytest.raises(InputError, match="60 images and labels of shape"):
        FeatureProbe(extractor).fit(train, labels[:-1])
    with pytest.raises(InputError, match="class"):
        FeatureProbe(extractor).fit(train[:6], ["bag"] * 6)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"X\[2\].*broken.png"):
        FeatureProbe(extractor).fit([*train[:2], broken], ["a", "b", "a"])
    probe = FeatureProbe(extractor, root=tmp_path / "cache").fit(train, labels)
    with pytest.raises(ImageError, match=r"X\[1\].*broken.png"):
        probe.predict([train[0], broken])
    with pytest.raises(InputError, match=r"no layer 'dec\.9'"):
        FeatureProbe(FeatureExtractor(tiny, ["dec.9"])).fit(train, labels)


def test_a_probe_that_has_learnt_nothing_says_so(tiny, halves):
    with pytest.raises(NotFittedError):
        FeatureProbe(FeatureExtractor(tiny)).predict(halves[2][:1])


def test_grey_arrays_are_images_too(tiny):
    rng = np.random.default_rng(0)
    dark, light = (rng.integers(low, low + 100, (8, 28, 28), dtype=np.uint8) for low in (0, 150))
    probe = FeatureProbe(FeatureExtractor(tiny, ["mid"], [30])).fit(np.concatenate([dark, light]), [0] * 8 + [1] * 8)
    assert probe.predict([Image.fromarray(dark[0]), Image.fromarray(light[0])]).tolist() == [0, 1]
