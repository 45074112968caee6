import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, PNDMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsight.diffusion.schedule import (
    Schedule,
    ddpm,
    edm,
    explicit_grid,
    flow,
    from_config,
    midpoint_grid,
    nested_grid,
)
from diffsight.errors import InputError

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DIT = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
COSINE = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "squaredcos_cap_v2"}
ORACLES = {
    "sd": DDPMScheduler(**SD),
    "sd-pndm": PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1),
    "sd-zero-snr": DDIMScheduler(**SD, rescale_betas_zero_snr=True),
    "dit": DDPMScheduler(**DIT),
    "cosine": DDPMScheduler(**COSINE),
    "short": DDPMScheduler(**SD, num_train_timesteps=50),
    "trained": DDPMScheduler(trained_betas=[0.1, 0.2, 0.15, 0.4]),
}


def config_of(scheduler):
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


@pytest.fixture(params=ORACLES)
def oracle(request):
    return ORACLES[request.param]


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 6, 4, 3, 3, generator=rng)
    return x0, eps


def levels_of(schedule):
    n = len(schedule)
    return torch.tensor([0, 1, n // 3, n // 2, n - 2, n - 1])


def test_alpha_bar_is_that_of_diffusers(oracle):
    ours = from_config(config_of(oracle))
    torch.testing.assert_close(ours.alpha.square().float(), oracle.alphas_cumprod, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(ours.alpha.square() + ours.sigma.square(), torch.ones(len(ours)).double())
    torch.testing.assert_close(ours.beta.float(), oracle.betas, rtol=1e-4, atol=3e-7)
    assert ours.timesteps.tolist() == list(range(len(ours)))


def test_mix_is_add_noise(oracle, batch):
    ours, (x0, eps) = from_config(config_of(oracle)), batch
    index = levels_of(ours)
    torch.testing.assert_close(ours.mix(x0, eps, index), oracle.add_noise(x0, eps, index), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_that_of_diffusers(shift, batch):
    oracle = FlowMatchEulerDiscreteScheduler(shift=shift)
    ours, (x0, eps) = from_config(config_of(oracle)), batch
    torch.testing.assert_close(ours.sigma.float(), oracle.sigmas.flip(0))
    torch.testing.assert_close(ours.timesteps.float(), oracle.timesteps.flip(0))
    index = levels_of(ours)
    expected = oracle.scale_noise(x0, oracle.timesteps.flip(0)[index], eps)
    torch.testing.assert_close(ours.mix(x0, eps, index), expected)


def test_sd3_grid_is_mostly_noise():
    assert (flow(shift=3.0).sigma < 0.5).double().mean() == 0.249


def test_dynamic_shifting_leaves_the_table_unshifted():
    oracle = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    torch.testing.assert_close(from_config(config_of(oracle)).sigma.float(), oracle.sigmas.flip(0))


def test_flow_samplers_of_other_families_give_flow_levels():
    config = {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0, **SD}
    assert from_config(config).fingerprint() == flow(shift=3.0).fingerprint()


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
def test_edm_is_that_of_diffusers(spacing):
    oracle = EDMEulerScheduler(num_train_timesteps=40, sigma_schedule=spacing, sigma_max=50.0)
    oracle.set_timesteps(40)
    ours = from_config(config_of(oracle))
    torch.testing.assert_close(ours.sigma.float(), oracle.sigmas[:-1].flip(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.timesteps.float(), oracle.timesteps.flip(0), rtol=1e-4, atol=1e-6)
    assert (ours.alpha == 1).all()


def test_last_level_is_exactly_pure_noise_where_it_should_be(batch):
    x0, eps = batch
    last = torch.full((6,), 999)
    for schedule in (ddpm(rescale_zero_snr=True), flow(shift=3.0)):
        assert schedule.snr[-1] == 0
        assert schedule.log_snr[-1] == -math.inf
        assert torch.equal(schedule.mix(x0, eps, last), eps)


@pytest.mark.parametrize("schedule", [ddpm(), flow(shift=3.0), edm()], ids=lambda s: s.kind)
def test_snr_and_its_logarithm_agree(schedule):
    torch.testing.assert_close(schedule.log_snr.exp(), schedule.snr)
    torch.testing.assert_close(schedule.snr.sqrt() * schedule.sigma, schedule.alpha)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixing_half_precision_is_done_in_fp32(batch, dtype):
    x0, eps = (tensor.to(dtype) for tensor in batch)
    schedule, index = ddpm(), torch.arange(6)
    mixed = schedule.mix(x0, eps, index)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, schedule.mix(x0.double(), eps.double(), index).float())


def test_one_image_or_one_noise_serves_all_levels(batch):
    x0, eps = batch
    schedule, index = ddpm(), torch.arange(0, 600, 100)
    expected = schedule.mix(x0[:1].expand_as(x0), eps, index)
    torch.testing.assert_close(schedule.mix(x0[:1], eps, index), expected)
    assert schedule.mix(x0, eps[:1], index).shape == x0.shape


def test_at_broadcasts_to_any_trailing_shape():
    schedule, index = ddpm(), torch.tensor([999, 0])
    for shape in ((2,), (2, 5), (2, 3, 4, 4, 4)):
        alpha, sigma = schedule.at(index, like=torch.zeros(shape))
        assert alpha.dtype == sigma.dtype == torch.float32
        assert alpha.ndim == len(shape)
        assert torch.equal(alpha.flatten(), schedule.alpha[index].float())


@pytest.mark.gpu
def test_mixing_on_a_gpu_is_mixing_on_the_cpu(batch):
    x0, eps = batch
    schedule, index = ddpm(), torch.arange(0, 600, 100)
    for where in ("cpu", "cuda"):
        mixed = schedule.mix(x0.cuda(), eps.cuda(), index.to(where))
        torch.testing.assert_close(mixed.cpu(), schedule.mix(x0, eps, index))


def test_fingerprint_follows_the_numbers():
    makers = [ddpm(), ddpm(beta_end=0.0121), ddpm(rescale_zero_snr=True), ddpm(500), flow(), flow(shift=3.0), edm()]
    assert len({schedule.fingerprint() for schedule in makers}) == len(makers)
    assert ddpm().fingerprint() == from_config({"_class_name": "DDIMScheduler", **SD}).fingerprint()
    assert flow().fingerprint() != flow(time_scale=1.0).fingerprint()


@pytest.mark.parametrize("index", [[-1], [1000], [3, -2]])
def test_levels_outside_the_schedule_are_refused(index):
    with pytest.raises(InputError, match="between 0 and 999"):
        ddpm().at(torch.tensor(index), like=torch.zeros(len(index), 1))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"_class_name": "DDPMScheduler"}, "beta_schedule"),
        ({"_class_name": "DDPMScheduler", **SD, "beta_schedule": "scaled_liner"}, "Did you mean 'scaled_linear'"),
        ({"_class_name": "DDPMScheduler", **SD, "beta_end": 12}, "beta_end"),
        ({"_class_name": "DDPMScheduler", **SD, "num_train_timesteps": 0}, "at least 1"),
        ({"_class_name": "DDPMScheduler", "trained_betas": [0.1, 1.2]}, "at most 1"),
        ({"_class_name": "EulerDiscreteScheduler", **SD, "timestep_type": "continuous"}, "continuous"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "inverted"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0.0}, "shift"),
        ({"_class_name": "CogVideoXDDIMScheduler", **SD, "snr_shift_scale": 3.0}, "snr_shift_scale"),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}, "sigma_min"),
        ({"_class_name": "ScoreSdeVeScheduler", "sigma_min": 0.01}, "cannot be known"),
    ],
)
def test_configurations_that_cannot_be_read_say_why(config, what):
    with pytest.raises(InputError, match=what):
        from_config(config)


