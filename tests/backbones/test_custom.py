"""A plain torch network as a backbone: it passes the contract of all adapters, and the estimators work on it."""

import pytest
import torch
from backbones import test_contract as contract
from PIL import Image
from torch import nn

from diffsight.backbones.custom import wrap
from diffsight.backbones.layers import find_layer
from diffsight.backbones.sampling import Sampler, draw
from diffsight.backbones.speed import speed_up
from diffsight.data.images import ImageTransform
from diffsight.diffusion.schedule import from_config
from diffsight.errors import InputError, ModelError, PromptError
from diffsight.features.extractor import FeatureExtractor
from diffsight.zero_shot.classifier import DiffusionClassifier

NAMES = ("cat", "dog", "bird")
DDPM = {"_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


class Network(nn.Module):
    """Class-conditional; the last class is the null class."""

    def __init__(self, classes=4, channels=3, width=8, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.into = nn.Conv2d(channels, width, 3, padding=1)
            self.labels = nn.Embedding(classes, width)
            self.blocks = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
            self.out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, x, t, class_labels):
        told = self.labels(class_labels) + torch.sin(t.float() / 100)[:, None].to(x.dtype)
        h = self.into(x) + told[:, :, None, None]
        for block in self.blocks:
            h = h + nn.functional.silu(block(h))
        return self.out(h)


class Texts(nn.Module):
    """Reads text as the numbers of its letters."""

    def __init__(self):
        super().__init__()
        self.inner = Network(classes=1)

    def forward(self, x, t, text):
        return self.inner(x + text[:, :, None, None], t, torch.zeros_like(t, dtype=torch.long))


def letters(texts):
    return {"text": torch.tensor([[len(text), text.count("a"), text.count("o")] for text in texts]) / 5.0}


def classes(**changes):
    options = {"schedule": from_config(DDPM), "prediction": "eps", "transform": ImageTransform(size=16)}
    network = changes.pop("network", None) or Network()
    return wrap(network, **options | {"class_names": NAMES, "null": 3} | changes)


def latents(**changes):
    pool, grow = nn.AvgPool2d(2), nn.Upsample(scale_factor=2)
    options = {"encode": lambda x: pool(x)[:, :2], "decode": lambda z: grow(z)[:, [0, 1, 1]]}
    return classes(network=Network(channels=2), prediction="v", **options | changes)


def texts(**changes):
    options = {"schedule": from_config(FLOW), "prediction": "flow", "transform": ImageTransform(size=16)}
    return wrap(Texts(), condition=letters, **options | changes)


KINDS = {"classes": classes, "latents": latents, "texts": texts}


@pytest.fixture(scope="module", params=KINDS)
def backbone(request):
    return KINDS[request.param]()


# What every adapter must do; the rest of the contract is about folders.
inputs = contract.inputs
test_it_is_a_backbone = contract.test_it_is_a_backbone
test_a_perfect_prediction = contract.test_a_perfect_prediction_has_no_error_in_any_view
test_a_row_depends = contract.test_a_row_depends_neither_on_its_neighbours_nor_on_its_place
test_classes_and_the_null_member = contract.test_classes_and_the_null_member_are_told_apart
test_an_empty_list_of_names = contract.test_an_empty_list_of_names_has_a_null_member_alone
test_images_become_latents = contract.test_images_become_latents_and_come_back
test_an_image_is_drawn = contract.test_an_image_is_drawn
test_blocks_have_maps_and_costs = contract.test_blocks_have_maps_and_costs
test_photographs_are_classified = contract.test_photographs_are_classified


def test_the_network_gets_what_it_was_trained_with():
    backbone, calls = classes(), []
    backbone.network.register_forward_pre_hook(lambda m, args, given: calls.append((args, given)), with_kwargs=True)
    x_t = torch.randn(2, 3, 16, 16)
    output = backbone.predict(x_t, torch.tensor([3, 700]), backbone.condition(["bird", "1"])).output
    (x, t), given = calls[0]
    assert torch.equal(x, x_t)
    assert (t.tolist(), t.dtype, given["class_labels"].tolist()) == ([3, 700], torch.long, [2, 1])
    assert torch.equal(output, backbone.network(x_t, torch.tensor([3, 700]), torch.tensor([2, 1])))


def test_features_are_taken_from_layers_by_path():
    backbone = classes()
    assert [layer.name for layer in backbone.layers] == ["into", "blocks.0", "blocks.1", "out"]
    assert find_layer(backbone, "b2").path == "blocks.0"
    extractor = FeatureExtractor(backbone, layers=["blocks.1"], timesteps=[100], pool=2)
    features = extractor.fit_transform([Image.new("RGB", (20, 16), "red")] * 2)
    assert features.shape == (2, 8 * 2 * 2)


def test_the_identity_is_of_the_weights():
    identity = classes().identity()
    assert classes().identity() == identity
    assert classes(name="other").identity() == identity
    half, other = classes(network=Network().bfloat16()).identity(), classes(network=Network(seed=1)).identity()
    assert {key for key in other if other[key] != identity[key]} == {"weights"}
    assert {key for key in half if half[key] != identity[key]} == {"weights", "dtype"}
    assert classes(null=2, class_names=NAMES[:2]).identity()["null"] != identity["null"]
    assert classes(others=[nn.Linear(2, 2)]).identity()["weights"] != identity["weights"]
    turned = Network()
    state = dict(reversed(turned.state_dict().items()))
    turned.state_dict = lambda: state
    assert classes(network=turned).identity() == identity


def test_it_may_be_in_half_precision():
    half, full = classes(network=Network().bfloat16()), classes()
    x_t, index = torch.randn(1, 3, 16, 16), torch.tensor([300])
    found, expected = (one.predict(x_t, index, one.condition(["cat"])).eps for one in (half, full))
    assert (half.dtype, found.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.05)


def test_options_of_speed_apply():
    backbone = classes()
    fast = speed_up(backbone, compile="default", backend="eager")
    x_t, index = torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.no_grad():
        found = [fast.predict(x_t, index, fast.condition(["cat", "dog"])).eps for _ in range(3)]
        expected = backbone.predict(x_t, index, backbone.condition(["cat", "dog"])).eps
    assert all(torch.allclose(one, expected, atol=1e-6) for one in found)


def test_without_a_null_class_only_what_needs_one_is_refused():
    backbone = classes(null=None, network=Network(classes=3))
    judge = DiffusionClassifier(backbone, NAMES, policy=contract.make_policy("exhaustive", 2)).fit()
    assert judge.predict([Image.new("RGB", (16, 16))])[0] in NAMES
    noise, condition = torch.randn(1, *backbone.latent_shape), backbone.condition(["cat"])
    sampler = Sampler(name="euler", steps=2)
    assert draw(backbone, condition, torch.tensor([1.0]), noise, sampler=sampler).isfinite().all()
    with pytest.raises(ModelError, match="has no null condition"):
        draw(backbone, condition, torch.tensor([2.0]), noise, sampler=sampler)


def test_classes_may_be_fed_under_another_name():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Network()

        def forward(self, x, t, y):
            return self.inner(x, t, y)

    def ids(names):
        return {"y": torch.tensor([NAMES.index(name) for name in names])}

    backbone = classes(network=Other(), condition=ids, null={"y": torch.tensor([3])})
    assert backbone.condition(["dog", "2"]).tensors["y"].tolist() == [1, 2]
    with pytest.raises(PromptError, match="knows 3 classes"):
        backbone.condition(["cow"])


def test_an_unconditional_network_has_features_and_no_classes():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Network(classes=1)

        def forward(self, x, t):
            return self.inner(x, t, torch.zeros_like(t))

    backbone = classes(network=Plain(), class_names=None, null=None)
    assert backbone.class_names == ()
    assert backbone.predict(torch.randn(1, 3, 16, 16), torch.tensor([5]), backbone.condition([]).nulls(1)).eps.any()
    with pytest.raises(PromptError):
        DiffusionClassifier(backbone, NAMES).fit()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"encode": lambda x: x}, InputError, "belong together"),
        ({"condition": letters}, InputError, "null class by its id"),
        ({"null": {"y": torch.tensor([3])}}, InputError, "need 'condition'"),
        ({"class_names": ("cat", "cat")}, InputError, "same name"),
        ({"network": nn.Conv2d(3, 3, 1)}, ModelError, "could not be run on one image"),
        ({"network": Network(channels=2)}, ModelError, "could not be run on one image"),
        ({"class_names": "cat"}, InputError, "list of names"),
        ({"null": 4}, ModelError, "could not be run"),
        ({"class_names": (*NAMES, "frog", "fish"), "null": None}, ModelError, "could not be run"),
        ({"condition": lambda names: [1], "null": None}, ModelError, "dictionary of tensors .* got a list"),
        ({"encode": lambda x: (x,), "decode": lambda x: x}, ModelError, "must give a tensor, .* got a tuple"),
        ({"encode": lambda x: x + torch.randn_like(x), "decode": lambda x: x}, ModelError, "something else each time"),
        (
            {"condition": lambda names: {"y": torch.zeros(5)}, "null": None},
            ModelError,
            "one for each name; got \\(5,\\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(changes, error, message):
    with pytest.raises(error, match=message):
        classes(**changes)


def test_a_variance_beside_the_prediction_is_refused():
    class Twice(Network):
        def forward(self, x, t, class_labels):
            return super().forward(x, t, class_labels).repeat(1, 2, 1, 1)

    with pytest.raises(ModelError, match=r"gave \(1, 6, 16, 16\) for an input of \(1, 3, 16, 16\)"):
        classes(network=Twice())


def test_a_network_that_changes_its_input_is_refused():
    class Halves(Network):
        def forward(self, x, t, class_labels):
            return super().forward(x.mul_(0.5), t, class_labels)

    with pytest.raises(ModelError, match="changes its input in place"):
        classes(network=Halves())


def test_whatever_a_network_raises_is_told():
    class Fails(Network):
        def forward(self, x, t, class_labels):
            raise KeyError("depth")

    with pytest.raises(ModelError, match=r"could not be run on one image .*'depth'"):
        classes(network=Fails())


def test_other_networks_are_put_into_evaluation_mode():
    drop = nn.Dropout(0.5)
    backbone = classes(encode=lambda x: drop(x + 1), decode=lambda x: x, others=[drop])
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(backbone.encode(images), images + 1)


def test_the_order_of_classes_is_part_of_the_identity():
    assert classes(class_names=NAMES[::-1]).identity() != classes().identity()
