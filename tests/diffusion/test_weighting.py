import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsight.diffusion.prediction import SPACES, Prediction, target
from diffsight.diffusion.schedule import Schedule, ddpm, edm, flow
from diffsight.diffusion.weighting import (
    BY_NAME,
    bucketed,
    by_name,
    explicit,
    exponential,
    snr,
    uniform,
    vdm,
    vlb,
)
from diffsight.errors import InputError

SD = ddpm()
FLOW = flow(shift=3.0)
EDM = edm()
ZERO_SNR = ddpm(rescale_zero_snr=True)


def mass_per_decile(weighting):
    return (weighting.values / weighting.values.sum()).reshape(10, -1).sum(1)


def rounded(values, digits=3):
    return [round(value, digits) for value in values.tolist()]


def test_exp_in_eps_space_as_published():
    weights = exponential(SD).to("eps", SD)
    levels = torch.tensor([10, 50, 100, 200, 300, 500, 700, 900, 999])
    assert rounded(weights.take(levels)) == [0.009, 0.036, 0.059, 0.081, 0.085, 0.079, 0.083, 0.128, 0.196]
    deciles = torch.tensor([0.039, 0.083, 0.096, 0.097, 0.093, 0.090, 0.092, 0.102, 0.127, 0.182]).double()
    torch.testing.assert_close(mass_per_decile(weights), deciles, rtol=0, atol=0.00055)


def test_exp_on_the_eps_loss_is_another_scheme():
    confused = explicit(SD, exponential(SD).values, space="eps")
    assert rounded(mass_per_decile(confused)[:4], 2) == [0.50, 0.25, 0.12, 0.06]


def test_exp_on_a_cosine_schedule_is_nearly_all_at_the_end():
    t = (torch.arange(1000).double() + 0.5) * torch.pi / 2000
    cosine = Schedule(t.cos(), t.sin(), t, kind="ddpm")
    assert round(float(mass_per_decile(exponential(cosine).to("eps", cosine))[-1]), 3) == 0.986


def test_vlb_as_published():
    deciles = mass_per_decile(vlb(SD).to("eps", SD))
    assert rounded(deciles, 2) == [0.42, 0.08, 0.06, 0.05, 0.05, 0.05, 0.06, 0.07, 0.08, 0.09]


def test_vlb_is_the_formula_of_ho_et_al():
    beta, alpha_bar = SD.beta, SD.alpha.square()
    expected = beta.square() / (2 * beta * (1 - beta) * (1 - alpha_bar))
    torch.testing.assert_close(vlb(SD).to("eps", SD).values, expected, rtol=1e-9, atol=0)


def test_snr_is_uniform_in_eps_space():
    torch.testing.assert_close(snr(SD).to("eps", SD).values, uniform(SD).values)
    assert (uniform(SD).values == 1).all()
    assert uniform(SD).space == "eps"


@pytest.mark.parametrize("schedule", [flow(), edm(rho=torch.inf)], ids=["flow", "edm"])
def test_vdm_is_minus_the_slope_of_snr(schedule):
    weights = vdm(schedule).to("eps", schedule).values[20:-20]
    if schedule.kind == "flow":
        t = schedule.sigma[20:-20]
        expected = 2 / (t * (1 - t))
    else:
        expected = torch.full_like(weights, 2 * torch.log(torch.tensor(80 / 0.002)) * 1000 / 999)
    torch.testing.assert_close(weights, expected, rtol=2e-3, atol=0)


def test_vdm_sums_to_the_whole_snr():
    total = torch.trapezoid(vdm(SD).values, dx=1 / len(SD))
    assert total == pytest.approx(float(SD.snr[0] - SD.snr[-1]), rel=0.03)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["ddpm", "flow", "edm"]),
    name=st.sampled_from(["uniform", "snr", "vdm", "exp"]),
    spaces=st.tuples(st.sampled_from(SPACES), st.sampled_from(SPACES)),
    level=st.integers(0, 998),
    off=st.floats(0.1, 3),
)
def test_a_scheme_weighs_the_same_in_every_space(kind, name, spaces, level, off):
    schedule = {"ddpm": SD, "flow": FLOW, "edm": EDM}[kind]
    if name == "exp" and kind == "flow" and "eps" in spaces:
        return  # not expressible at the flow's last level
    index, rng = torch.tensor([level]), torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 1, 8, generator=rng, dtype=torch.float64)
    alpha, sigma = schedule.at(index, like=x0)
    prediction = Prediction(output=eps + off, kind="eps", x_t=alpha * x0 + sigma * eps, alpha=alpha, sigma=sigma)
    weighed = []
    for space in spaces:
        error = getattr(prediction, space) - target(space, x0=x0, eps=eps, alpha=alpha, sigma=sigma)
        weighed.append(by_name(name, schedule).to(space, schedule).take(index) * error.square().sum())
    torch.testing.assert_close(weighed[0], weighed[1], rtol=1e-8, atol=0)


