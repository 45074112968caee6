import numpy as np
import pytest
import timm
import torch
from digit_folders import write_photographs

from diffsight import load
from diffsight.data.sources import open_source
from diffsight.errors import ImageError, InputError, ModelError
from diffsight.evaluation.embedding import (
    DiffusionEmbedder,
    Embedder,
    diffusion_embedder,
    network_embedder,
    timm_embedder,
)
from diffsight.features.extraction import plan
from diffsight.features.extractor import FeatureExtractor


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four of each class, of which one is no image."""
    folder = write_photographs(tmp_path_factory.mktemp("real") / "set", 4, side=28)
    (folder / "number_one" / "00001.png").write_text("not an image")
    return open_source(f"folder:{folder}")


def test_of_a_diffusion_model_and_kept(backbone, source, tmp_path):
    embedder = diffusion_embedder(backbone, cache=tmp_path)
    assert isinstance(embedder, Embedder)
    seen = []
    found = embedder.embed(source, lambda *state: seen.append(state))
    good = [i for i in range(12) if i != 1]
    assert found.positions.tolist() == good
    assert [id for id, _ in found.failures] == ["number_one/00001.png"]
    assert (seen[-1], found.calls) == ((12, 12), 12)
    np.testing.assert_allclose(found.values, FeatureExtractor(backbone).transform(source.select(good)), atol=1e-5)
    again = embedder.embed(source)
    assert again.calls == 0
    assert np.array_equal(again.values, found.values)
    assert embedder.name.startswith("tiny-fashion ")
    assert embedder.identity()["backbone"] == backbone.identity()
    with pytest.raises(InputError, match="these settings give 2"):
        DiffusionEmbedder(extraction=plan(backbone, views=2))


def test_of_an_ordinary_network(source):
    torch_network = timm.create_model("test_resnet", pretrained=False, num_classes=0)
    embedder = network_embedder(torch_network, "timm:test_resnet")
    assert isinstance(embedder, Embedder)
    found = embedder.embed(source)
    assert found.values.shape == (11, torch_network.num_features)
    size = torch_network.pretrained_cfg["input_size"][-1]
    assert embedder.preprocessing.size == size
    batch = torch.stack([embedder.preprocessing(source[i].load()) for i in found.positions.tolist()]).float() / 255
    mean, std = (torch.tensor(torch_network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = torch_network.eval()((batch - mean) / std)
    np.testing.assert_allclose(found.values, expected.numpy(), atol=1e-5)
    same, other = (network_embedder(timm.create_model("test_resnet", num_classes=0), "n").identity() for _ in "ab")
    assert same["weights"] != other["weights"]
    with pytest.raises(ImageError, match="None of 1 images could be used"):
        embedder.embed(source.select([1]))


def test_what_cannot_be_had():
    with pytest.raises(InputError, match="timm has no network 'resnet_19'"):
        timm_embedder("timm:resnet_19")
    with pytest.raises(InputError, match="timm has no network 'hf-hub:a/b'"):
        timm_embedder("hf-hub:a/b")
    with pytest.raises(ModelError, match="could not be had"):
        timm_embedder("timm:test_resnet.r160_in1k", device="cpu")  # No test reaches for the network.
