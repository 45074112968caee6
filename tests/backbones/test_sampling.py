import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from gaussians import SCHEDULE, GaussianBackbone
from pipelines import save_ddpm, save_dit, save_stable_diffusion

from diffsight import load
from diffsight.backbones.cards import assets
from diffsight.backbones.sampling import SAMPLERS, Sampler, draw, join, to_pixels
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import edm, flow
from diffsight.errors import InputError, NumericsError

PROMPTS = ["an image of a bag", "a photo of a coat.", "a sketch of a dress"]


def noise_for(backbone, count, seed=0):
    return torch.randn(count, *backbone.latent_shape, generator=torch.Generator().manual_seed(seed))


def scheduler_of(name, config, **own):
    match name:
        case "ddim":
            return DDIMScheduler.from_config(config, set_alpha_to_one=False, clip_sample=False, **own)
        case "dpm++":
            return DPMSolverMultistepScheduler.from_config(config, **{"timestep_spacing": "linspace", **own})
        case _:
            return EulerDiscreteScheduler.from_config(config, **own)


def pipeline_latents(folder, name, prompts, noise, scale, steps, **own):
    """What diffusers' own pipeline gives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of diffusers and numpy, about one another
        pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler_of(name, pipeline.scheduler.config, **own)
        return pipeline(
            prompts, latents=noise, guidance_scale=scale, num_inference_steps=steps, output_type="latent"
        ).images


@pytest.fixture(scope="module")
def fashion():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return load(save_stable_diffusion(tmp_path_factory.mktemp("sd")), device="cpu", dtype="fp32")


class Counting:
    """Counts the rows that a backbone's denoiser gets."""

    def __init__(self, monkeypatch, backbone):
        self.rows, kind = [], type(backbone)
        predict = kind.predict

        def counted(backbone, x_t, index, condition):
            self.rows.append(len(x_t))
            return predict(backbone, x_t, index, condition)

        monkeypatch.setattr(kind, "predict", counted)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_it_draws_what_diffusers_own_pipeline_draws(fashion, name, scale):
    noise = noise_for(fashion, len(PROMPTS))
    theirs = pipeline_latents(assets() / "tiny-fashion", name, PROMPTS, noise.clone(), scale, 10)
    condition = fashion.condition(PROMPTS)
    ours = draw(fashion, condition, torch.full((3,), scale), noise, sampler=Sampler(name=name, steps=10))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_zero_terminal_snr_is_sampled_from_pure_noise(tmp_path, name):
    folder = save_stable_diffusion(tmp_path, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    backbone = load(folder, device="cpu", dtype="fp32")
    noise = noise_for(backbone, 2)
    theirs = pipeline_latents(folder, name, ["a cat", "a dog"], noise.clone(), 3.0, 8, timestep_spacing="trailing")
    sampler = Sampler(name=name, steps=8)
    ours = draw(backbone, backbone.condition(["a cat", "a dog"]), torch.full((2,), 3.0), noise, sampler=sampler)
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("output", ["eps", "x0", "v"])
def test_a_gaussian_is_sampled_as_its_closed_form_says(name, output):
    means = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1).expand(2, 2, 4, 4).contiguous()
    backbone = GaussianBackbone(means=means, spread=0.6, output=output)
    noise = noise_for(backbone, 2)
    sampler = Sampler(name=name, steps=500)
    got = draw(backbone, backbone.condition(["class 0", "class 1"]), torch.ones(2), noise, sampler=sampler)
    alpha, sigma = SCHEDULE.alpha[-1].item(), SCHEDULE.sigma[-1].item()
    gain = 0.6 / (alpha**2 * 0.6**2 + sigma**2) ** 0.5
    torch.testing.assert_close(got, means + gain * (noise - alpha * means), atol=0.03, rtol=0)


def test_edm_is_sampled_by_euler():
    means = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1).expand(2, 2, 4, 4).contiguous()
    backbone = GaussianBackbone(means=means, spread=0.6, output="eps", schedule=edm())
    noise = noise_for(backbone, 2)
    condition = backbone.condition(["class 0", "class 1"])
    got = draw(backbone, condition, torch.ones(2), noise, sampler=Sampler(name="euler", steps=500))
    start = (80.0**2 + 1) ** 0.5 * noise
    torch.testing.assert_close(got, means + 0.6 / (80**2 + 0.6**2) ** 0.5 * (start - means), atol=0.03, rtol=0)


class FlowingGaussian(GaussianBackbone):
    """Gives the flow itself, which is known where nothing of the image is left."""

    def predict(self, x_t, index, condition):
        alpha, sigma = self.schedule.at(index, like=x_t)
        mean, total = self.means[condition.tensors["k"]], alpha**2 * self.spread**2 + sigma**2
        rest = x_t - alpha * mean
        velocity = (sigma - alpha * self.spread**2) / total * rest - mean
        return Prediction(output=velocity, kind="flow", x_t=x_t, alpha=alpha, sigma=sigma)


