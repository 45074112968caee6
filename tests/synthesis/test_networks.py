import pytest
import torch
import torchvision
from torch.nn import functional

from diffsight.errors import InputError, ModelError
from diffsight.synthesis import networks
from diffsight.synthesis.networks import NETWORKS, build_network, normalisation_of, plan_network
from diffsight.synthesis.preprocessing import IMAGENET


def shapes(network, layer, size=32):
    """What a layer gives for an image."""
    seen = []
    handle = layer.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    network(torch.zeros(2, 3, size, size))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", ["mobilenetv3-small", "resnet-18", "convnext-t", "vit-ti", "test_resnet", "test_vit"])
def test_a_family_learns_from_small_images(name):
    network = build_network(plan_network(name, 3, 32))
    assert network.training
    loss = functional.cross_entropy(network(torch.rand(2, 3, 32, 32)), torch.tensor([0, 2]))
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_stems_of_small_images_keep_what_there_is():
    resnet = build_network(plan_network("resnet-18", 3, 32))
    assert shapes(resnet, resnet.layer1) == (2, 64, 32, 32)
    mobile = build_network(plan_network("mobilenetv3-small", 3, 32))
    assert shapes(mobile, mobile.features[0]) == (2, 16, 32, 32)
    convnext = build_network(plan_network("convnext-t", 3, 32))
    assert shapes(convnext, convnext.features[0]) == (2, 96, 16, 16)
    vit = build_network(plan_network("vit-ti", 3, 32))
    assert vit.seq_length == 64 + 1
    timm_resnet = build_network(plan_network("resnet10t", 3, 32))
    assert shapes(timm_resnet, timm_resnet.layer1) == (2, 64, 32, 32)
    timm_convnext = build_network(plan_network("test_convnext", 3, 32))
    assert timm_convnext.stem[0].stride == (2, 2)


def test_published_stems_where_images_are_large_or_asked_for():
    assert plan_network("resnet-18", 3, 96).stem == "standard"
    assert plan_network("resnet-18", 3, 32, stem="standard").stem == "standard"
    network = build_network(plan_network("resnet-18", 3, 32, stem="standard"))
    assert shapes(network, network.layer1) == (2, 64, 8, 8)
    assert plan_network("resnet-18", 3, 32, stem="standard").to_dict()["first_layers"] == "as published"
    assert "no max-pooling" in plan_network("resnet-18", 3, 32).to_dict()["first_layers"]


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (64, 8), (16, 2), (12, 2), (30, 2)])
def test_patches_divide_small_images(size, patch):
    assert plan_network("vit-s", 3, size).patch == patch


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("mobilenetv3-small", "mobilenet_v3_small"),
        ("resnet-50", "resnet50"),
        ("resnet-101", "resnet101"),
        ("convnext-s", "convnext_small"),
        ("convnext-b", "convnext_base"),
    ],
)
def test_the_papers_networks_are_torchvisions(name, original):
    assert NETWORKS[name].paper
    with torch.device("meta"):
        ours = networks._of_torchvision(plan_network(name, 10, 224), NETWORKS[name])
        theirs = getattr(torchvision.models, original)(num_classes=10)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(("name", "width", "hidden"), [("vit-s", 448, 1344), ("vit-b", 768, 3072)])
def test_the_papers_vits_have_its_sizes(name, width, hidden):
    plan = plan_network(name, 10, 32, stem="standard")
    with torch.device("meta"):
        network = networks._of_torchvision(plan, NETWORKS[name])
    assert NETWORKS[name].paper
    assert len(network.encoder.layers) == 12
    assert network.seq_length == 4 + 1  # patches of 16
    first = network.encoder.layers[0]
    assert first.mlp[0].in_features == width
    assert first.mlp[0].out_features == hidden
    assert first.self_attention.head_dim == 64


def test_the_seed_decides_the_weights_and_nothing_else_changes():
    torch.random.default_generator.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (build_network(plan_network("test_resnet", 3, 32), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.conv1[0].weight, same.conv1[0].weight)
    assert not torch.equal(first.conv1[0].weight, other.conv1[0].weight)


def test_any_network_of_timm_by_its_name():
    network = build_network(plan_network("test_efficientnet", 4, 32))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    assert normalisation_of(network) == IMAGENET
    assert normalisation_of(build_network(plan_network("resnet-18", 3, 32))) is None


@pytest.mark.parametrize("name", ["resnet-15", "resnet51", "hf-hub:someone/something", ""])
def test_an_unknown_name_says_what_was_meant(name):
    with pytest.raises(InputError, match="Unknown network") as error:
        plan_network(name, 3, 32)
    assert "resnet" in str(error.value)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(InputError, match="at least 2 classes"):
        plan_network("resnet-18", 1, 32)
    with pytest.raises(InputError, match="from scratch"):
        plan_network("resnet-50", 3, 32, pretrained=True)
    with pytest.raises(InputError, match="Use an even size"):
        plan_network("vit-s", 3, 31)
    with pytest.raises(InputError, match="no multiple"):
        plan_network("vit-s", 3, 100)
    with pytest.raises(InputError, match="No stem for small images"):
        plan_network("test_coatnet", 3, 32, stem="small")
    with pytest.raises(InputError, match=r"Unknown stem 'smal'.*'small'"):
        plan_network("resnet-18", 3, 32, stem="smal")


def test_weights_that_must_be_downloaded_and_cannot():
    with pytest.raises(ModelError, match="could not be had"):
        build_network(plan_network("resnet18.a1_in1k", 3, 32, pretrained=True))


def test_without_timm_its_names_ask_for_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert plan_network("resnet-18", 3, 32).name == "resnet-18"
    with pytest.raises(ModelError, match=r"pip install 'diffsight\[train\]'"):
        plan_network("resnet18", 3, 32)
