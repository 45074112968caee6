import json
import shutil

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionXLPipeline
from tiny.sdxl import PLAYGROUND, save_playground, save_sdxl

from diffsight.backbones import load
from diffsight.backbones.sampling import Sampler, draw
from diffsight.data.prompts import PromptSet
from diffsight.errors import ModelError, PromptError
from diffsight.matching.attention import attention_layers, default_layers
from diffsight.zero_shot.settings import Settings, prepare

PROMPTS = ["a photo of a cat", "a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def playground(tmp_path_factory):
    return save_playground(tmp_path_factory.mktemp("playground"))


def pipeline_of(folder):
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def altered(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("form", [{}, {"zeros": False}, {"first": False}])
def test_texts_and_the_null_member_are_those_of_the_pipeline(tmp_path, form):
    # With the second encoder alone the tokens are of its width.
    width = {} if form.get("first", True) else {"cross_attention_dim": 24}
    folder = save_sdxl(tmp_path / "sdxl", **form, **width)
    states, null, pooled, null_pooled = pipeline_of(folder).encode_prompt(PROMPTS, device="cpu")
    condition = load(folder).condition(PROMPTS)
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"], states)
    torch.testing.assert_close(condition.tensors["text_embeds"], pooled)
    torch.testing.assert_close(condition.null["encoder_hidden_states"], null[:1])
    torch.testing.assert_close(condition.null["text_embeds"], null_pooled[:1])
    assert condition.null["text_embeds"].any() == (form == {"zeros": False})


def test_the_empty_prompt_is_a_prompt_and_not_the_null_member(folder):
    condition = load(folder).condition([""])
    expected = pipeline_of(folder).encode_prompt([""], device="cpu")
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"], expected[0])
    assert condition.tensors["encoder_hidden_states"].any()


def test_pictures_are_said_to_be_whole_and_of_the_size_that_they_are(tmp_path):
    folder = save_sdxl(tmp_path / "sdxl")
    assert load(folder).condition(["cat", "dog"]).tensors["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]] * 2
    (folder / "diffsight.json").write_text('{"transform": {"size": 32}}')
    backbone = load(folder)
    assert backbone.latent_shape == (4, 16, 16)
    assert backbone.condition([]).null["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]]


def test_the_null_member_belongs_to_the_identity(tmp_path):
    zeros, empty = save_sdxl(tmp_path / "zeros"), save_sdxl(tmp_path / "empty", zeros=False)
    mine, other = load(zeros).identity(), load(empty).identity()
    assert {key for key in mine if mine[key] != other[key]} == {"null"}


def test_the_vocabularies_of_both_tokenizers_belong_to_the_identity(tmp_path, folder):
    for part in ("tokenizer", "tokenizer_2"):
        other = shutil.copytree(folder, tmp_path / part)
        content = json.loads((other / part / "tokenizer.json").read_text())
        vocabulary = content["model"]["vocab"]
        vocabulary["cat</w>"], vocabulary["dog</w>"] = vocabulary["dog</w>"], vocabulary["cat</w>"]
        (other / part / "tokenizer.json").write_text(json.dumps(content))
        assert load(other).identity()["weights"] != load(folder).identity()["weights"]


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_edm_draws_what_the_pipeline_draws(playground, scale):
    """Ten steps of EDMEulerScheduler are at levels of the schedule: 9 divides 999."""
    backbone, pipeline = load(playground, dtype="fp32"), pipeline_of(playground)
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    options = {"height": 16, "width": 16, "num_inference_steps": 10, "guidance_scale": scale}
    theirs = pipeline(PROMPTS, latents=noise.clone(), output_type="latent", **options).images
    condition, scales = backbone.condition(PROMPTS), torch.full((2,), scale)
    ours = draw(backbone, condition, scales, noise, sampler=Sampler(name="euler", steps=10))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    images = pipeline(PROMPTS, latents=noise.clone(), output_type="pt", **options).images
    torch.testing.assert_close(backbone.decode(ours), images * 2 - 1, atol=1e-4, rtol=1e-4)


def test_latents_have_the_mean_and_deviation_of_the_vae(playground, folder):
    backbone = load(playground)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    mean, deviation = (torch.tensor(values).view(4, 1, 1) for values in PLAYGROUND.values())
    posterior = backbone.space.vae.encode(images).latent_dist.mean
    torch.testing.assert_close(backbone.encode(images), (posterior - mean) * 0.5 / deviation)
    assert backbone.identity()["latents"] != load(folder).identity()["latents"]


def test_attention_between_image_and_text_is_found(folder):
    network = load(folder).network
    names = [layer.name for layer in attention_layers(network)]
    assert names == ["down.1.0", "down.1.0.1", "mid.0", "mid.0.1", "up.0.0", "up.0.0.1", "up.0.1", "up.0.1.1"]
    assert len(default_layers(network)) == 8


def test_averaged_embeddings_keep_what_else_the_network_is_told(folder):
    backbone = load(folder)
    prompts = PromptSet.from_templates(["cat", "dog"], ["a {}", "a photo of {}"])
    condition = prepare(backbone, prompts, Settings(ensemble="embedding")).scorer.condition
    expected = backbone.condition(["a cat", "a photo of cat", "a dog", "a photo of dog"]).tensors
    for key, rows in expected.items():
        torch.testing.assert_close(condition.tensors[key], rows.view(2, 2, *rows.shape[1:]).mean(1))


def test_too_long_prompts_are_refused_with_the_encoder_that_would_cut_them(folder):
    backbone = load(folder)
    for ask in (backbone.condition, backbone.tokens):
        with pytest.raises(PromptError, match=r"22 tokens, but .*\(text_encoder\) reads 16"):
            ask(["cat", "a photo of a " + "dog " * 16])


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"addition_embed_type": None}, "takes None beside the text"),
        ({"projection_class_embeddings_input_dim": 20 + 5 * 8}, "8 numbers fewer .* refiner"),
        ({"in_channels": 9}, "9 channels"),
        ({"cross_attention_dim": 24}, "texts of 24 numbers, and its text encoders give 40"),
        ({"scheduler": FlowMatchEulerDiscreteScheduler()}, "rectified flow"),
        ({"scheduler": DDPMScheduler(prediction_type="flow")}, "prediction_type 'flow'"),
        ({"second": False}, "no text_encoder_2"),
        ({"max_length": 8}, "'text_encoder': 16, 'text_encoder_2': 8"),
    ],
)
def test_folders_that_would_be_misread_are_refused(tmp_path, form, message):
    folder = save_sdxl(tmp_path / "sdxl", **form)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_an_edm_folder_that_predicts_something_else_is_refused(tmp_path):
    folder = save_playground(tmp_path / "playground")
    altered(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")
    with pytest.raises(ModelError, match="EDMEulerScheduler with prediction_type 'sample'"):
        load(folder)
