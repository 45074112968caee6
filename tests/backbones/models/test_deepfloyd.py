"""DeepFloyd IF beside the contract: its text, its variance, and the stages that are refused."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from tiny.deepfloyd import save_deepfloyd

from diffsight.backbones import load
from diffsight.errors import ModelError, PromptError
from diffsight.matching.attention import attention_layers, default_layers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_deepfloyd(tmp_path_factory.mktemp("if"))


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


def test_prompts_and_the_null_member_are_those_of_the_pipeline(folder, backbone):
    states, null = DiffusionPipeline.from_pretrained(folder).encode_prompt("A Photo of a CAT ", True)
    condition = backbone.condition(["dog", "A Photo of a CAT "])
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"][1:], states)
    torch.testing.assert_close(condition.null["encoder_hidden_states"], null)


def test_x0_and_variance_agree_with_diffusers(folder, backbone):
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", thresholding=False, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    x_t, index = torch.randn(3, 3, 16, 16, generator=generator), torch.tensor([3, 400, 900])
    condition = backbone.condition(["cat", "dog", "bird"])
    prediction = backbone.predict(x_t, index, condition)
    output = backbone.unet(x_t, index, **condition.tensors).sample
    for row in range(3):
        time = int(index[row])
        step = scheduler.step(output[[row]], time, x_t[[row]])
        torch.testing.assert_close(prediction.x0[[row]], step.pred_original_sample, atol=1e-3, rtol=1e-3)
        expected = scheduler._get_variance(time, predicted_variance=output[row, 3:])
        torch.testing.assert_close(prediction.log_variance[row], expected, atol=1e-4, rtol=1e-4)


def test_it_reads_77_tokens(backbone):
    backbone.condition(["cat " * 76])
    with pytest.raises(PromptError, match=r"78 tokens, but .* reads 77"):
        backbone.condition(["cat " * 77])


def test_its_images_are_cut_to_a_square_before_they_are_made_small(backbone):
    assert (backbone.transform.resize, backbone.transform.interpolation) == ("crop_first", "bicubic")


def test_its_attention_to_text_is_found(backbone):
    layers = attention_layers(backbone.network)
    assert [(layer.name, layer.heads) for layer in layers] == [
        ("down.1.0", 2),
        ("mid.0", 2),
        ("up.0.0", 2),
        ("up.0.1", 2),
    ]
    assert all(layer.joint for layer in layers)
    assert default_layers(backbone.network) == layers


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 6}, "stages II and III"),
        ({"class_embed_type": "timestep"}, "stages II and III"),
        ({"out_channels": 9}, "9, neither as many"),
        ({"sample_size": 15}, "cannot be halved"),
        ({"text": False}, "no text encoder"),
        ({"scheduler": DDPMScheduler(variance_type="learned")}, "variance itself"),
    ],
)
def test_what_is_no_first_stage_is_refused(tmp_path, changes, message):
    with pytest.raises(ModelError, match=message):
        load(save_deepfloyd(tmp_path / "if", **changes))


def test_the_pipeline_of_the_second_stage_is_refused(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text()) | {"_class_name": "IFSuperResolutionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="IFSuperResolutionPipeline"):
        load(tmp_path)
