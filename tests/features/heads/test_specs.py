import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from diffsight.errors import InputError
from diffsight.features.heads.attention import Block, Transformer, by_timestep
from diffsight.features.heads.logistic import Logistic
from diffsight.features.heads.neighbours import Neighbours
from diffsight.features.heads.networks import Feedback, flatten
from diffsight.features.heads.specs import (
    CNN,
    HEADS,
    MLP,
    Attention,
    DifFormer,
    Linear,
    NetworkSpec,
    head_from_dict,
    head_spec,
    seeded,
)

B24 = {"b24@150": (1024, 16, 16)}
LAYERS = {"b19": (1024, 8, 8), "b24": (1024, 16, 16), "b30": (512, 64, 64)}
DIFFORMER = {f"{layer}@{timestep}": shape for timestep in (90, 150, 300) for layer, shape in LAYERS.items()}
FEEDBACK = {
    **{"b21": (1024, 8, 8), "b24": (1024, 16, 16), "b27": (512, 32, 32), "b30": (512, 64, 64)},
    **{"b33": (256, 128, 128), "b36": (256, 256, 256), "b17": (1024, 8, 8), "b14": (1024, 16, 16)},
    **{"b11": (512, 32, 32), "b8": (512, 64, 64), "b5": (256, 128, 128), "b2": (256, 256, 256)},
}
PAIRS = {"b21": "b17", "b24": "b14", "b27": "b11", "b30": "b8", "b33": "b5", "b36": "b2"}
SMALL = {"dec.1@90": (16, 6, 6), "mid@90": (8, 4, 4)}
SPECS = [
    Linear(pool=2),
    MLP(hidden=(12, 7), pool=2),
    CNN(widths=(6, 5)),
    Attention(blocks=2, heads=4),
    DifFormer(dim=12, heads=3, size=4),
    DifFormer(dim=12, heads=3, size=4, norm="batch"),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def columns_of(spec):
    return dict(list(SMALL.items())[:1]) if spec.name == "attention" else SMALL


def random_maps(shapes, rows=5, seed=1):
    source = generator(seed)
    return {name: torch.randn(rows, *shape, generator=source) for name, shape in shapes.items()}


def count(network):
    return sum(parameter.numel() for parameter in network.parameters())


def blocks(number, dim=1024):
    return number * (12 * dim**2 + 10 * dim)


@pytest.mark.parametrize(
    ("spec", "shapes", "exact", "published"),
    [
        (Linear(pool=1), B24, 1024 * 1000 + 1000, 1.03),
        (Linear(pool=2), B24, 4096 * 1000 + 1000, 4.1),
        (Linear(pool=4), B24, 16384 * 1000 + 1000, 16.4),
        (Linear(pool=8), B24, 65536 * 1000 + 1000, 65.5),
        (MLP(pool=1), B24, 1024 * 2048 + 2048 + 2048 * 1000 + 1000, 4.1),
        (MLP(pool=2), B24, 4096 * 2048 + 2048 + 2048 * 1000 + 1000, 10.4),
        (MLP(hidden=(2048, 2048), pool=2), B24, 4096 * 2048 + 2048**2 + 2 * 2048 + 2048 * 1000 + 1000, 14.6),
        *(
            (Attention(blocks=number), B24, blocks(number) + 1024 + 1024 * 1000 + 1000, millions)
            for number, millions in enumerate((13.6, 26.2, 38.8, 51.4, 64.0), start=1)
        ),
        (
            DifFormer(),
            B24,
            2 * 1024 * 256 + (1024**2 + 1024) + blocks(2) + 1024 + 1024 * 1000 + 1000,
            27.79,
        ),
        (
            DifFormer(),
            DIFFORMER,
            2 * (1024 * 64 + 1024 * 256 + 512 * 256)
            + (2 * 1024**2 + 512 * 1024 + 3 * 1024)
            + blocks(2)
            + 1024
            + 3072 * 1000
            + 1000,
            31.8,
        ),
    ],
    ids=str,
)
def test_parameters_are_those_of_the_papers(spec, shapes, exact, published):
    network = spec.build(shapes, 1000)
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert count(network) == exact
    digits = len(str(published).split(".")[1])
    # One of the MLPs is 4.15 M, which the figure's axis shows as 4.1.
    assert exact / 1e6 == pytest.approx(published, abs=0.51 * 10**-digits)


def test_parameters_of_our_cnn():
    expected = 9 * (1024 * 512 + 512 * 256) + 2 * (512 + 256) + 256 * 1000 + 1000
    assert count(CNN(widths=(512, 256)).build(B24, 1000)) == expected


def test_parameters_of_feedback():
    feedback = seeded(lambda: Feedback(PAIRS, FEEDBACK), None)
    assert count(feedback) == 2 * (1024**2 + 512**2 + 256**2) + 4 * (1024 + 512 + 256)
    assert count(feedback) / 1e6 == pytest.approx(2.76, abs=5e-3)
    assert (count(feedback) + count(DifFormer().build(B24, 1000))) / 1e6 == pytest.approx(30.5, abs=0.05)


def test_flattening_is_channel_major_and_in_the_order_of_names():
    maps = random_maps({"a": (3, 4, 4), "b": (2, 1, 1)})
    vectors = flatten(maps, ["b", "a"], None)
    assert torch.equal(vectors[:, :2], maps["b"][:, :, 0, 0])
    assert torch.equal(vectors[:, 2:], torch.from_numpy(maps["a"].numpy().reshape(5, -1)))
    pooled = flatten(maps, ["a", "b"], 2)  # what is smaller than the pool stays as it is
    assert pooled.shape == (5, 3 * 2 * 2 + 2)
    assert pooled[0, 1] == pytest.approx(float(maps["a"][0, 0, :2, 2:].mean()))
    assert pooled[0, 4] == pytest.approx(float(maps["a"][0, 1, :2, :2].mean()))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_maps_are_wired_by_name_and_each_row_is_on_its_own(spec):
    shapes = columns_of(spec)
    network = spec.build(shapes, 4, generator()).eval()
    maps = random_maps(shapes)
    logits = network(maps)
    assert logits.shape == (5, 4)
    turned = dict(reversed(maps.items())) | {"other@90": torch.zeros(5, 1, 1, 1)}
    torch.testing.assert_close(network(turned), logits)
    for row in range(5):
        alone = network({name: value[row : row + 1] for name, value in maps.items()})
        torch.testing.assert_close(alone[0], logits[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_weights_come_from_the_generator_and_from_nowhere_else(spec):
    state = torch.get_rng_state()
    first, again, other = (spec.build(columns_of(spec), 4, generator(seed)).state_dict() for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert all(value.isfinite().all() for value in first.values())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_weights_are_distributed_as_torch_has_it():
    ours = seeded(lambda: nn.ModuleList([nn.Linear(400, 300), nn.Conv2d(40, 30, 3)]), generator())
    for mine, default in zip(ours, [nn.Linear(400, 300), nn.Conv2d(40, 30, 3)], strict=True):
        bound = mine.weight[0].numel() ** -0.5
        for parameter, expected in zip(mine.parameters(), default.parameters(), strict=True):
            assert 0.9 * bound < parameter.abs().max() <= bound
            assert 0.9 * bound < expected.abs().max() <= bound
        assert mine.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_a_block_is_torchs_encoder_layer():
    block = seeded(lambda: Block(24, heads=3, mlp_ratio=4), generator())
    layer = nn.TransformerEncoderLayer(24, 3, 96, 0.0, functional.gelu, batch_first=True, norm_first=True)
    with torch.no_grad():
        layer.self_attn.in_proj_weight.copy_(torch.cat([block.query.weight, block.key_value.weight]))
        layer.self_attn.in_proj_bias.zero_()
    layer.self_attn.out_proj.load_state_dict(block.out.state_dict())
    layer.linear1.load_state_dict(block.mlp[0].state_dict())
    layer.linear2.load_state_dict(block.mlp[2].state_dict())
    tokens = torch.randn(2, 7, 24, generator=generator(1))
    torch.testing.assert_close(block(tokens), layer(tokens), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(block(tokens, rows=2), block(tokens)[:, :2], atol=1e-6, rtol=1e-5)


def test_the_class_token_is_the_first_of_all_tokens():
    transformer = seeded(lambda: Transformer(16, blocks=2, heads=4, mlp_ratio=4), generator())
    nn.init.normal_(transformer.cls, generator=generator(1))
    tokens = torch.randn(3, 5, 16, generator=generator(2))
    whole = torch.cat([transformer.cls.expand(3, 1, -1), tokens], dim=1)
    for block in transformer.blocks:
        whole = block(whole)
    torch.testing.assert_close(transformer(tokens), whole[:, 0])
    torch.testing.assert_close(transformer(tokens.flip(1)), whole[:, 0])  # no positions


def test_tokenizers_are_shared_over_timesteps_and_not_over_layers():
    layers = {"mid": (8, 4, 4), "dec.1": (16, 6, 6)}
    shapes = {f"{layer}@{timestep}": shape for timestep in (90, 300) for layer, shape in layers.items()}
    network = DifFormer(dim=12, heads=3, size=4).build(shapes, 4, generator())
    assert len(network.tokenizers) == 2
    maps = random_maps(shapes)
    alike = maps | {name.replace("@90", "@300"): value for name, value in maps.items() if name.endswith("@90")}
    summaries = []
    network.linear.register_forward_hook(lambda module, inputs, output: summaries.append(inputs[0]))
    network(alike)
    network(maps)
    torch.testing.assert_close(summaries[0][:, :12], summaries[0][:, 12:])
    torch.testing.assert_close(summaries[1][:, :12], summaries[0][:, :12])
    assert not torch.allclose(summaries[1][:, :12], summaries[1][:, 12:])
    # Interleaved in another order, the columns are still sorted by timestep and layer.
    order, table = by_timestep(dict(sorted(shapes.items())))
    assert list(order) == ["dec.1", "mid"]
    assert table == (("dec.1@300", "mid@300"), ("dec.1@90", "mid@90"))


def test_attention_averages_odd_maps_without_losing_their_edge():
    network = Attention(blocks=1, heads=2).build({"x": (4, 5, 5)}, 2, generator())
    maps = random_maps({"x": (4, 5, 5)})
    before = network(maps)
    maps["x"][:, 0, 4, 4] += 10
    assert (network(maps) - before).abs().min() > 1e-4


def test_feedback_fits_its_targets():
    shapes = {"dec.0": (6, 4, 4), "enc.3": (5, 8, 8), "dec.1": (4, 8, 8), "enc.1": (3, 8, 8)}
    feedback = seeded(lambda: Feedback({"dec.0": "enc.3", "dec.1": "enc.1"}, shapes), generator()).eval()
    features = random_maps(shapes)
    added = feedback(features)
    assert {name: tuple(value.shape[1:]) for name, value in added.items()} == {"enc.3": (5, 8, 8), "enc.1": (3, 8, 8)}
    weight = feedback.connections[0][0].weight[:, :, 0, 0]
    small = torch.einsum("oc,bchw->bohw", weight, features["dec.0"]).div((1 + 1e-5) ** 0.5).relu()
    torch.testing.assert_close(added["enc.3"], functional.interpolate(small, (8, 8), mode="bilinear"))
    with pytest.raises(InputError, match="fed by one"):
        Feedback({"dec.0": "enc.1", "dec.1": "enc.1"}, shapes)


@pytest.mark.parametrize(
    "spec", [*SPECS, Logistic(C=0.5, pool=1), Neighbours(k=3), *(make() for make in HEADS.values())], ids=str
)
def test_settings_survive_json(spec):
    assert head_from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert isinstance(spec, NetworkSpec) == (spec.name not in ("logistic", "knn"))


def test_heads_go_by_name_or_as_they_are():
    assert head_spec("linear") == Linear()
    spec = MLP(hidden=(3,))
    assert head_spec(spec) is spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "liner"}, "'linear'"),
        ({}, "Unknown head ''"),
        ({"name": "linear", "pol": 2}, "'pool'"),
        ({"name": "linear", "pool": 0}, "at least 1, in whole numbers"),
        ({"name": "linear", "pool": 2.0}, "wrong type"),
        ({"name": "mlp", "hidden": []}, "at least 1"),
        ({"name": "mlp", "hidden": [8, True]}, "whole numbers"),
        ({"name": "difformer", "norm": "bach"}, "wrong type|'batch'"),
        ({"name": "knn", "temperature": 0.0}, "temperature"),
        ({"name": "logistic", "C": float("nan")}, "finite"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        head_from_dict(values)


@pytest.mark.parametrize(
    ("spec", "shapes", "message"),
    [
        (CNN(widths=(8,)), {"x": (3, 1, 1)}, "needs maps of 2×2 or more; column 'x' has 1×1"),
        (CNN(widths=(8, 8, 8)), {"a": (3, 8, 8), "b": (3, 8, 7)}, "column 'b' has 8×7"),
        (Attention(), {"x": (16, 1, 1)}, "2×2 positions; column 'x'"),
        (Attention(), {"x": (12, 4, 4)}, "12 channels cannot be shared by 8"),
        (Attention(), {"a": (16, 4, 4), "b": (16, 4, 4)}, "takes one column"),
        (DifFormer(dim=100), {"x": (16, 4, 4)}, "100 channels"),
        (DifFormer(), {"mid@9": (16, 4, 4), "mid@90": (16, 4, 4), "dec.1@9": (16, 4, 4)}, "dec.1 is missing at 90"),
        (DifFormer(), {"mid@9": (16, 4, 4), "mid@90": (16, 8, 8)}, "Layer 'mid' has maps of"),
    ],
)
def test_maps_that_a_head_cannot_use_are_refused(spec, shapes, message):
    with pytest.raises(InputError, match=message):
        spec.build(shapes, 4, generator())


def test_default_norms_and_class_token():
    network = DifFormer(dim=8, heads=2, size=4).build({"x": (4, 4, 4)}, 3, generator())
    assert not network.transformer.cls.any()
    assert np.allclose(network.tokenizers[0].norm.weight.detach(), 1)
    assert network.tokenizers[0].norm.weight.shape == (4, 4, 4)
