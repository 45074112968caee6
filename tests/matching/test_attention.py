"""Cross-attention that is read off a network, against the network's own and against brute force."""

import math

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch.utils._python_dispatch import TorchDispatchMode

from diffsight.errors import InputError
from diffsight.matching import attention as module
from diffsight.matching.attention import (
    AttentionProbe,
    Pooling,
    attention_layers,
    default_layers,
    find_attention_layers,
    reading,
)


class SlowProcessor(AttnProcessor):
    """diffusers' own attention without fusing, which lets its logits be seen."""

    def __init__(self, found, path):
        self.found, self.path = found, path

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **options):
        scores = attn.get_attention_scores

        def watched(query, key, mask=None):
            self.found[self.path] = (
                torch.baddbmm(torch.empty(1, 1, 1), query, key.mT, beta=0, alpha=attn.scale),
                scores(query, key, mask),
            )
            return self.found[self.path][1]

        attn.get_attention_scores = watched
        try:
            return super().__call__(attn, hidden_states, encoder_hidden_states, **options)
        finally:
            del attn.get_attention_scores


def inputs(backbone, count=3):
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(count, *backbone.latent_shape, generator=generator)
    return x_t, torch.arange(count) * 300 + 50


def slow_logits(backbone, texts):
    """Logits (b, heads, places, tokens) and shares of every cross-attention layer, by the unfused processor."""
    found = {}
    stock = backbone.network.attn_processors
    layers = {layer.path: layer for layer in attention_layers(backbone.network)}
    for path in layers:
        backbone.network.get_submodule(path).set_processor(SlowProcessor(found, path))
    x_t, index = inputs(backbone, len(texts))
    try:
        eps = backbone.predict(x_t, index, backbone.condition(texts)).eps
    finally:
        backbone.network.set_attn_processor(stock)
    unfold = {
        path: tuple(x.unflatten(0, (len(texts), layers[path].heads)) for x in pair) for path, pair in found.items()
    }
    return unfold, eps


TEXTS = ["a photo of a sneaker", "a bag", "a blurry photo of a dress."]


@pytest.mark.parametrize("pool", ["lse", "mean", "max", "cosine"])
@pytest.mark.parametrize("per_token", [True, False])
@pytest.mark.parametrize("stretch", [7, 2**21])
def test_pooled_attention_is_that_of_the_unfused_processor(tiny, pool, per_token, stretch, monkeypatch):
    monkeypatch.setattr(module, "_STRETCH", stretch)
    logits, eps = slow_logits(tiny, TEXTS)
    layers = attention_layers(tiny.network)
    mask = tiny.tokens(TEXTS).counted()
    probe = AttentionProbe(layers=layers, pooling=Pooling(pool=pool, temperature=0.7, per_token=per_token), tokens=mask)
    x_t, index = inputs(tiny)
    with probe.watch(tiny.network, torch.arange(3)) as seen:
        fused = tiny.predict(x_t, index, tiny.condition(TEXTS)).eps
        found = seen()
    torch.testing.assert_close(fused, eps, rtol=1e-4, atol=1e-5)
    assert found.shape == (3, len(probe.columns)) == (3, sum(layer.heads for layer in layers))
    if pool == "cosine":
        return
    for row in range(3):
        expected = []
        for layer in layers:
            a = logits[layer.path][0][row][..., mask[row]].double()
            if pool == "lse":
                pooled = ((0.7 * a).exp().sum(-1).log() - (math.log(a.shape[-1]) if per_token else 0)) / 0.7
            else:
                pooled = a.mean(-1) if pool == "mean" else a.max(-1).values
            expected.append(pooled.mean(-1))
        np.testing.assert_allclose(found[row].numpy(), torch.cat(expected).numpy(), rtol=1e-4, atol=1e-4)


