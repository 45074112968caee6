import json

import numpy as np
import pytest
import torch
from digit_folders import NAMES, write_photographs

from diffsight.data.sources import open_source
from diffsight.errors import ImageError, InputError, ModelError, NumericsError
from diffsight.synthesis.networks import build_network, plan_network
from diffsight.synthesis.preprocessing import Normalised, Preprocessing
from diffsight.synthesis.trained import TrainedClassifier


def untrained(name="test_resnet", size=16, **options):
    how = Preprocessing(size=size, scale=size)
    plan = plan_network(name, 3, size)
    network = Normalised(build_network(plan), how.mean, how.std)
    return TrainedClassifier(
        plan=plan, network=network, preprocessing=how, class_names=NAMES, protocol="zero-shot", **options
    )


@pytest.fixture
def model():
    return untrained(notes={"seed": 3})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_source(f"folder:{write_photographs(tmp_path_factory.mktemp('images') / 'set', 8)}")


def test_names_and_probabilities(model, images):
    probabilities = model.predict_proba(images)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert model.predict(images).tolist() == model.classes_[probabilities.argmax(axis=1)].tolist()
    assert model.predict(images[0].load()).shape == (1,)
    np.testing.assert_allclose(model.logits(images, batch_size=5), model.logits(images), atol=1e-5)


def test_a_network_is_always_evaluated(images):
    model = untrained("test_efficientnet", size=32)
    expected = model.predict_proba(images)
    model.network.train()
    np.testing.assert_array_equal(model.predict_proba(images), expected)
    state = {key: value.clone() for key, value in model.network.state_dict().items()}
    model.network.train()
    model.predict(images)
    assert all(torch.equal(value, state[key]) for key, value in model.network.state_dict().items())


def test_what_is_saved_is_loaded(model, images, tmp_path):
    model.save(tmp_path / "there")
    again = TrainedClassifier.load(tmp_path / "there", device="cpu")
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))
    assert again.identity() == model.identity()
    assert again.notes == {"seed": 3}
    assert again.class_names == NAMES
    card = json.loads((tmp_path / "there" / "model.json").read_text())
    assert card["label"] == "zero-shot: trained on generated images alone"
    assert card["network"]["first_layers"].startswith("3×3 convolution")


def test_damage_is_noticed(model, tmp_path):
    model.save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file"):
        TrainedClassifier.load(tmp_path / "m", device="cpu")
    weights.unlink()
    with pytest.raises(ModelError, match="damaged"):
        TrainedClassifier.load(tmp_path / "m", device="cpu")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("{}", "does not describe a trained network"),
        ('{"format": "diffsight-classifier", "version": 9}', "version 9"),
        ('{"format": "diffsight-classifier", "version": 1}', "is damaged"),
    ],
)
def test_a_card_that_is_none(model, tmp_path, text, message):
    model.save(tmp_path / "m")
    (tmp_path / "m" / "model.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        TrainedClassifier.load(tmp_path / "m", device="cpu")


def test_nothing_there(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        TrainedClassifier.load(tmp_path / "nothing", device="cpu")


def test_batch_norm_is_adapted_to_all_images(model, images):
    adapted = model.adapt_batch_norm(images)
    first = adapted.network.network.conv1[1]
    batch = torch.stack([model.preprocessing(sample.load()) for sample in images]).float() / 255
    normalised = (batch - model.network.mean) / model.network.std
    seen = model.network.network.conv1[0](normalised)
    torch.testing.assert_close(first.running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(first.running_var, seen.var(dim=(0, 2, 3)))
    assert not torch.equal(first.running_mean, model.network.network.conv1[1].running_mean)
    assert adapted.label.endswith("transductive: BatchNorm has seen 24 unlabelled images")
    assert "transductive" not in model.label
    assert adapted.identity()["weights"] != model.identity()["weights"]
    assert not any(module.training for module in adapted.network.modules())
    np.testing.assert_allclose(adapted.logits(images, batch_size=5), adapted.logits(images), atol=1e-5)


def test_an_adapted_network_is_kept_as_such(model, images, tmp_path):
    model.adapt_batch_norm(images).save(tmp_path / "m")
    again = TrainedClassifier.load(tmp_path / "m", device="cpu")
    assert again.adapted == 24
    assert "transductive" in again.label


def test_what_has_no_batch_norm_is_not_adapted(model, images):
    with pytest.raises(InputError, match="test_vit has no BatchNorm"):
        untrained("test_vit").adapt_batch_norm(images)
    with pytest.raises(InputError, match="adapted to many images"):
        model.adapt_batch_norm(images[0].load())


def test_images_that_are_none(model):
    with pytest.raises(ImageError, match=r"X\[0\]"):
        model.predict(["nowhere.png"])


def test_a_logit_that_is_not_finite_is_an_error(model, images):
    model.network.network.fc.bias[0] = torch.nan
    with pytest.raises(NumericsError, match="not finite"):
        model.predict(images)
