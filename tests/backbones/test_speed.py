"""Options of speed change no score, and what looks into a network still sees it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussians import mixture
from pipelines import save_dit, save_stable_diffusion

from diffsight import load
from diffsight.backbones.layers import find_layers, intermediates, profile
from diffsight.backbones.speed import speed_up
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import InputError, ModelError
from diffsight.matching.attention import AttentionProbe, Pooling, attention_layers
from diffsight.matching.lora import injected
from diffsight.scoring.scorer import Requests, Scorer

PROMPTS = ("a cat", "a dog")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return load(save_stable_diffusion(tmp_path_factory.mktemp("sd")), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return load(save_dit(tmp_path_factory.mktemp("dit")), device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def compiled(sd):
    """With graphs for batches of 6, made before anybody looks inside."""
    fast = speed_up(sd, compile="default", backend="eager")
    for _ in range(2):
        scores(fast)
    return fast


@pytest.fixture
def graphs(monkeypatch):
    """How many batches compiled code ran; a stand-in for torch.compile, which takes half a minute."""
    ran = []

    def stand_in(function, **options):
        def run(*args, **kwargs):
            ran.append(len(args[0]))
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(torch, "compile", stand_in)
    return ran


def scores(backbone, *, rows=6, probe=None):
    scorer = Scorer(
        backbone=backbone,
        condition=backbone.condition(PROMPTS if backbone.class_names is None else ("cat", "dog")),
        levels=torch.tensor([10, 400, 900]),
        bank=NoiseBank(seed=0),
        probe=probe,
    )
    x0 = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    row = np.arange(rows)
    return scorer.score(x0, ["image"], Requests(image=np.zeros(rows, int), draw=row // 2 % 3, arm=row % 2))


def predict(backbone, rows=2):
    x_t = torch.randn(rows, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    return backbone.predict(x_t, torch.arange(rows) * 100, backbone.condition(()).nulls(rows))


def is_channels_last(backbone):
    weights = [p for p in backbone.network.parameters() if p.ndim == 4 and p.shape[-1] == 3]
    return all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_compiled_scores_are_the_same(sd, compiled):
    assert len(compiled.network.forward._made) == 1
    torch.testing.assert_close(scores(compiled), scores(sd), atol=1e-5, rtol=1e-5)


def test_a_compiled_transformer_scores_the_same(dit):
    fast = speed_up(dit, compile="default", backend="eager")
    for _ in range(3):
        torch.testing.assert_close(scores(fast), scores(dit), atol=1e-5, rtol=1e-5)
    assert len(fast.network.forward._made) == 1


def test_channels_last_scores_the_same_and_is_undone(sd):
    expected = scores(sd)
    fast = speed_up(sd, channels_last=True)
    assert is_channels_last(fast)
    torch.testing.assert_close(scores(fast), expected, atol=1e-5, rtol=1e-5)
    assert not is_channels_last(speed_up(fast))
    torch.testing.assert_close(scores(sd), expected)


def test_nothing_else_about_the_model_changes(sd, compiled):
    assert type(compiled) is type(sd)
    assert type(compiled.network) is type(sd.network)
    assert compiled.identity() == sd.identity()
    assert compiled.layers == sd.layers
    assert compiled.network.config == sd.network.config
    assert [path for path, _ in compiled.network.named_modules()] == [path for path, _ in sd.network.named_modules()]
    assert all(
        ours is theirs for ours, theirs in zip(compiled.network.parameters(), sd.network.parameters(), strict=True)
    )
    assert "forward" not in vars(sd.network)
    assert "forward" not in vars(speed_up(compiled).network)


def test_layers_are_seen_after_compilation(sd, compiled):
    layers = find_layers(sd, ["mid", "dec.1"])
    args = (torch.randn(6, *sd.latent_shape), torch.arange(6), sd.condition(()).nulls(6))
    with torch.no_grad():
        for _ in range(3):
            found = intermediates(compiled, *args, layers)
        for one, other in zip(found, intermediates(sd, *args, layers), strict=True):
            assert torch.equal(one, other)
    assert profile(compiled) == profile(sd)


def test_attention_is_seen_after_compilation(sd, compiled):
    tokens = torch.ones(2, 16, dtype=torch.bool)
    probe = AttentionProbe(layers=attention_layers(sd.network), pooling=Pooling(), tokens=tokens)
    torch.testing.assert_close(scores(compiled, probe=probe), scores(sd, probe=probe))


def test_what_is_put_into_the_network_is_used_and_taken_out(sd, compiled):
    plain = scores(compiled)
    with injected(compiled.network, rank=2, alpha=2.0) as parameters:
        for parameter in parameters:
            torch.nn.init.ones_(parameter)
        changed = scores(compiled)
        torch.testing.assert_close(changed, scores(sd))
    assert not torch.allclose(changed, plain, atol=1e-4)
    torch.testing.assert_close(scores(compiled), plain)


def test_gradients_flow_after_compilation(compiled):
    x_t = torch.randn(6, *compiled.latent_shape, requires_grad=True)
    for _ in range(2):
        compiled.predict(x_t, torch.arange(6), compiled.condition(()).nulls(6)).eps.sum().backward()
    assert x_t.grad.abs().sum() > 0


def test_only_batches_that_come_again_are_compiled(sd, graphs):
    fast = speed_up(sd, compile="default")
    for rows in (6, 6, 6, 5, 6, 3, 3):
        scores(fast, rows=rows)
    assert graphs == [6, 6, 6, 3]
    with torch.inference_mode():
        for _ in range(2):
            scores(fast)
    assert graphs == [6, 6, 6, 3, 6]


def test_many_shapes_are_not_compiled_one_and_all(sd, graphs):
    fast = speed_up(sd, compile="default")
    for rows in (2, 4, 6, 8, 10, 12):
        for _ in range(2):
            scores(fast, rows=rows)
    assert graphs == [2, 4, 6, 8]


def test_outputs_outlive_the_next_call_of_a_cuda_graph(sd, monkeypatch):
    place = torch.zeros(2, *sd.latent_shape)

    def replayed(function, **options):
        def run(*args, **kwargs):
            output = function(*args, **kwargs)
            return type(output)(sample=place.copy_(output.sample))

        return run

    monkeypatch.setattr(torch, "compile", replayed)
    fast = speed_up(sd, compile="reduce-overhead")
    with torch.no_grad():
        first = [predict(fast).output for _ in range(2)][-1]
        before = first.clone()
        place.zero_()
    assert torch.equal(first, before)


def test_a_network_that_cannot_be_compiled_is_told_with_the_reason(sd, monkeypatch):
    def broken(function, **options):
        def run(*args, **kwargs):
            raise RuntimeError("\nno working C compiler")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    fast = speed_up(sd, compile="default")
    scores(fast)
    with pytest.raises(ModelError, match=r"cannot be compiled here .no working C compiler"):
        scores(fast)


def test_running_out_of_memory_stays_what_it_is(sd, monkeypatch):
    def too_large(function, **options):
        def run(*args, **kwargs):
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    monkeypatch.setattr(torch, "compile", too_large)
    fast = speed_up(sd, compile="default")
    scores(fast)
    with pytest.raises(torch.OutOfMemoryError):
        scores(fast)


def test_wrong_options_are_refused(sd, dit):
    with pytest.raises(InputError, match="Unknown mode of compilation 'fast'"):
        speed_up(sd, compile="fast")
    with pytest.raises(InputError, match="'reduce-overhead' is one of the backend 'inductor'"):
        speed_up(sd, compile="reduce-overhead", backend="eager")
    with pytest.raises(InputError, match="a DiTTransformer2DModel"):
        speed_up(dit, channels_last=True)


def test_a_backbone_without_a_field_for_the_network_is_refused():
    backbone = mixture()
    with pytest.raises(InputError, match="nothing to put another into"):
        speed_up(replace(backbone) if hasattr(backbone, "network") else backbone, compile="default")
