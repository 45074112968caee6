import json
import logging

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusion3Pipeline
from PIL import Image
from tiny.sd3 import NEWER, WIDTH, save_sd3

from diffsight.backbones import load
from diffsight.backbones.layers import find_layers, intermediates
from diffsight.backbones.sampling import Sampler, draw
from diffsight.errors import ModelError, PromptError
from diffsight.matching.explaining import explain
from diffsight.matching.settings import MatchSettings


@pytest.fixture(scope="module", params=[True, False], ids=["t5", "no-t5"])
def with_t5(request):
    return request.param


@pytest.fixture(scope="module")
def folder(with_t5, tmp_path_factory):
    return save_sd3(tmp_path_factory.mktemp("sd3"), t5=with_t5, **NEWER)


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


def test_it_draws_what_the_pipeline_draws(backbone, folder, with_t5):
    """With guidance, so that the null member counts; a wrong sign, unit of time or latent would show at once."""
    missing = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **missing)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    expected = pipeline(
        "a photo of a cat",
        height=16,
        width=16,
        sigmas=[1.0, 0.75, 0.5, 0.25],  # Before the shift, which the pipeline's scheduler adds.
        num_inference_steps=4,
        guidance_scale=2.5,
        latents=noise,
        output_type="latent",
    ).images
    sampler = Sampler(name="euler", steps=4)
    found = draw(backbone, backbone.condition(["a photo of a cat"]), torch.tensor([2.5]), noise, sampler=sampler)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_without_t5_its_places_are_zeros(backbone, with_t5):
    states = backbone.condition(["cat"]).tensors["encoder_hidden_states"]
    assert states.shape == (1, 16 + 256, WIDTH)
    assert bool(states[:, 16:].any()) is with_t5
    assert ("no T5" in backbone.identity()["text"]) is not with_t5


def test_layers_are_the_blocks_image_tokens(backbone):
    """The last block's map is what the network makes its output of, and not the text that runs beside it."""
    seen = {}
    hook = backbone.network.norm_out.register_forward_pre_hook(lambda module, args: seen.update(last=args[0]))
    x_t = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    inputs = (backbone, x_t, torch.tensor([300, 700]), backbone.condition(["cat", "dog"]))
    layers = find_layers(backbone, ["block.0", "b3"])
    first, last = intermediates(*inputs, layers, stop_early=False)
    hook.remove()
    assert torch.equal(last.flatten(2).transpose(1, 2), seen["last"])
    extra = torch.full((1, 16, 16), 0.5)
    changed, after = intermediates(*inputs, layers, add={layers[0].path: extra})
    torch.testing.assert_close(changed, first + 0.5)
    assert not torch.allclose(after, last, atol=1e-4)


def test_attention_shows_the_places_of_the_words(backbone):
    settings = MatchSettings()
    explanation = explain(backbone, Image.new("RGB", (16, 16), "red"), "a photo of a cat", settings=settings, draws=2)
    assert explanation.words == ("start", "a", "photo", "of", "a", "cat", "end")
    tokens = backbone.tokens(["a photo of a cat"])
    assert tokens.content.shape == (1, backbone.condition(["cat"]).tensors["encoder_hidden_states"].shape[1])
    assert tokens.content[0].nonzero().flatten().tolist() == [1, 2, 3, 4, 5]


def test_the_shortest_reader_decides_what_is_too_long(backbone, tmp_path):
    with pytest.raises(PromptError, match=r"has 18 tokens, but CLIP 1 of .* reads 16: .* only 'a a a"):
        backbone.condition(["cat", " ".join("a" * 16)])
    patient = load(save_sd3(tmp_path / "patient", max_length=400))
    assert patient.tokens([" ".join("a" * 255)]).content.sum() == 255
    for read in (patient.tokens, patient.condition):
        with pytest.raises(PromptError, match=r"has 257 tokens, but T5 of .* reads 256"):
            read([" ".join("a" * 256)])


def test_what_it_cannot_serve_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"ddpm noise levels.*FlowMatchEulerDiscreteScheduler"):
        load(save_sd3(tmp_path / "ddpm", scheduler=DDPMScheduler()))
    folder = save_sd3(tmp_path / "sizes")
    for size in (18, 28):
        (folder / "diffsight.json").write_text(json.dumps({"transform": {"size": size}}))
        with pytest.raises(ModelError, match=f"multiples of 4, up to 24 pixels; its transform makes {size}"):
            load(folder)


def test_a_turbo_model_is_warned_of_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load(save_sd3(tmp_path / "stable-diffusion-3.5-large-turbo"))
        assert "few steps" in caplog.text
        assert len(caplog.records) == 1
        load(save_sd3(tmp_path / "stable-diffusion-3.5-large"))
    assert len(caplog.records) == 1