@pytest.mark.parametrize(
    ("alpha", "sigma"),
    [
        ([], []),
        ([1.0, 0.5], [0.1]),
        ([0.5, 1.0], [0.5, 0.1]),
        ([1.0, -0.1], [0.1, 1.0]),
        ([0.0], [0.0]),
        ([1.0], [math.nan]),
    ],
)
def test_senseless_tables_are_refused(alpha, sigma):
    alpha, sigma = torch.tensor(alpha), torch.tensor(sigma)
    with pytest.raises((InputError, TypeError)):
        Schedule(alpha, sigma, torch.zeros(len(alpha)), kind="ddpm")


@pytest.mark.parametrize(
    ("draws", "first", "step"), [(500, 1, 2), (250, 2, 4), (1000, 0, 1), (50, 10, 20), (1, 500, 1000), (300, 1, 3)]
)
def test_midpoint_grid_is_li_et_al(draws, first, step):
    assert midpoint_grid(1000, draws).tolist() == [first + step * k for k in range(draws)]


def test_midpoint_grid_ends():
    assert midpoint_grid(1000, 500)[-1] == 999
    assert midpoint_grid(1000, 250)[-1] == 998
    with pytest.raises(InputError, match="1001 draws"):
        midpoint_grid(1000, 1001)


def test_nested_grid_starts_in_the_middle_and_halves():
    assert nested_grid(1000, 7).tolist() == [500, 250, 750, 125, 625, 375, 875]