def test_cosine_is_between_queries_and_keys():
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 3, 9, 4, generator=generator), torch.randn(2, 3, 5, 4, generator=generator)
    tokens = torch.tensor([[1, 1, 0, 0, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)
    found = Pooling(pool="cosine")(query, key, tokens)
    cosines = torch.nn.functional.cosine_similarity(query[:, :, :, None], key[:, :, None], dim=-1)
    expected = torch.stack([cosines[row][..., tokens[row]].mean((-1, -2)) for row in range(2)])
    torch.testing.assert_close(found, expected)


def test_reading_changes_nothing_and_leaves_nothing_behind(tiny):
    x_t, index = inputs(tiny)
    condition = tiny.condition(TEXTS)
    before = tiny.predict(x_t, index, condition).eps
    hooks = sum(len(m._forward_hooks) for m in tiny.network.modules())
    with reading(tiny.network, attention_layers(tiny.network), lambda q, k: q.sum()) as found:
        during = tiny.predict(x_t, index, condition).eps
    assert len(found) == len(attention_layers(tiny.network))
    assert torch.equal(before, during)
    assert sum(len(m._forward_hooks) for m in tiny.network.modules()) == hooks


def test_no_map_is_ever_in_memory():
    """The largest tensor that pooling makes is a stretch, however many places the image has."""

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor):
                    Largest.size = max(Largest.size, tensor.numel())
            return out

    query, key = torch.randn(4, 8, 4096, 8), torch.randn(4, 8, 77, 8)
    with Largest():
        Pooling()(query, key, torch.ones(4, 77, dtype=torch.bool))
    assert Largest.size <= module._STRETCH < query.shape[2] * 4 * 8 * 77


def test_gradients_flow_to_queries_and_keys_in_stretches(monkeypatch):
    monkeypatch.setattr(module, "_STRETCH", 60)
    query = torch.randn(2, 3, 9, 4, requires_grad=True)
    key = torch.randn(2, 3, 5, 4, requires_grad=True)
    tokens = torch.ones(2, 5, dtype=torch.bool)
    Pooling()(query, key, tokens).sum().backward()
    found = query.grad.clone(), key.grad.clone()
    query.grad = key.grad = None
    ((query @ key.mT / 2).logsumexp(-1) - math.log(5)).mean(-1).sum().backward()
    torch.testing.assert_close(found, (query.grad, key.grad))


def test_joint_attention_reads_image_queries_against_text_keys():
    """Stable Diffusion 3: the slice of the joint attention that the images' queries have on the texts' keys."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4,
            pos_embed_max_size=8, qk_norm="rms_norm",
        ).eval()  # fmt: skip
    layers = attention_layers(network)
    assert [layer.name for layer in layers] == ["block.0", "block.1", "block.2"]
    assert all(layer.joint and layer.heads == 2 for layer in layers)
    assert [layer.name for layer in default_layers(network)] == ["block.1", "block.2"]
    seen = {}
    stock = torch.nn.functional.scaled_dot_product_attention
    calls = []

    def watched(query, key, value, **options):
        calls.append((query, key))
        return stock(query, key, value, **options)

    torch.nn.functional.scaled_dot_product_attention = watched
    try:
        with torch.no_grad(), reading(network, layers, lambda q, k: q.float() @ k.float().mT) as seen:
            network(
                torch.randn(2, 4, 8, 8),
                encoder_hidden_states=torch.randn(2, 5, 16),
                pooled_projections=torch.randn(2, 16),
                timestep=torch.tensor([10.0, 500.0]),
            )
    finally:
        torch.nn.functional.scaled_dot_product_attention = stock
    for layer, (query, key) in zip(layers, calls, strict=True):
        torch.testing.assert_close(seen[layer.path], query[:, :, :16] @ key[:, :, 16:].mT)


SD2 = {
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "sample_size": 64,
}


@pytest.fixture(scope="module")
def stable_diffusion_2():
    with torch.device("meta"):
        return UNet2DConditionModel(**SD2)


def test_stable_diffusion_has_16_layers_and_the_paper_takes_6(stable_diffusion_2):
    assert len(attention_layers(stable_diffusion_2)) == 16
    chosen = default_layers(stable_diffusion_2)
    assert [layer.name for layer in chosen] == ["down.2.0", "down.2.1", "mid.0", "up.3.0", "up.3.1", "up.3.2"]
    assert [layer.heads for layer in chosen] == [20, 20, 20, 5, 5, 5]
    assert all(isinstance(stable_diffusion_2.get_submodule(layer.path), Attention) for layer in chosen)


def test_layers_are_found_by_name_and_by_path(stable_diffusion_2):
    path = "mid_block.attentions.0.transformer_blocks.0.attn2"
    by_name, by_path = (find_attention_layers(stable_diffusion_2, (name,)) for name in ("mid.0", path))
    assert by_name == by_path
    assert by_name[0].path == path
    with pytest.raises(InputError, match=r"down\.2\.0"):
        find_attention_layers(stable_diffusion_2, ("down.2.00",))
    with pytest.raises(InputError, match="twice"):
        find_attention_layers(stable_diffusion_2, ("mid.0", path))
    with pytest.raises(InputError, match="list of names"):
        find_attention_layers(stable_diffusion_2, ())


def test_a_network_without_text_is_refused():
    with pytest.raises(InputError, match="no attention between image and text"):
        default_layers(torch.nn.Linear(1, 1))


@pytest.mark.parametrize("wrong", [{"pool": "median"}, {"temperature": 0.0}, {"temperature": math.inf}])
def test_a_wrong_pooling_is_refused(wrong):
    with pytest.raises(InputError):
        Pooling(**wrong)
