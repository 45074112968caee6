import pytest
import torch
from pipelines import save_dit, save_stable_diffusion

from diffsight import load
from diffsight.backbones.layers import as_map, find_layer, find_layers, intermediates, profile
from diffsight.errors import InputError


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return load(save_stable_diffusion(tmp_path_factory.mktemp("sd"), max_length=12), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return load(save_dit(tmp_path_factory.mktemp("dit")), device="cpu", dtype="fp32")


@pytest.fixture(params=["sd", "dit"])
def backbone(request):
    return request.getfixturevalue(request.param)


def inputs(backbone, rows=2):
    x_t = torch.randn(rows, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    return x_t, torch.arange(rows) * 7, backbone.condition(()).nulls(rows)


def all_modules(backbone, *args):
    """What every module gave in an undisturbed pass: the oracle."""
    seen = {}

    def keeper(path):
        def hook(module, args, output):
            seen.setdefault(path, output)

        return hook

    handles = [module.register_forward_hook(keeper(path)) for path, module in backbone.network.named_modules()]
    prediction = backbone.predict(*args)
    for handle in handles:
        handle.remove()
    return seen, prediction


def test_names_follow_the_order_of_execution(sd, dit):
    assert [layer.name for layer in sd.layers] == [
        "enc.0",
        "enc.1",
        "enc.2",
        "enc.3",
        "mid",
        "dec.0",
        "dec.1",
        "dec.2",
        "dec.3",
    ]
    assert [layer.name for layer in dit.layers] == ["block.0", "block.1"]
    order = []
    paths = {layer.path: layer.name for layer in sd.layers}
    handles = [
        sd.network.get_submodule(path).register_forward_hook(lambda *_, name=name: order.append(name))
        for path, name in paths.items()
    ]
    sd.predict(*inputs(sd))
    for handle in handles:
        handle.remove()
    assert order == [layer.name for layer in sd.layers]


def test_encoder_outputs_are_the_skips_of_the_unet(sd):
    # diffusers itself says what its encoder passes on to its decoder: one for each encoder block.
    seen, _ = all_modules(sd, *inputs(sd))
    skips = [seen["conv_in"], *(skip for block in ("down_blocks.0", "down_blocks.1") for skip in seen[block][1])]
    encoder = [layer for layer in sd.layers if layer.name.startswith("enc")]
    maps = intermediates(sd, *inputs(sd), encoder)
    assert len(skips) == len(maps)
    assert all(torch.equal(a, b) for a, b in zip(skips, maps, strict=True))


def test_last_block_is_what_the_output_is_made_of(sd):
    seen, _ = all_modules(sd, *inputs(sd))
    (last,) = intermediates(sd, *inputs(sd), [sd.layers[-1]])
    torch.testing.assert_close(sd.network.conv_norm_out(last), seen["conv_norm_out"])


def test_every_name_of_a_layer_means_the_same(sd, dit):
    assert find_layer(sd, "b6") == find_layer(sd, "dec.0") == find_layer(sd, "up_blocks.0.resnets.0")
    assert find_layer(dit, "b2") == find_layer(dit, "block.1") == find_layer(dit, "transformer_blocks.1")
    assert find_layer(sd, "mid").path == "mid_block"
    inner = find_layer(sd, "down_blocks.0.attentions.0.transformer_blocks.0.ff")
    assert inner.name == inner.path
    assert inner.number is None


def test_early_exit_gives_what_a_full_pass_gives(backbone):
    args = inputs(backbone)
    full = intermediates(backbone, *args, backbone.layers, stop_early=False)
    for layer, expected in zip(backbone.layers, full, strict=True):
        (found,) = intermediates(backbone, *args, [layer])
        assert torch.equal(found, expected)


def test_nothing_runs_after_the_last_layer_asked_for(sd):
    ran = []
    handles = [
        module.register_forward_hook(lambda *_, path=path: ran.append(path))
        for path, module in sd.network.named_modules()
        if not list(module.children())
    ]
    intermediates(sd, *inputs(sd), find_layers(sd, ["dec.0", "enc.1"]))
    early = list(ran)
    ran.clear()
    sd.predict(*inputs(sd))
    for handle in handles:
        handle.remove()
    assert early == ran[: len(early)]
    assert len(early) < len(ran)
    assert not any(path.startswith(("up_blocks.0.resnets.1", "up_blocks.1", "conv_out")) for path in early)


def test_output_order_is_the_order_asked_for(sd):
    args = inputs(sd)
    names = ["dec.2", "enc.1", "mid"]
    found = intermediates(sd, *args, find_layers(sd, names))
    for name, each in zip(names, found, strict=True):
        assert torch.equal(each, intermediates(sd, *args, find_layers(sd, [name]))[0])


def test_tokens_become_the_map_that_they_came_from(dit):
    args = inputs(dit)
    seen, _ = all_modules(dit, *args)
    (found,) = intermediates(dit, *args, [dit.layers[0]])
    tokens = seen["transformer_blocks.0"]
    assert found.shape == (2, 16, 4, 4)
    assert torch.equal(found[1, :, 2, 3], tokens[1, 2 * 4 + 3])


def test_what_is_added_reaches_all_that_follows(sd):
    args = inputs(sd)
    enc, mid = find_layers(sd, ["enc.1", "mid"])
    before = intermediates(sd, *args, [enc, mid])
    extra = torch.ones_like(before[0])
    after = intermediates(sd, *args, [enc, mid], add={enc.path: extra})
    torch.testing.assert_close(after[0], before[0] + 1)
    assert not torch.allclose(after[1], before[1])
    again = intermediates(sd, *args, [enc, mid])
    assert torch.equal(again[1], before[1])  # No hook is left behind.


def test_gradients_flow_to_what_is_added_and_to_no_weight(sd):
    extra = torch.zeros(2, 8, 8, 8, requires_grad=True)
    (found,) = intermediates(sd, *inputs(sd), find_layers(sd, ["mid"]), add={"conv_in": extra})
    found.sum().backward()
    assert extra.grad is not None
    assert extra.grad.abs().sum() > 0
    assert all(p.grad is None for p in sd.network.parameters())


def test_a_frozen_network_builds_no_graph(backbone):
    assert not backbone.predict(*inputs(backbone)).output.requires_grad


def test_profile_knows_shapes_without_computing(backbone):
    args = inputs(backbone, rows=1)
    maps = intermediates(backbone, *args, backbone.layers)
    found = profile(backbone)
    assert [p.shape for p in found] == [tuple(m.shape[1:]) for m in maps]
    shares = [p.share for p in found]
    assert shares == sorted(shares)
    assert shares[0] > 0
    assert shares[-1] <= 1
    assert all(p.device.type == "cpu" for p in backbone.network.parameters())


def test_flops_are_those_of_an_independent_count(sd):
    first, second = profile(sd, find_layers(sd, ["enc.0", "enc.2"]))
    places = 8 * 8
    conv_in = 2 * places * 8 * 4 * 9
    assert first.flops - conv_in == time_embedding(sd)
    assert second.flops > first.flops


def time_embedding(sd):
    linear = [m for m in sd.network.time_embedding.modules() if isinstance(m, torch.nn.Linear)]
    return sum(2 * m.in_features * m.out_features for m in linear)


@pytest.mark.parametrize("name", ["dec.9", "b0", "b10", "Mid", "", "up_blocks.7"])
def test_unknown_layer_is_refused_with_what_there_is(sd, name):
    with pytest.raises(InputError, match=r"enc\.0 to enc\.3, mid, dec\.0 to dec\.3, also called b1 to b9"):
        find_layer(sd, name)


def test_near_names_are_suggested(sd):
    with pytest.raises(InputError, match=r"Did you mean.*'dec\.1'"):
        find_layer(sd, "dec1")


@pytest.mark.parametrize("names", [[], "mid"])
def test_layers_are_a_list(sd, names):
    with pytest.raises(InputError, match="list of names"):
        find_layers(sd, names)


def test_a_layer_asked_for_twice_is_refused(sd):
    with pytest.raises(InputError, match=r"'dec\.0' and 'b6' are the same"):
        find_layers(sd, ["dec.0", "mid", "b6"])


def test_a_module_that_never_runs_is_refused(sd):
    sd.network.add_module("spare", torch.nn.Identity())
    try:
        with pytest.raises(InputError, match="does not run the layer 'spare'"):
            intermediates(sd, *inputs(sd), find_layers(sd, ["spare"]))
    finally:
        del sd.network.spare


def test_what_is_no_map_is_refused(sd):
    # Keys of cross-attention have one row per token of the text.
    layer = find_layer(sd, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k")
    with pytest.raises(InputError, match="neither a map nor one token for each place"):
        intermediates(sd, *inputs(sd), [layer])


def test_maps_of_any_aspect(sd):
    tokens = torch.arange(2 * 8 * 3.0).reshape(2, 8, 3)
    assert as_map(tokens, (4, 8))[0, 0].tolist() == [[0, 3, 6, 9], [12, 15, 18, 21]]
    assert as_map(torch.zeros(2, 5), (4, 8)).shape == (2, 5, 1, 1)
