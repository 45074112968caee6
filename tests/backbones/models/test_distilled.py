"""Models that were distilled into few steps are refused or warned of, by what their folders tell."""

import json
import logging
import shutil
from functools import partial

import pytest
from diffusers import StableDiffusionPipeline
from pipelines import save_stable_diffusion
from tiny.sdxl import save_sdxl

from diffsight.backbones import load
from diffsight.errors import ModelError


@pytest.fixture
def warned(caplog):
    """What was said at a load."""

    def said(folder):
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="diffsight"):
            load(folder)
        return [record.getMessage() for record in caplog.records if record.name.startswith("diffsight")]

    return said


def altered(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def scheduled(folder, other, **scheduler):
    """A copy with another scheduler."""
    shutil.copytree(folder, other)
    altered(other / "scheduler" / "scheduler_config.json", **scheduler)
    return other


@pytest.mark.parametrize("save", [save_stable_diffusion, partial(save_sdxl, time_cond_proj_dim=8)])
def test_a_network_that_is_fed_its_guidance_is_refused(tmp_path, save):
    folder = save(tmp_path / "model")
    altered(folder / "unet" / "config.json", time_cond_proj_dim=8)
    with pytest.raises(ModelError, match=r"latent consistency model.*distilled from"):
        load(folder)


def test_the_pipeline_of_consistency_models_is_refused_with_the_reason(tmp_path):
    folder = save_stable_diffusion(tmp_path / "model")
    altered(folder / "model_index.json", _class_name="LatentConsistencyModelPipeline")
    with pytest.raises(ModelError, match=r"is a LatentConsistencyModelPipeline: .*distilled from"):
        load(folder)


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return save_sdxl(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        ({"_class_name": "LCMScheduler"}, "its scheduler is LCMScheduler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}, "'trailing' spacing"),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, "'trailing' spacing"),
    ],
)
def test_a_scheduler_of_few_steps_is_warned_of_once(sdxl, tmp_path, warned, scheduler, reason):
    (message,) = warned(scheduled(sdxl, tmp_path / "model", **scheduler))
    assert reason in message
    assert "doubtful" in message


def test_a_name_is_warned_of_wherever_the_folder_has_it(tmp_path, warned):
    for name in ("sdxl-turbo", "RealVisXL_V4.0_Lightning", "Hyper-SDXL"):
        (message,) = warned(save_sdxl(tmp_path / name))
        assert f"in the name {name}" in message
    folder = save_stable_diffusion(tmp_path / "model")
    altered(folder / "unet" / "config.json", _name_or_path="stabilityai/sd-turbo")
    (message,) = warned(folder)
    assert "'turbo' in the name stabilityai/sd-turbo" in message


@pytest.mark.parametrize(
    "scheduler",
    [
        {},
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
        {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing"},
    ],
)
def test_ordinary_models_are_not_warned_of(sdxl, tmp_path, warned, scheduler):
    assert warned(scheduled(sdxl, tmp_path / "turbo" / "hyperrealism-xl", **scheduler)) == []


def test_a_pipeline_that_was_saved_again_is_not_warned_of(tmp_path, warned):
    folder = save_stable_diffusion(tmp_path / "first")
    StableDiffusionPipeline.from_pretrained(folder).save_pretrained(tmp_path / "second")
    assert warned(tmp_path / "second") == []
