"""Sana beside the contract: Gemma and its instruction, the flow of the published folders, and what is refused."""

import inspect
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, DPMSolverMultistepScheduler, SanaPipeline
from tiny.sana import save_sana

from diffsight.backbones import load
from diffsight.errors import ModelError, PromptError

# Of the scheduler of the published folders.
PUBLISHED = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sana(tmp_path_factory.mktemp("sana"))


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


def test_prompts_masks_and_the_null_member_are_those_of_the_pipeline(folder, backbone):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    asked = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    states, mask, null, null_mask = pipeline.encode_prompt("A Photo of a CAT ", True, complex_human_instruction=asked)
    plain, *_ = pipeline.encode_prompt("A Photo of a CAT ", False)
    condition = backbone.condition(["dog", "A Photo of a CAT "])
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"][1:], states)
    assert torch.equal(condition.tensors["encoder_attention_mask"][1:], mask)
    torch.testing.assert_close(condition.null["encoder_hidden_states"], null)
    assert torch.equal(condition.null["encoder_attention_mask"], null_mask)
    assert not torch.allclose(plain[:, 1:6], states[:, 1:6], atol=1e-3)


def test_latents_are_scaled_as_the_pipeline_scales_them(folder, backbone):
    pipeline = DiffusionPipeline.from_pretrained(folder)
    options = {"height": 32, "width": 32, "num_inference_steps": 1, "use_resolution_binning": False}
    latents, pictures = (
        pipeline("cat", output_type=kind, generator=torch.Generator().manual_seed(0), **options).images
        for kind in ("latent", "pt")
    )
    torch.testing.assert_close(backbone.decode(latents) / 2 + 0.5, pictures, atol=1e-5, rtol=1e-4)
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    again = pipeline.vae(images).sample.clamp(-1, 1)
    torch.testing.assert_close(backbone.decode(backbone.encode(images)), again, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of numpy 2, at how diffusers makes an array of a tensor.
def test_levels_and_velocity_are_those_of_the_published_scheduler(tmp_path):
    scheduler = DPMSolverMultistepScheduler(**PUBLISHED)
    backbone = load(save_sana(tmp_path / "sana", scheduler=scheduler))
    scheduler.set_timesteps(999)  # All levels but that of pure noise, which it leaves out.
    torch.testing.assert_close(backbone.schedule.sigma[:999].float(), scheduler.sigmas[:-1].flip(0), atol=1e-6, rtol=0)
    times = scheduler.timesteps.flip(0).double()
    assert (backbone.schedule.timesteps[:999] - times).abs().max() < 1.001  # It rounds them off.
    x_t, level = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0)), 700
    prediction = backbone.predict(x_t, torch.tensor([level]), backbone.condition(["cat"]))
    scheduler._init_step_index(scheduler.timesteps[998 - level])
    x0 = scheduler.convert_model_output(prediction.output, sample=x_t)
    torch.testing.assert_close(prediction.x0, x0, atol=1e-5, rtol=1e-5)


def test_the_longest_prompt_that_the_transformer_is_given_is_read(backbone):
    mask = backbone.condition(["cat " * 299, "cat"]).tensors["encoder_attention_mask"]
    assert mask.sum(1).tolist() == [300, 2]
    with pytest.raises(PromptError, match=r"has 299 tokens, but .* reads 298") as caught:
        backbone.condition(["cat", "cat " * 300])
    assert "Enhanced prompt" not in str(caught.value)


def test_tokens_are_those_that_the_transformer_is_given(backbone):
    texts = ["a photo of a cat", "7 dogs", ""]
    tokens = backbone.tokens(texts)
    assert [word for word, _ in tokens.words(0)] == ["a", "photo", "of", "a", "cat"]
    assert [word for word, _ in tokens.words(1)] == ["7", "dogs"]
    given = backbone.condition(texts).tensors["encoder_attention_mask"].sum(1)
    assert torch.equal(tokens.end.int().argmax(1), given - 1)
    # The first token of all is no word, nor is the instruction's last where the prompt does not join it.
    assert tokens.content.sum(1).tolist() == [5, 3, 0]
    assert [len(pieces) for pieces in tokens.pieces] == given.tolist()
    assert backbone.tokens([]).content.shape == (0, 300)


def test_parts_in_half_precision_beside_the_others_are_not_what_is_loaded(folder, backbone, tmp_path):
    """As on the Hub, where a download may bring them along."""
    other = shutil.copytree(folder, tmp_path / "sana")
    (other / "text_encoder" / "model.fp16-00001-of-00002.safetensors").write_bytes(b"half of it")
    assert load(other).identity() == backbone.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": DDPMScheduler()}, "none of a flow"),
        ({"scheduler": DPMSolverMultistepScheduler(**PUBLISHED | {"prediction_type": "epsilon"})}, "none of a flow"),
        ({"guidance_embeds": True}, "fed a guidance scale"),
        ({"out_channels": 16}, "16 channels of 8"),
    ],
)
def test_another_sort_of_sana_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        load(save_sana(tmp_path / "sana", **changes))
