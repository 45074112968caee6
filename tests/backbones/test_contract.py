"""What every adapter must do, for all families at tiny size, with the real classes of diffusers and transformers."""

import inspect
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from PIL import Image
from pipelines import save_ddpm, save_dit, save_stable_diffusion
from safetensors.torch import load_file, save_file
from tiny.deepfloyd import save_deepfloyd
from tiny.edm import save_edm
from tiny.flux import save_flux
from tiny.pixart import ALPHA, save_pixart
from tiny.sana import save_sana
from tiny.sd3 import NEWER, save_sd3
from tiny.sdxl import save_playground, save_sdxl

from diffsight.backbones import load
from diffsight.backbones.base import Backbone
from diffsight.backbones.layers import intermediates, profile
from diffsight.backbones.sampling import Sampler, draw, to_pixels
from diffsight.cli.options import make_policy
from diffsight.errors import ModelError
from diffsight.zero_shot.classifier import DiffusionClassifier

NAMES = ["cat", "dog", "bird"]
SAVERS = {
    "stable-diffusion": save_stable_diffusion,
    "stable-diffusion-v": partial(save_stable_diffusion, prediction_type="v_prediction"),
    "stable-diffusion-3": save_sd3,
    "stable-diffusion-3.5": partial(save_sd3, **NEWER),
    "flux-dev": save_flux,
    "flux-schnell": partial(save_flux, guided=False),
    "sdxl": save_sdxl,
    "sdxl-edm": save_playground,
    "pixart-alpha": partial(save_pixart, **ALPHA),
    "pixart-sigma": save_pixart,
    "sana": save_sana,
    "deepfloyd": save_deepfloyd,
    "dit": save_dit,
    "adm": partial(save_ddpm, names=NAMES, null=True, learned_variance=True),
    "edm": partial(save_edm, names=NAMES),
}
# What a pipeline of diffusers is called with, so that it feeds its denoiser as the adapter does.
CALLS = {
    "stable-diffusion": {"guidance_scale": 1.0},
    "stable-diffusion-v": {"guidance_scale": 1.0},
    "sdxl": {"guidance_scale": 5.0},
    "sdxl-edm": {"guidance_scale": 1.0},
    "pixart-alpha": {"use_resolution_binning": False},
    "pixart-sigma": {"use_resolution_binning": False},
    "sana": {"use_resolution_binning": False},
    "deepfloyd": {},
    "stable-diffusion-3": {"guidance_scale": 1.0},
    "stable-diffusion-3.5": {"guidance_scale": 1.0},
    "flux-dev": {"guidance_scale": 1.0, "max_sequence_length": 512},
    "flux-schnell": {"guidance_scale": 0.0, "max_sequence_length": 256},
}


