import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from pipelines import save_dit, save_stable_diffusion

from diffsight.backbones import load
from diffsight.errors import PromptError

KINDS = ["epsilon", "v_prediction", "sample", "dit"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    return save_dit(path) if request.param == "dit" else save_stable_diffusion(path, prediction_type=request.param)


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


@pytest.fixture
def inputs(backbone):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randn(3, *backbone.latent_shape, generator=generator)
    eps = torch.randn(3, *backbone.latent_shape, generator=generator)
    return x0, eps, torch.tensor([5, 400, 950])


def test_x0_agrees_with_diffusers_own_scheduler(backbone, folder, inputs):
    x0, eps, index = inputs
    scheduler = (DDIMScheduler if backbone.class_names else DDPMScheduler).from_pretrained(folder / "scheduler")
    x_t = backbone.schedule.mix(x0, eps, index)
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, eps, index), atol=1e-5, rtol=1e-5)
    prediction = backbone.predict(x_t, index, backbone.condition(["cat", "dog", "bird"]))
    scheduler.set_timesteps(1000)
    for row in range(3):
        step = scheduler.step(prediction.output[row], int(index[row]), x_t[row])
        torch.testing.assert_close(prediction.x0[row], step.pred_original_sample, atol=1e-3, rtol=1e-3)


def test_a_row_does_not_depend_on_its_neighbours(backbone, inputs):
    x_t, _, index = inputs
    condition = backbone.condition(["cat", "dog", "bird"])
    together = backbone.predict(x_t, index, condition).eps
    for row in range(3):
        alone = backbone.predict(x_t[[row]], index[[row]], condition.take([row])).eps
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_the_null_member_is_a_condition_of_its_own(backbone, inputs):
    x_t, _, index = inputs
    condition = backbone.condition(["cat", "cat", "cat"])
    with_class = backbone.predict(x_t, index, condition).eps
    without = backbone.predict(x_t, index, condition.nulls(3)).eps
    assert not torch.allclose(with_class, without, atol=1e-4)


def test_members_are_taken_by_position(backbone):
    condition = backbone.condition(["cat", "dog", "bird"])
    taken = condition.take([2, 0, 2])
    assert taken.names == ("bird", "cat", "bird")
    for key, value in taken.tensors.items():
        assert torch.equal(value, condition.tensors[key][[2, 0, 2]])


def test_encoding_is_repeatable_and_has_the_latents_shape(backbone):
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    x0 = backbone.encode(images)
    assert x0.shape == (2, *backbone.latent_shape)
    assert torch.equal(x0, backbone.encode(images))
    assert backbone.decode(x0).shape == images.shape


def test_text_embeddings_are_those_of_the_pipeline(tmp_path):
    folder = save_stable_diffusion(tmp_path / "sd")
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    expected, null = pipeline.encode_prompt("a photo of a cat", "cpu", 1, True)
    condition = load(folder).condition(["a photo of a cat", "dog"])
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"][:1], expected)
    torch.testing.assert_close(condition.null["encoder_hidden_states"], null)


def test_too_long_prompts_are_refused_with_what_would_be_left(tmp_path):
    backbone = load(save_stable_diffusion(tmp_path / "sd"))
    with pytest.raises(PromptError, match="22 tokens") as caught:
        backbone.condition(["cat", "a photo of a " + "dog " * 16])
    assert "reads 16" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"), [("cow", "not one of them"), ("3", "ids go from 0 to 2"), ("1000", "ids go from 0 to 2")]
)
def test_the_null_class_and_unknown_classes_are_no_candidates(tmp_path, name, message):
    backbone = load(save_dit(tmp_path / "dit"))
    with pytest.raises(PromptError, match=message):
        backbone.condition([name])


def test_class_ids_may_be_written_as_text(tmp_path):
    backbone = load(save_dit(tmp_path / "dit"))
    assert backbone.condition(["bird", "2", "0"]).tensors["class_labels"].tolist() == [2, 2, 0]
    assert backbone.condition(["cat"]).null["class_labels"].tolist() == [3]


def test_learned_variance_agrees_with_diffusers(tmp_path):
    backbone = load(save_dit(tmp_path / "dit"))
    scheduler = DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", variance_type="learned_range", clip_sample=False
    )
    generator = torch.Generator().manual_seed(0)
    x_t, index = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([3, 400, 990])
    condition = backbone.condition(["cat", "dog", "bird"])
    prediction = backbone.predict(x_t, index, condition)
    output = backbone.transformer(x_t, index, class_labels=condition.tensors["class_labels"]).sample
    for row in range(3):
        factor = output[row, 4:]
        expected = scheduler._get_variance(int(index[row]), predicted_variance=factor, variance_type="learned_range")
        torch.testing.assert_close(prediction.log_variance[row], expected, atol=1e-4, rtol=1e-4)
