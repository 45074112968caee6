import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from digit_folders import NAMES, write_photographs

from diffsight.data.sources import open_source
from diffsight.errors import InputError, ModelError
from diffsight.synthesis import export
from diffsight.synthesis.export import OPSET, export_onnx, load_onnx
from diffsight.synthesis.networks import build_network, plan_network
from diffsight.synthesis.preprocessing import Normalised, Preprocessing
from diffsight.synthesis.trained import TrainedClassifier


def untrained(name, size=16):
    how = Preprocessing(size=size, scale=size + 2, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    plan = plan_network(name, 3, size)
    return TrainedClassifier(
        plan=plan,
        network=Normalised(build_network(plan), how.mean, how.std),
        preprocessing=how,
        class_names=NAMES,
        protocol="zero-shot",
    )


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return open_source(f"folder:{write_photographs(tmp_path_factory.mktemp('images') / 'set', 3)}")


@pytest.fixture(scope="module")
def model():
    return untrained("test_resnet")


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx").path


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_onnxruntime_computes_what_torch_does(name, images, tmp_path):
    model = untrained(name)
    written = export_onnx(model, tmp_path / "new" / "model.onnx")
    assert written.difference < 1e-5
    assert written.bytes == written.path.stat().st_size
    found = load_onnx(written.path)
    np.testing.assert_allclose(found.logits(images), model.logits(images), atol=1e-5)
    np.testing.assert_allclose(found.logits(images, batch_size=1), model.logits(images), atol=1e-5)
    assert found.predict(images).tolist() == model.predict(images).tolist()


def test_the_file_needs_nothing_of_diffsight(file, model, images):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("images", "tensor(float)")
    assert taken.shape[1:] == [3, 16, 16]
    assert isinstance(taken.shape[0], str)  # any batch
    pixels = np.stack([model.preprocessing(sample.load()).numpy() for sample in images])
    logits, probabilities = session.run(["logits", "probabilities"], {"images": (pixels / 255).astype(np.float32)})
    np.testing.assert_allclose(logits, model.logits(images), atol=1e-5)
    np.testing.assert_allclose(probabilities, model.predict_proba(images), atol=1e-6)


def test_class_names_and_preprocessing_are_inside(file, model):
    stored = {
        entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props if "diffsight" in entry.key
    }
    assert stored["diffsight.classes"] == list(NAMES)
    assert Preprocessing.from_dict(stored["diffsight.preprocessing"]) == model.preprocessing
    assert stored["diffsight.label"] == "zero-shot: trained on generated images alone"
    assert {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""] == OPSET
    assert load_onnx(file).class_names == NAMES


def test_a_file_that_would_answer_otherwise_is_not_written(model, tmp_path, monkeypatch):
    session = export._session

    class Wrong:
        def __init__(self, data):
            self.inner = session(data)

        def run(self, names, feeds):
            return [value + 0.01 for value in self.inner.run(names, feeds)]

    monkeypatch.setattr(export, "_session", Wrong)
    with pytest.raises(ModelError, match=r"computes other logits than torch .* Nothing was written"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_global_state_is_left_alone(model, tmp_path):
    before = torch.get_rng_state()
    export_onnx(model, tmp_path / "model.onnx")
    assert torch.equal(torch.get_rng_state(), before)


def test_paths_that_cannot_be(model, tmp_path):
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        export_onnx(model, tmp_path / "model.pt")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        export_onnx(model, tmp_path / "file" / "model.onnx")


def test_files_that_are_none(file, tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        load_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(ModelError, match="no ONNX file that onnxruntime can run"):
        load_onnx(tmp_path / "noise.onnx")
    foreign = onnx.load(file)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ModelError, match="no class names"):
        load_onnx(tmp_path / "foreign.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(model, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModelError, match=rf"ONNX needs {package}.*pip install 'diffsight\[train\]'"):
        export_onnx(model, tmp_path / "model.onnx")
