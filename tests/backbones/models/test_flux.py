import json
import logging

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline
from tiny.flux import SIZE, save_flux

from diffsight.backbones import load
from diffsight.backbones.layers import intermediates, profile
from diffsight.backbones.sampling import Sampler, draw
from diffsight.errors import InputError, ModelError, PromptError
from diffsight.matching.attention import default_layers


@pytest.fixture(scope="module", params=[True, False], ids=["dev", "schnell"])
def guided(request):
    return request.param


@pytest.fixture(scope="module")
def folder(guided, tmp_path_factory):
    # Without dev's shift by the resolution, which belongs to its sampling alone.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    return save_flux(tmp_path_factory.mktemp("flux"), guided=guided, scheduler=scheduler, settings={"guidance": 3.5})


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


def test_it_draws_what_the_pipeline_draws(backbone, folder, guided):
    """With guidance, so that the null member counts; a wrong sign, packing or unit of time would show at once."""
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    packed = pipeline(
        "a photo of a cat",
        negative_prompt="",
        height=SIZE,
        width=SIZE,
        sigmas=[1.0, 0.75, 0.5, 0.25],
        num_inference_steps=4,
        guidance_scale=3.5,
        true_cfg_scale=2.5,
        max_sequence_length=512 if guided else 256,
        latents=pipeline._pack_latents(noise, 1, 4, 8, 8),
        output_type="latent",
    ).images
    expected = pipeline._unpack_latents(packed, SIZE, SIZE, pipeline.vae_scale_factor)
    sampler = Sampler(name="euler", steps=4)
    found = draw(backbone, backbone.condition(["a photo of a cat"]), torch.tensor([2.5]), noise, sampler=sampler)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_layers_are_the_image_tokens_of_both_kinds_of_blocks(backbone):
    names = [(layer.name, layer.number) for layer in backbone.layers]
    assert names == [("double.0", 1), ("double.1", 2), ("single.0", 3), ("single.1", 4)]
    network, seen = backbone.network, {}
    hooks = [
        network.single_transformer_blocks[0].register_forward_pre_hook(
            lambda module, args, options: seen.update(between=options["hidden_states"]), with_kwargs=True
        ),
        network.norm_out.register_forward_pre_hook(lambda module, args: seen.update(last=args[0])),
    ]
    x_t = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = backbone.condition(["cat", "dog"])
    maps = intermediates(backbone, x_t, torch.tensor([300, 700]), condition, backbone.layers, stop_early=False)
    for hook in hooks:
        hook.remove()
    assert torch.equal(maps[1].flatten(2).transpose(1, 2), seen["between"])
    assert torch.equal(maps[3].flatten(2).transpose(1, 2), seen["last"])
    assert {each.shape for each in profile(backbone)} == {(16, 4, 4)}


def test_guidance_is_none_unless_the_folder_says_otherwise(tmp_path):
    plain, guided = load(save_flux(tmp_path / "plain")), load(save_flux(tmp_path / "g", settings={"guidance": 3.5}))
    differing = {key for key, value in plain.identity().items() if value != guided.identity()[key]}
    assert (differing, plain.identity()["guidance"]) == ({"guidance"}, "1.0")
    x_t = torch.randn(1, *plain.latent_shape, generator=torch.Generator().manual_seed(0))
    one, other = (each.predict(x_t, torch.tensor([500]), each.condition(["cat"])).eps for each in (plain, guided))
    assert not torch.allclose(one, other, atol=1e-4)
    with pytest.raises(ModelError, match=r"'guidance' in .*diffsight.json must be a number from 0; got 'high'"):
        load(save_flux(tmp_path / "bad", settings={"guidance": "high"}))


def test_distilled_models_are_warned_of_once_and_others_are_not(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(save_flux(tmp_path / "one"))
        load(save_flux(tmp_path / "other", guided=False))
        undone = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        plain = load(save_flux(tmp_path / "third", guided=False, scheduler=undone))
    guided, fast = caplog.messages
    assert "distilled from a guided model. It is told a guidance of 1," in guided
    assert "FLUX.1-schnell, which was distilled into four steps" in fast
    assert plain.tokens(["cat"]).content.shape[1] == 512


def test_texts_are_read_by_t5_and_none_is_cut(backbone, guided, tmp_path):
    tokens, states = backbone.tokens(["a catfish", ""]), backbone.condition(["cat"]).tensors["encoder_hidden_states"]
    assert tokens.content.shape[1] == states.shape[1] == (512 if guided else 256)
    words = tokens.words(0)
    assert [word for word, _ in words] == ["a", "catfish"]
    assert words[0][1] == [0]
    assert tokens.counted()[1].nonzero().flatten().tolist() == [0]
    with pytest.raises(PromptError, match=r"has 18 tokens, but CLIP of .* reads 16: .* only 'a a a"):
        backbone.condition([" ".join("a" * 16)])


def test_rotated_attention_is_not_read(backbone):
    with pytest.raises(InputError, match="no attention between image and text"):
        default_layers(backbone.network)


def test_what_it_cannot_serve_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"ddpm noise levels.*FlowMatchEulerDiscreteScheduler"):
        load(save_flux(tmp_path / "ddpm", scheduler=DDPMScheduler()))
    with pytest.raises(ModelError, match="transformer of 32 channels and latents of 4"):
        load(save_flux(tmp_path / "fill", channels=8))
    folder = save_flux(tmp_path / "odd")
    (folder / "diffsight.json").write_text(json.dumps({"transform": {"size": 18}}))
    with pytest.raises(ModelError, match="multiples of 4 pixels; its transform makes 18"):
        load(folder)
