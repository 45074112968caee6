"""UNets on pixels with EDM's noise levels, against diffusers' own EDM scheduler."""

import pytest
import torch
from diffusers import EDMEulerScheduler
from pipelines import save_stable_diffusion
from tiny.edm import save_edm

from diffsight.backbones import load
from diffsight.errors import ModelError, PromptError

FORMS = [{}, {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential", "sigma_min": 0.01}]


@pytest.mark.parametrize("form", FORMS)
def test_the_network_is_wrapped_as_diffusers_scheduler_wraps_it(tmp_path, form):
    backbone, scheduler = load(save_edm(tmp_path / "edm", names=["cat", "dog"], **form)), EDMEulerScheduler(**form)
    x0, eps = torch.randn(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    index = torch.tensor([0, 300, 700, 999])
    x_t = backbone.schedule.mix(x0, eps, index)
    prediction = backbone.predict(x_t, index, backbone.condition(["cat", "dog", "1", "0"]))
    sigmas = backbone.schedule.sigma[index].float()
    assert sigmas[0] == pytest.approx(scheduler.config.sigma_min)
    assert sigmas[-1] == pytest.approx(scheduler.config.sigma_max)
    for row, sigma in enumerate(sigmas):
        fed = scheduler.precondition_inputs(x_t[[row]], sigma)
        label = torch.tensor([[0, 1, 1, 0][row]])
        output = backbone.unet(fed, scheduler.precondition_noise(sigma), class_labels=label).sample
        expected = scheduler.precondition_outputs(x_t[[row]], output, sigma)
        torch.testing.assert_close(prediction.x0[[row]], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(prediction.eps[[row]], (x_t[[row]] - expected) / sigma, atol=2e-3, rtol=1e-3)


def test_the_deviation_of_the_data_and_the_sign_belong_to_the_identity(tmp_path):
    forms = [{}, {"sigma_data": 1.0}, {"prediction_type": "v_prediction"}]
    found = [load(save_edm(tmp_path / str(i), **form)).identity() for i, form in enumerate(forms)]
    assert len({identity["prediction"] for identity in found}) == 3
    assert len({identity["weights"] for identity in found}) == 1


def test_a_model_without_classes_has_the_null_member_alone(tmp_path):
    backbone = load(save_edm(tmp_path / "edm"))
    x_t = torch.zeros(2, 3, 16, 16)
    assert backbone.predict(x_t, torch.tensor([5, 900]), backbone.condition([]).nulls(2)).eps.isfinite().all()
    with pytest.raises(PromptError, match="neither classes nor text"):
        backbone.condition(["cat"])


def test_a_learned_variance_is_refused(tmp_path):
    with pytest.raises(ModelError, match="predicts a variance"):
        load(save_edm(tmp_path / "edm", learned_variance=True))


def test_stable_diffusion_with_these_noise_levels_is_refused(tmp_path):
    folder = save_stable_diffusion(tmp_path / "sd")
    EDMEulerScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(ModelError, match="kind 'edm', and only DDPM's"):
        load(folder)