@pytest.fixture(scope="module", params=SAVERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return SAVERS[family](tmp_path_factory.mktemp(family))


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


@pytest.fixture
def inputs(backbone):
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(3, *backbone.latent_shape, generator=generator) for _ in range(2))
    last = len(backbone.schedule) - 1
    return x0, eps, torch.tensor([last // 100, last // 2, last * 9 // 10])


def scheduler_of(backbone, folder):
    """Diffusers' own scheduler with the levels of training, whichever sampler the folder names."""
    kinds = {"ddpm": DDPMScheduler, "flow": FlowMatchEulerDiscreteScheduler, "edm": EDMDPMSolverMultistepScheduler}
    place = folder / "scheduler"
    return kinds[backbone.schedule.kind].from_pretrained(place if place.is_dir() else folder)


def test_it_is_a_backbone(backbone):
    assert isinstance(backbone, Backbone)
    assert not backbone.network.training
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_noise_is_mixed_as_diffusers_scheduler_does(backbone, folder, inputs):
    x0, eps, index = inputs
    scheduler = scheduler_of(backbone, folder)
    x_t = backbone.schedule.mix(x0, eps, index)
    if backbone.schedule.kind == "flow":
        times = scheduler.timesteps.flip(0)[index]
        expected = torch.cat([scheduler.scale_noise(x0[[i]], times[[i]], eps[[i]]) for i in range(3)])
        torch.testing.assert_close(backbone.schedule.timesteps[index].float(), times, rtol=1e-4, atol=1e-3)
    elif backbone.schedule.kind == "edm":
        times = scheduler.timesteps.flip(0)[index]
        expected = scheduler.add_noise(x0, eps, times)
        torch.testing.assert_close(backbone.schedule.timesteps[index].float(), times, rtol=1e-5, atol=1e-5)
    else:
        expected = scheduler.add_noise(x0, eps, index)
    torch.testing.assert_close(x_t, expected, atol=1e-4, rtol=1e-4)


def test_a_perfect_prediction_has_no_error_in_any_view(backbone, inputs):
    x0, eps, index = inputs
    x_t = backbone.schedule.mix(x0, eps, index)
    prediction = backbone.predict(x_t, index, backbone.condition(NAMES))
    alpha, sigma = prediction.alpha, prediction.sigma
    target = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}[prediction.kind]
    perfect = replace(prediction, output=target)
    torch.testing.assert_close(perfect.eps, eps, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(perfect.x0, x0, atol=2e-3, rtol=1e-3)


def test_a_row_depends_neither_on_its_neighbours_nor_on_its_place(backbone, inputs):
    x_t, _, index = inputs
    condition = backbone.condition(NAMES)
    together = backbone.predict(x_t, index, condition).eps
    turned = backbone.predict(x_t.flip(0), index.flip(0), condition.take([2, 1, 0])).eps.flip(0)
    torch.testing.assert_close(turned, together, atol=1e-5, rtol=1e-5)
    for row in range(3):
        alone = backbone.predict(x_t[[row]], index[[row]], backbone.condition([NAMES[row]])).eps
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


def test_classes_and_the_null_member_are_told_apart(backbone, inputs):
    x_t, _, index = inputs
    condition = backbone.condition(["cat", "dog"])
    outputs = [
        backbone.predict(x_t[:1], index[1:2], member).eps
        for member in (condition.take([0]), condition.take([1]), condition.nulls(1))
    ]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[first], outputs[second], atol=1e-5)
    last = condition.with_null().take([2])
    torch.testing.assert_close(backbone.predict(x_t[:1], index[1:2], last).eps, outputs[2], atol=1e-5, rtol=1e-5)


def test_an_empty_list_of_names_has_a_null_member_alone(backbone, inputs):
    x_t, _, index = inputs
    condition = backbone.condition([])
    assert len(condition) == 0
    assert backbone.predict(x_t, index, condition.nulls(3)).output.shape == x_t.shape


def test_the_network_may_be_in_half_precision_and_what_is_made_of_it_is_not(backbone, folder, inputs):
    x0, eps, index = inputs
    half = load(folder, dtype="bf16")
    x_t = half.schedule.mix(x0, eps, index)
    prediction = half.predict(x_t, index, half.condition(NAMES))
    expected = backbone.predict(x_t, index, backbone.condition(NAMES))
    assert next(half.network.parameters()).dtype == torch.bfloat16
    assert {each.dtype for each in (prediction.output, prediction.eps, prediction.x0)} == {torch.float32}
    assert not torch.equal(prediction.output, expected.output)
    scale = expected.output.abs().mean()
    assert (prediction.output - expected.output).abs().mean() < 0.1 * scale
    assert half.identity() != backbone.identity()


def test_images_become_latents_and_come_back(backbone):
    side = backbone.transform.output_size
    images = torch.rand(2, 3, side, side) * 2 - 1
    x0 = backbone.encode(images)
    assert x0.shape == (2, *backbone.latent_shape)
    assert x0.dtype == torch.float32
    assert torch.equal(x0, backbone.encode(images))
    decoded = backbone.decode(x0)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1


def test_an_image_is_drawn(backbone):
    noise = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(1))
    condition, scale = backbone.condition(["cat", "dog"]), torch.tensor([1.0, 3.0])
    latents = draw(backbone, condition, scale, noise, sampler=Sampler(steps=2))
    named = "dpm++" if backbone.schedule.kind == "ddpm" else "euler"
    assert torch.equal(latents, draw(backbone, condition, scale, noise, sampler=Sampler(name=named, steps=2)))
    assert latents.isfinite().all()
    pictures = to_pixels(backbone, latents)
    assert pictures.shape == (2, backbone.transform.size, backbone.transform.size, 3)


