"""What was learnt is kept whole, belongs to one model and one way of reading it, and leaves the network as it was."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from diffsight.backbones.loading import load
from diffsight.data.queries import Query
from diffsight.errors import InputError, ModelError
from diffsight.matching.adapters import (
    Adapter,
    fingerprint,
    load_adapter,
    model_identity,
    save_adapter,
    settings_of,
    with_prompt,
)
from diffsight.matching.attention import Pooling
from diffsight.matching.fitting import fit_adapter
from diffsight.matching.lora import injected, load_lora, lora_state
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.options import FitOptions
from diffsight.matching.scores import PMI, Attention, DenoisingError
from diffsight.matching.settings import MatchSettings, match_preset
from diffsight.matching.weighing import Weighted

FEW = MatchSettings(draws=4)
TEXTS = ("a photo of a bag", "a photo of a coat")
OPTIONS = {
    "weights": FitOptions(),
    "prompt": FitOptions(kind="prompt", steps=2, tokens=3),
    "lora": FitOptions(kind="lora", steps=2, rank=2, alpha=3.0),
}


@pytest.fixture(scope="module")
def fitted(tiny, pictures):
    query = Query(id="q", images=(pictures[0],), texts=TEXTS, positive=1)
    return {kind: fit_adapter(tiny, [query], options=options, settings=FEW) for kind, options in OPTIONS.items()}


def state(network):
    """Everything by which a network could differ afterwards: modules, parameters, flags and attributes."""
    return (
        [(path, id(module), module.training) for path, module in network.named_modules()],
        [(name, id(value), value.requires_grad, value._version) for name, value in network.named_parameters()],
        set(vars(network)),
    )


def output(network):
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 5, 128, generator=generator)
    with torch.no_grad():
        return network(x, torch.tensor([10, 900]), text).sample


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_an_adapter_from_a_file_matches_as_the_one_in_memory(tiny, pictures, fitted, tmp_path, kind):
    adapter = fitted[kind]
    file = save_adapter(adapter, tmp_path / "deep" / kind)
    assert file == tmp_path / "deep" / f"{kind}.safetensors"
    again = load_adapter(file)
    assert (again.kind, again.model, again.notes) == (kind, model_identity(tiny), adapter.notes)
    assert again.settings == json.loads(json.dumps(FEW.to_dict()))
    assert fingerprint(again) == fingerprint(adapter)
    scores = [
        ImageTextMatcher(tiny, settings=FEW, adapter=one).score(pictures[:2], TEXTS) for one in (None, adapter, file)
    ]
    np.testing.assert_array_equal(scores[1], scores[2])
    assert not np.allclose(scores[0], scores[1])


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_an_adapter_of_another_model_is_refused(small, fitted, kind):
    with pytest.raises(ModelError, match=r"fitted for another model.*weights"):
        ImageTextMatcher(small, adapter=fitted[kind])


def test_the_same_model_in_another_dtype_is_the_same_model(fitted, pictures):
    half = load("tiny-fashion", device="cpu", dtype="bf16")
    for adapter in fitted.values():
        assert np.isfinite(ImageTextMatcher(half, settings=FEW, adapter=adapter).score(pictures[0], TEXTS)).all()


def test_weights_are_for_attention_that_is_read_in_one_way(tiny, pictures, fitted):
    other = {
        "layers": replace(FEW, layers=("mid.0",)),
        "tokens": replace(FEW, tokens="all"),
        "pooling": replace(FEW, pooling=Pooling(pool="max")),
    }
    for name, settings in other.items():
        with pytest.raises(InputError, match=f"read with {name}"):
            ImageTextMatcher(tiny, settings=settings, adapter=fitted["weights"])
        assert settings_of(fitted["lora"], settings) == settings
    assert settings_of(fitted["weights"], replace(FEW, draws=9)).score.needs_attention
    # A score that was made by hand, without an adapter that knows how it was fitted.
    settings = replace(FEW, score=Weighted(((1.0, 1.0),)))
    with pytest.raises(InputError, match="weights for 2 columns, but 17 were measured"):
        ImageTextMatcher(tiny, settings=settings).score(pictures[0], TEXTS)


def fitted_for(adapter, score):
    """The same adapter, as if it had been fitted for another score."""
    return replace(adapter, settings=replace(FEW, score=score).to_dict())


@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_without_a_score_an_adapter_matches_with_its_own(tiny, pictures, fitted, kind):
    adapter = fitted_for(fitted[kind], Attention())
    matcher = ImageTextMatcher(tiny, settings=FEW, adapter=adapter)
    assert matcher.settings.score == Attention()
    assert matcher.settings == replace(FEW, score=Attention())
    asked = ImageTextMatcher(tiny, "attention", settings=FEW, adapter=adapter)
    found = [one.score(pictures[0], TEXTS) for one in (matcher, asked)]
    np.testing.assert_array_equal(*found)
    assert not np.allclose(
        found[0], ImageTextMatcher(tiny, settings=FEW, adapter=fitted[kind]).score(pictures[0], TEXTS)
    )
    # The settings of one matcher do for the next.
    assert ImageTextMatcher(tiny, settings=matcher.settings, adapter=adapter).settings == matcher.settings


@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_another_score_than_that_of_an_adapter_is_refused(tiny, fitted, kind):
    message = r"is for PMI\(\), and Attention\(null='ignore'\) was asked for\. Leave the score out"
    with pytest.raises(InputError, match=message):
        ImageTextMatcher(tiny, "attention", settings=FEW, adapter=fitted[kind])
    with pytest.raises(InputError, match=message):
        ImageTextMatcher(tiny, settings=replace(FEW, score=Attention()), adapter=fitted[kind])
    with pytest.raises(InputError, match="is for PMI"):
        ImageTextMatcher(tiny, settings=match_preset("discffusion"), adapter=fitted[kind])
    # The default score can be asked for, too.
    adapter = fitted_for(fitted[kind], Attention())
    with pytest.raises(InputError, match=r"is for Attention.*PMI\(\) was asked for"):
        ImageTextMatcher(tiny, "pmi", settings=FEW, adapter=adapter)
    with pytest.raises(InputError, match=r"is for Attention\(null='subtract'\), and Attention\(null='ignore'\)"):
        ImageTextMatcher(tiny, Attention(), adapter=fitted_for(fitted[kind], Attention(null="subtract")))
    # Attention that is read in another way is another score.
    with pytest.raises(InputError, match="read with tokens"):
        ImageTextMatcher(tiny, settings=replace(FEW, tokens="all"), adapter=adapter)


def test_weights_are_a_score_of_their_own(tiny, fitted):
    adapter = fitted_for(fitted["weights"], DenoisingError())
    settings = replace(FEW, score=DenoisingError())
    matcher = ImageTextMatcher(tiny, settings=settings, adapter=adapter)  # as it was fitted with
    assert isinstance(matcher.settings.score, Weighted)
    assert ImageTextMatcher(tiny, settings=matcher.settings, adapter=adapter).settings == matcher.settings
    with pytest.raises(InputError, match=r"weights, which are a score of their own, and DenoisingError\(\)"):
        ImageTextMatcher(tiny, "error", settings=FEW, adapter=adapter)
    with pytest.raises(InputError, match="a score of their own"):
        ImageTextMatcher(tiny, settings=replace(FEW, score=Attention()), adapter=adapter)


def test_an_adapter_that_names_no_score_is_refused(tiny, fitted):
    with pytest.raises(InputError, match="Unknown score"):
        ImageTextMatcher(tiny, settings=FEW, adapter=replace(fitted["lora"], settings={}))


def damaged(file, **changes):
    """A file with another header."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        about = json.loads(opened.metadata()["diffsight"])
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    save_file(tensors, file, {"diffsight": json.dumps(about | changes)})
    return file