def test_a_rectified_flow_is_sampled_by_euler():
    means = torch.tensor([0.5, -2.0]).view(2, 1, 1, 1).expand(2, 2, 4, 4).contiguous()
    backbone = FlowingGaussian(means=means, spread=0.6, output="flow", schedule=flow(1000, shift=3.0))
    noise = noise_for(backbone, 2)
    condition = backbone.condition(["class 0", "class 1"])
    got = draw(backbone, condition, torch.ones(2), noise, sampler=Sampler(name="euler", steps=500))
    torch.testing.assert_close(got, means + 0.6 * noise, atol=0.03, rtol=0)
    with pytest.raises(InputError, match="rectified flow, which the sampler 'ddim' does not know"):
        Sampler(name="ddim").check(backbone)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_row_does_not_depend_on_its_neighbours(sd, name):
    prompts, scales = ["a cat", "a dog", "a bird", "of"], torch.tensor([1.0, 7.5, 3.0, 1.0])
    condition, noise, sampler = sd.condition(prompts), noise_for(sd, 4), Sampler(name=name, steps=5)
    together = draw(sd, condition, scales, noise, sampler=sampler)
    for row in range(4):
        alone = draw(sd, condition.take([row]), scales[row : row + 1], noise[row : row + 1], sampler=sampler)
        torch.testing.assert_close(alone[0], together[row], atol=1e-4, rtol=1e-4)
    again = draw(sd, condition.take([1] * 4), scales[[1] * 4], noise[[1] * 4], sampler=sampler)
    assert torch.equal(again[1], together[1])  # the same place in a batch of the same shape: to the bit


def test_the_null_condition_is_run_only_where_it_is_needed(sd, monkeypatch):
    counting = Counting(monkeypatch, sd)
    condition, noise, sampler = sd.condition(["a cat", "a dog"]), noise_for(sd, 2), Sampler(name="ddim", steps=4)
    unguided = draw(sd, condition, torch.ones(2), noise, sampler=sampler)
    assert counting.rows == [2] * 4 == [2] * sampler.calls(guided=False)
    counting.rows.clear()
    mixed = draw(sd, condition, torch.tensor([1.0, 2.0]), noise, sampler=sampler)
    assert counting.rows == [2] * 8 == [2] * sampler.calls(guided=True)
    assert torch.equal(mixed[0], unguided[0])


def test_the_global_random_state_decides_nothing(sd):
    condition, noise = sd.condition(["a cat"]), noise_for(sd, 1)
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        drawn.append(draw(sd, condition, torch.full((1,), 2.0), noise, sampler=Sampler(steps=3)))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", SAMPLERS)
def test_class_conditional_models_are_sampled_too(tmp_path, name):
    dit = load(save_dit(tmp_path / "dit"), device="cpu", dtype="fp32")
    noise = noise_for(dit, 2)
    sampler = Sampler(name=name, steps=4)
    drawn = draw(dit, dit.condition(["cat", "bird"]), torch.tensor([1.0, 4.0]), noise, sampler=sampler)
    assert drawn.shape == noise.shape
    assert drawn.isfinite().all()
    pixels = load(save_ddpm(tmp_path / "ddpm", names=("cat", "dog"), learned_variance=True), device="cpu", dtype="fp32")
    start = noise_for(pixels, 2)
    drawn = draw(pixels, pixels.condition(["cat", "dog"]), torch.ones(2), start, sampler=sampler)
    assert to_pixels(pixels, drawn).shape == (2, 16, 16, 3)
    if name != "ddim":  # which ends at the first noise level
        assert drawn.abs().max() <= 1 + 1e-5  # what is said of the clean image is clipped


def test_pictures_have_neither_border_nor_colour_that_the_transform_adds(fashion):
    latents = noise_for(fashion, 20)
    pictures = to_pixels(fashion, latents)
    assert pictures.shape == (20, 28, 28, 3)
    assert pictures.dtype == np.uint8
    assert (pictures[..., 0] == pictures[..., 1]).all()
    whole = (fashion.decode(latents[:16])[3, :, 2:-2, 2:-2] + 1) * 127.5
    grey = (whole * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    assert np.abs(pictures[3, :, :, 0] - grey.numpy()).max() <= 0.51
    plain = replace(fashion, transform=ImageTransform(size=32))
    assert to_pixels(plain, latents[:1]).shape == (1, 32, 32, 3)


def test_what_is_not_a_number_is_no_picture(fashion):
    latents = noise_for(fashion, 2)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(NumericsError, match=r"not a number in float32.*lower guidance"):
        to_pixels(fashion, latents)


def test_conditions_are_joined(sd):
    one, two = sd.condition(["a cat"]), sd.condition(["a dog", "a bird"])
    joined = join([one, two, one])
    assert joined.names == ("a cat", "a dog", "a bird", "a cat")
    expected = sd.condition(["a cat", "a dog", "a bird", "a cat"]).tensors["encoder_hidden_states"]
    torch.testing.assert_close(joined.tensors["encoder_hidden_states"], expected)


def test_what_cannot_be_sampled_is_refused(sd):
    with pytest.raises(InputError, match=r"Unknown sampler 'dpm'. Did you mean 'dpm\+\+'"):
        Sampler(name="dpm")
    for steps in (0, True):
        with pytest.raises(InputError, match="whole number of steps"):
            Sampler(steps=steps)
    with pytest.raises(InputError, match="1000 noise levels: at most 999 steps; got 1000"):
        Sampler(steps=1000).check(sd)
    with pytest.raises(InputError, match=r"EDM's noise levels, which the sampler 'dpm\+\+' does not know. Use 'euler'"):
        Sampler(name="dpm++").check(replace(sd, schedule=edm()))
    Sampler().check(replace(sd, schedule=edm()))
    with pytest.raises(InputError, match="got 1, 2 and 2"):
        draw(sd, sd.condition(["a"]), torch.ones(2), noise_for(sd, 2), sampler=Sampler())
    for name in SAMPLERS:
        Sampler(name=name, steps=999).check(sd)
