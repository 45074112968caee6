from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsight.diffusion.prediction import SPACES, Prediction, target
from diffsight.diffusion.schedule import Schedule, ddpm, edm, flow
from diffsight.errors import InputError

# Neither variance-preserving nor a rectified flow: the linear system has to be solved, not recalled.
ODD = Schedule(torch.tensor([0.9, 0.8, 0.3]), torch.tensor([0.2, 0.7, 1.9]), torch.arange(3.0), kind="ddpm")
SCHEDULES = {"ddpm": ddpm(), "flow": flow(shift=3.0), "edm": edm(), "odd": ODD}


def truth(schedule, index, dtype=torch.float64):
    rng = torch.Generator().manual_seed(1)
    index = torch.as_tensor(index)
    x0, eps = torch.randn(2, len(index), 2, 3, 3, generator=rng, dtype=dtype)
    alpha, sigma = schedule.at(index, like=x0)
    return SimpleNamespace(x0=x0, eps=eps, alpha=alpha, sigma=sigma, x_t=schedule.mix(x0, eps, index))


def predict(kind, case, off=0.0):
    output = target(kind, x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma) + off
    return Prediction(output=output, kind=kind, x_t=case.x_t, alpha=case.alpha, sigma=case.sigma)


def squared_error(prediction, view, case):
    expected = target(view, x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma)
    return (getattr(prediction, view) - expected).square().flatten(1).sum(1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("view", SPACES)
def test_a_perfect_output_is_perfect_in_every_view(name, kind, view):
    schedule = SCHEDULES[name]
    inner = torch.linspace(0, len(schedule) - 2, 6).long()
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-3)):
        case = truth(schedule, inner, dtype)
        got = getattr(predict(kind, case), view)
        expected = target(view, x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma)
        # fp32 loses what dividing by a small alpha or sigma loses.
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@settings(deadline=None)
@given(
    kind=st.sampled_from(SPACES),
    off=st.floats(-5, 5).filter(lambda value: abs(value) > 0.01),
    level=st.integers(0, 998),
)
def test_error_conversions_of_variance_preserving_models(kind, off, level):
    case = truth(SCHEDULES["ddpm"], [level])
    prediction = predict(kind, case, off)
    alpha, sigma = case.alpha.flatten(), case.sigma.flatten()
    eps, x0, v = (squared_error(prediction, view, case) for view in ("eps", "x0", "v"))
    torch.testing.assert_close(x0, eps * sigma**2 / alpha**2, rtol=1e-10, atol=0)
    torch.testing.assert_close(eps, alpha**2 * v, rtol=1e-10, atol=0)
    torch.testing.assert_close(x0, sigma**2 * v, rtol=1e-10, atol=0)


@settings(deadline=None)
@given(
    kind=st.sampled_from(SPACES),
    off=st.floats(-5, 5).filter(lambda value: abs(value) > 0.01),
    level=st.integers(0, 998),
)
def test_error_conversions_of_rectified_flows(kind, off, level):
    case = truth(SCHEDULES["flow"], [level])
    prediction = predict(kind, case, off)
    t = case.sigma.flatten()
    eps, x0, u = (squared_error(prediction, view, case) for view in ("eps", "x0", "flow"))
    torch.testing.assert_close(eps, (1 - t) ** 2 * u, rtol=1e-10, atol=0)
    torch.testing.assert_close(x0, t**2 * u, rtol=1e-10, atol=0)


def test_edm_denoiser_as_the_fact_sheet_has_it():
    case = truth(SCHEDULES["edm"], [0, 300, 600, 999])
    prediction = predict("x0", case, off=0.3)
    torch.testing.assert_close(prediction.eps, (case.x0 + case.sigma * case.eps - prediction.x0) / case.sigma)


def test_flow_points_from_the_image_to_the_noise():
    case = truth(SCHEDULES["flow"], [0, 500, 999])
    velocity = target("flow", x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma)
    torch.testing.assert_close(case.x_t - case.sigma * velocity, case.x0)
    torch.testing.assert_close(case.x_t + case.alpha * velocity, case.eps)


def test_velocity_is_that_of_diffusers():
    oracle = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    index = torch.tensor([0, 250, 500, 999])
    case = truth(ddpm(), index, torch.float32)
    ours = target("v", x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma)
    torch.testing.assert_close(ours, oracle.get_velocity(case.x0, case.eps, index), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
def test_views_are_those_of_a_diffusers_sampler(kind, theirs):
    oracle = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=theirs, clip_sample=False
    )
    oracle.set_timesteps(1000)
    for level in (50, 500, 950):
        case = truth(ddpm(), [level], torch.float32)
        prediction = predict(kind, case, off=0.1)
        step = oracle.step(prediction.output, level, case.x_t)
        torch.testing.assert_close(prediction.x0, step.pred_original_sample, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", SPACES)
def test_the_output_itself_comes_back_untouched(kind):
    prediction = predict(kind, truth(ddpm(), [0, 500, 999], torch.float32), off=0.7)
    assert torch.equal(getattr(prediction, kind), prediction.output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_outputs_are_read_in_fp32(dtype):
    case = truth(ddpm(), [0, 500, 999], torch.float32)
    output = case.eps.to(dtype)
    half = Prediction(output=output, kind="eps", x_t=case.x_t.to(dtype), alpha=case.alpha, sigma=case.sigma)
    full = Prediction(
        output=output.float(), kind="eps", x_t=case.x_t.to(dtype).float(), alpha=case.alpha, sigma=case.sigma
    )
    for view in SPACES:
        assert getattr(half, view).dtype == torch.float32
        assert torch.equal(getattr(half, view), getattr(full, view))


@pytest.mark.parametrize("schedule", [ddpm(rescale_zero_snr=True), flow(shift=3.0)], ids=["ddpm", "flow"])
@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_all_views_are_exact_at_zero_snr(schedule, kind):
    case = truth(schedule, [999])
    prediction = predict(kind, case)
    for view in SPACES:
        expected = target(view, x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma)
        torch.testing.assert_close(getattr(prediction, view), expected)
    assert torch.equal(case.x_t, case.eps)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_all_views_are_exact_without_noise(kind):
    clean = Schedule(torch.ones(1), torch.zeros(1), torch.zeros(1), kind="flow")
    case = truth(clean, [0])
    prediction = predict(kind, case)
    for view in SPACES:
        expected = target(view, x0=case.x0, eps=case.eps, alpha=case.alpha, sigma=case.sigma)
        torch.testing.assert_close(getattr(prediction, view), expected)


def test_what_an_output_cannot_know_is_not_finite():
    noise = predict("eps", truth(ddpm(rescale_zero_snr=True), [999]), off=0.1)
    assert not any(getattr(noise, view).isfinite().any() for view in ("x0", "v", "flow"))
    assert noise.eps.isfinite().all()


def test_unknown_kinds_and_unsplit_outputs_are_refused():
    case = truth(ddpm(), [5])
    common = {"x_t": case.x_t, "alpha": case.alpha, "sigma": case.sigma}
    with pytest.raises((InputError, TypeError), match="epsilon"):
        Prediction(output=case.eps, kind="epsilon", **common)
    with pytest.raises((InputError, TypeError)):
        Prediction(output=torch.cat([case.eps, case.eps], 1), kind="eps", **common)