def test_what_is_no_adapter_is_refused(fitted, tmp_path):
    whole = save_adapter(fitted["lora"], tmp_path / "whole")
    bad = {name: tmp_path / f"{name}.safetensors" for name in ("cut", "text", "pickle", "bare", "kind", "rank", "new")}
    bad["cut"].write_bytes(whole.read_bytes()[:-100])
    bad["text"].write_bytes(b"nothing")
    torch.save({"weights": torch.ones(1, 1)}, bad["pickle"])
    save_file({"weights": torch.ones(1, 1)}, bad["bare"])
    for name, changes in (("kind", {"kind": "weights"}), ("rank", {"notes": {}}), ("new", {"format": 99})):
        bad[name].write_bytes(whole.read_bytes())
        damaged(bad[name], **changes)
    for name, file in bad.items():
        with pytest.raises(InputError, match="format 99" if name == "new" else "is no adapter"):
            load_adapter(file)
    with pytest.raises(InputError, match="There is no adapter"):
        load_adapter(tmp_path / "gone.safetensors")
    assert load_adapter(damaged(whole)).kind == "lora"


def test_prompt_tokens_stand_before_every_text_and_need_its_width(tiny, fitted):
    condition = tiny.condition(["a bag", "a coat"]).with_null()
    longer = fitted["prompt"].condition(condition)
    states, prompt = longer.tensors["encoder_hidden_states"], fitted["prompt"].prompt
    assert prompt.shape == (3, 128)
    assert torch.equal(states[:, :3], prompt.expand(3, 3, 128))
    assert torch.equal(states[:, 3:], condition.tensors["encoder_hidden_states"])
    assert torch.equal(longer.null["encoder_hidden_states"][0, :3], prompt)
    assert fitted["lora"].condition(condition) is condition
    with pytest.raises(InputError, match="width"):
        with_prompt(condition, torch.zeros(3, 7))