def test_blocks_have_maps_and_costs(backbone, inputs):
    x_t, _, index = inputs
    assert backbone.layers
    maps = intermediates(backbone, x_t, index, backbone.condition(NAMES), backbone.layers)
    assert all(each.shape[0] == 3 and each.isfinite().all() for each in maps)
    costs = [each.flops for each in profile(backbone)]
    assert costs == sorted(costs)
    assert costs[0] >= 0
    assert costs[-1] > 0


def test_photographs_are_classified(backbone):
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green")]
    judge = DiffusionClassifier(backbone, NAMES, policy=make_policy("exhaustive", 3)).fit()
    verdicts = judge.classify(pictures)
    assert [verdict.calls for verdict in verdicts] == [9, 9]
    assert judge.predict_proba(pictures).sum(1) == pytest.approx([1, 1])


def test_other_weights_are_another_identity(backbone, family, tmp_path):
    other = load(SAVERS[family](tmp_path / "other", seed=1))
    mine, others = backbone.identity(), other.identity()
    assert {key for key in mine if mine[key] != others[key]} == {"weights"}


@pytest.mark.parametrize("family", ["stable-diffusion", "dit", "stable-diffusion-3", "pixart-sigma"], indirect=True)
def test_a_folder_that_lacks_a_weight_is_refused(folder, backbone, tmp_path):
    """Diffusers and transformers would put random numbers in its place."""
    parts = [path for path in folder.iterdir() if [*path.glob("*.safetensors")]]
    for part in parts:
        copy = tmp_path / part.name
        shutil.copytree(folder, copy)
        (file,) = (copy / part.name).glob("*.safetensors")
        weights = load_file(file)
        name = next(name for name in sorted(weights) if name.endswith("weight") and weights[name].ndim > 1)
        save_file({key: value for key, value in weights.items() if key != name}, file, metadata={"format": "pt"})
        with pytest.raises(ModelError, match="lacks 1 weights"):
            load(copy)
    assert len(parts) >= 2


@pytest.mark.parametrize("family", CALLS, indirect=True)
def test_the_network_is_fed_as_diffusers_pipeline_feeds_it(backbone, folder, family):
    """All that the denoiser gets in a pipeline's first call, but the latents, is what it gets from the adapter."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    expected, found = captured(network), captured(backbone.network)
    side = backbone.transform.output_size
    options = {"num_inference_steps": 2, "output_type": "latent", "height": side, "width": side}
    with torch.no_grad():
        pipeline("a photo of a cat", **options, **CALLS[family])
    level = int((backbone.schedule.timesteps - pipeline.scheduler.timesteps[0]).abs().argmin())
    x_t = torch.randn(1, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    backbone.predict(x_t, torch.tensor([level]), backbone.condition(["a photo of a cat"]))
    expected, found = expected[0], found[0]
    assert {"timestep", "encoder_hidden_states"} <= expected.keys() <= found.keys()
    time = torch.as_tensor(expected.pop("timestep")).flatten()[-1]
    torch.testing.assert_close(found["timestep"].flatten()[0].to(time.dtype), time, rtol=2e-3, atol=0)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor) and key not in ("sample", "hidden_states"):
            # With guidance the pipeline's last row is the one with the prompt.
            value = value[-1:] if len(value) == 2 else value
            torch.testing.assert_close(found[key].float(), value.float(), msg=lambda text, key=key: f"{key}: {text}")


def captured(network):
    """A list that gets what each call of a network is given, by name; what is in dictionaries, too."""
    calls = []

    def keep(module, args, kwargs):
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        flat = {key: value for key, value in bound.items() if value is not None and not isinstance(value, dict)}
        for value in bound.values():
            flat |= value if isinstance(value, dict) else {}
        flat.pop("return_dict", None)
        calls.append(flat)

    network.register_forward_pre_hook(keep, with_kwargs=True)
    return calls