@settings(max_examples=40, deadline=None)
@given(levels=st.integers(1, 1200), rounds=st.integers(1, 3), extra=st.integers(0, 1200))
def test_each_level_comes_once_before_any_comes_again(levels, rounds, extra):
    draws = levels * rounds + extra % levels
    counts = torch.bincount(nested_grid(levels, draws), minlength=levels)
    assert len(counts) == levels
    assert counts.max() - counts.min() <= (1 if draws % levels else 0)


@settings(max_examples=25, deadline=None)
@given(levels=st.integers(1, 1500))
def test_every_prefix_is_even(levels):
    # Of n draws the first k levels should get n * k / levels. The bound is van der Corput's, log2(n) / 3 + 1, and a
    # half for whole levels; independent draws miss by sqrt(n) / 2 and more.
    hits = torch.nn.functional.one_hot(nested_grid(levels, levels), levels).double().cumsum(0).cumsum(1)
    n = torch.arange(1, levels + 1).double()
    excess = (hits - n[:, None] * n / levels).abs().amax(1)
    assert (excess <= n.log2() / 3 + 1.5).all()


@settings(max_examples=40, deadline=None)
@given(levels=st.integers(1, 1200), few=st.integers(1, 2000), more=st.integers(0, 2000))
def test_a_longer_grid_continues_the_shorter(levels, few, more):
    assert torch.equal(nested_grid(levels, few + more)[:few], nested_grid(levels, few))


@settings(max_examples=40, deadline=None)
@given(levels=st.integers(10, 1200), low=st.floats(0, 0.45), high=st.floats(0.55, 1))
def test_a_range_keeps_to_its_levels(levels, low, high):
    grid = nested_grid(levels, levels, low=low, high=high)
    assert sorted(set(grid.tolist())) == list(range(round(low * levels), round(high * levels)))


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.6, 0.4), (-0.1, 1.0), (0.0, 1.1), (0.5001, 0.5002)])
def test_empty_ranges_are_refused(low, high):
    with pytest.raises(InputError, match="low="):
        nested_grid(1000, 10, low=low, high=high)


@pytest.mark.parametrize("make", [midpoint_grid, nested_grid])
@pytest.mark.parametrize(("levels", "draws"), [(1000, 0), (1000, -1), (0, 1)])
def test_grids_need_draws_and_levels(make, levels, draws):
    with pytest.raises(InputError, match="at least 1"):
        make(levels, draws)


def test_explicit_grid_keeps_order_and_repeats():
    assert explicit_grid(1000, [500, 3, 500]).tolist() == [500, 3, 500]
    assert explicit_grid(1000, torch.tensor([999, 0])).tolist() == [999, 0]


@pytest.mark.parametrize("values", [[], [1000], [-1], [3, 4000]])
def test_explicit_grid_names_what_is_not_a_level(values):
    with pytest.raises(InputError, match=str(values[-1]) if values else "at least one"):
        explicit_grid(1000, values)