def test_rank_4_of_stable_diffusion_2_has_the_papers_parameters():
    """829,952 numbers: what the authors' 3.4 MB checkpoint holds, of 4 layers in 16 self- and 16 cross-attentions."""
    with torch.device("meta"):
        network = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            layers_per_block=2,
            use_linear_projection=True,
        )
    before = state(network)
    with injected(network, rank=4, alpha=4) as learnt:
        assert sum(parameter.numel() for parameter in learnt) == 829_952
        assert len(learnt) == 256
        assert sum(value.numel() for value in network.parameters() if value.requires_grad) == 829_952
    assert state(network) == before


@pytest.mark.parametrize("frozen", [True, False])
def test_taken_out_again_nothing_has_changed(tiny, frozen):
    network = tiny.network
    try:
        network.requires_grad_(not frozen)
        before, plain, random = state(network), output(network), torch.random.get_rng_state()
        with injected(network, rank=3, alpha=6.0, seed=1) as learnt:
            # The second matrix starts at 0.
            assert torch.equal(output(network), plain)
            assert {id(value) for value in learnt} == {id(v) for v in network.parameters() if v.requires_grad}
            for value in learnt:
                value.data.add_(0.1)
            assert not torch.allclose(output(network), plain)
        assert state(network) == before
        assert torch.equal(output(network), plain)
        with pytest.raises(RuntimeError, match="stop"), injected(network, rank=2, alpha=2.0):
            raise RuntimeError("stop")
        assert state(network) == before
        assert torch.equal(torch.random.get_rng_state(), random)
    finally:
        network.requires_grad_(False)


def test_half_an_injection_is_undone(tiny, monkeypatch):
    import peft

    before = state(tiny.network)
    inject = peft.inject_adapter_in_model

    def fail(config, network, **options):
        inject(config, network, **options)
        raise MemoryError("half way")

    monkeypatch.setattr(peft, "inject_adapter_in_model", fail)
    with pytest.raises(MemoryError), injected(tiny.network, rank=2, alpha=2.0):
        pass
    assert state(tiny.network) == before


def test_the_product_is_scaled_by_alpha_over_rank(tiny):
    layer = tiny.network.mid_block.attentions[0].transformer_blocks[0].attn2
    text = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(0))
    plain = layer.to_k(text)
    with injected(tiny.network, rank=2, alpha=6.0, seed=3):
        for value in layer.to_k.lora_B.parameters():
            value.data.fill_(0.5)
        first, second = (next(x["diffsight"].parameters()) for x in (layer.to_k.lora_A, layer.to_k.lora_B))
        expected = plain + 3.0 * text @ first.T @ second.T
        torch.testing.assert_close(layer.to_k(text), expected)


def test_a_small_alpha_is_not_rounded_off(tiny, pictures, fitted):
    quiet = replace(fitted["lora"], notes={**fitted["lora"].notes, "alpha": 0.5})
    plain, half, whole = (
        ImageTextMatcher(tiny, settings=FEW, adapter=adapter).score(pictures[0], TEXTS)
        for adapter in (None, quiet, fitted["lora"])
    )
    assert not np.array_equal(plain, half)
    assert not np.array_equal(half, whole)
    assert fingerprint(quiet) != fingerprint(fitted["lora"])


def test_low_rank_matrices_start_from_their_seed(tiny):
    def start(seed):
        with injected(tiny.network, rank=2, alpha=2.0, seed=seed):
            return lora_state(tiny.network)

    one, two, other = start(1), start(1), start(2)
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


def test_low_rank_matrices_of_another_network_or_on_top_of_others_are_refused(tiny, small):
    with injected(small.network, rank=2, alpha=2.0):
        matrices = lora_state(small.network)
    with injected(tiny.network, rank=2, alpha=2.0):
        with pytest.raises(ModelError, match="does not fit"):
            load_lora(tiny.network, matrices)
        before = state(tiny.network)
        with pytest.raises(ModelError, match="already"), injected(tiny.network, rank=2, alpha=2.0):
            pass
        assert state(tiny.network) == before
    with pytest.raises(ModelError, match="no attention"), injected(torch.nn.Linear(2, 2), rank=2, alpha=2.0):
        pass


def test_without_peft_the_message_says_what_to_install(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"pip install 'diffsight\[lora\]'"), injected(tiny.network, rank=2, alpha=2):
        pass


def test_an_adapter_without_matrices_leaves_network_score_and_texts_alone(tiny):
    adapter = Adapter(kind="weights", model=model_identity(tiny), settings=FEW.to_dict(), weights=torch.ones(2, 3))
    before = state(tiny.network)
    with adapter.applied(tiny.network):
        assert state(tiny.network) == before
    assert adapter.score == Weighted(((1.0, 1.0, 1.0), (1.0, 1.0, 1.0)))
    assert replace(adapter, weights=None).score == PMI()


def test_an_adapter_that_cannot_be_written_is_an_error_of_its_own(fitted, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ModelError, match="cannot be written"):
        save_adapter(fitted["weights"], tmp_path / "file" / "adapter")