@pytest.mark.parametrize("start", SPACES)
@pytest.mark.parametrize("over", SPACES)
def test_conversion_and_back_changes_nothing(start, over):
    for schedule in (SD, EDM):
        weights = explicit(schedule, torch.linspace(0, 3, 1000), space=start)
        back = weights.to(over, schedule).to(start, schedule)
        assert back.space == start
        torch.testing.assert_close(back.values, weights.values, rtol=1e-12, atol=0)


def test_flow_weights_as_the_fact_sheet_has_them():
    schedule, t = FLOW, FLOW.sigma
    eps_weights = uniform(schedule)
    in_flow = eps_weights.to("flow", schedule).values
    torch.testing.assert_close(in_flow, (1 - t).square(), rtol=1e-9, atol=1e-15)
    in_x0 = eps_weights.to("x0", schedule).values
    torch.testing.assert_close(in_flow, t.square() * in_x0, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", BY_NAME)
def test_zero_snr_gives_finite_weights_where_they_exist(name):
    weights = by_name(name, ZERO_SNR)
    for space in ("x0", "v", "flow"):
        assert weights.to(space, ZERO_SNR).values.isfinite().all()


@pytest.mark.parametrize("name", ["uniform", "snr", "vdm"])
def test_zero_snr_keeps_eps_weights_that_exist(name):
    weights = by_name(name, ZERO_SNR).to("eps", ZERO_SNR).values
    expected = {"uniform": 1.0, "snr": 1.0}.get(name)
    assert weights.isfinite().all()
    if expected:
        torch.testing.assert_close(weights[:-1], torch.full((999,), expected).double())


@pytest.mark.parametrize("name", ["exp", "vlb"])
def test_zero_snr_refuses_eps_weights_that_do_not_exist(name):
    with pytest.raises(InputError, match="level 999"):
        by_name(name, ZERO_SNR).to("eps", ZERO_SNR)


def test_buckets_are_twenty_equal_stretches_of_time():
    weights = bucketed(SD, list(range(1, 21)), space="x0")
    assert weights.take(torch.tensor([0, 49, 50, 999])).tolist() == [1, 1, 2, 20]
    assert torch.bincount(weights.values.long())[1:].tolist() == [50] * 20


def test_normalised_weights_have_mean_one():
    weights = vdm(SD).normalised()
    assert weights.values.mean() == pytest.approx(1)
    torch.testing.assert_close(mass_per_decile(weights), mass_per_decile(vdm(SD)))


def test_by_name_gives_what_it_says_and_helps_with_typing_errors():
    assert [by_name(name, SD).name for name in BY_NAME] == ["uniform", "snr", "vdm", "exp", "vlb"]
    with pytest.raises(InputError, match="Did you mean 'uniform'"):
        by_name("unifrom", SD)


@pytest.mark.parametrize("schedule", [FLOW, EDM], ids=["flow", "edm"])
def test_the_discrete_bound_needs_a_ddpm(schedule):
    with pytest.raises(InputError, match="vdm"):
        vlb(schedule)


@pytest.mark.parametrize(
    "values", [[1.0] * 999, [-1.0] * 1000, [float("nan")] * 1000, [0.0] * 1000, torch.ones(2, 500)]
)
def test_senseless_weights_are_refused(values):
    with pytest.raises((InputError, TypeError)):
        explicit(SD, values, space="eps")


def test_other_misuse_is_refused():
    with pytest.raises(InputError, match="list of 1 to 4"):
        bucketed(ddpm(4), [1.0] * 5, space="eps")
    with pytest.raises(InputError, match="500 levels"):
        uniform(SD).to("x0", ddpm(500))
    with pytest.raises(InputError, match="at least three"):
        vdm(ddpm(2))
