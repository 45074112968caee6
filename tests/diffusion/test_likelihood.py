import math

import pytest
import torch
from diffusers import DDPMScheduler

from diffsight.diffusion.likelihood import kl_bits, learned_log_variance, posterior_log_variance
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import ddpm, flow
from diffsight.errors import InputError

SCHEDULE = ddpm(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
INDEX = torch.tensor([1, 300, 998])


def noised(seed=0):
    generator = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 4, 8, 8, generator=generator)
    x_t = SCHEDULE.mix(x0, eps, INDEX)
    alpha, sigma = SCHEDULE.at(INDEX, like=x_t)
    return x0, eps, x_t, alpha, sigma


def test_posterior_variance_agrees_with_diffusers():
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    ours = posterior_log_variance(SCHEDULE).exp()
    for level in (1, 10, 500, 999):
        expected = scheduler._get_variance(level, variance_type="fixed_small")
        # diffusers computes 1 - alpha_bar in fp32, which is good to 1e-3 at the cleanest levels.
        assert ours[level].item() == pytest.approx(expected.item(), rel=1e-3)
    assert ours[0] == ours[1]


def test_kl_is_that_of_two_gaussians():
    x0, eps, x_t, alpha, sigma = noised()
    guess = eps + 0.1 * torch.randn(eps.shape, generator=torch.Generator().manual_seed(1))
    log_variance = learned_log_variance(torch.full_like(x0, 0.3), SCHEDULE, INDEX)
    prediction = Prediction(output=guess, kind="eps", x_t=x_t, alpha=alpha, sigma=sigma, log_variance=log_variance)
    ours = kl_bits(prediction, x0, SCHEDULE, INDEX)
    beta, alpha_bar = SCHEDULE.beta[INDEX], SCHEDULE.alpha[INDEX] ** 2
    before = SCHEDULE.alpha[INDEX - 1] ** 2
    for row in range(3):
        b, now, last = beta[row], alpha_bar[row], before[row]

        def mean(x, row=row, b=b, now=now, last=last):
            return (last.sqrt() * b * x + (1 - b).sqrt() * (1 - last) * x_t[row].double()) / (1 - now)

        q = torch.distributions.Normal(mean(x0[row].double()), (b * (1 - last) / (1 - now)).sqrt())
        p = torch.distributions.Normal(mean(prediction.x0[row].double()), log_variance[row].double().div(2).exp())
        expected = torch.distributions.kl_divergence(q, p).mean() / math.log(2)
        assert ours[row].item() == pytest.approx(expected.item(), rel=2e-3)


def test_kl_is_zero_for_a_perfect_model():
    x0, eps, x_t, alpha, sigma = noised()
    smallest = learned_log_variance(torch.full_like(x0, -1.0), SCHEDULE, INDEX)
    prediction = Prediction(output=eps, kind="eps", x_t=x_t, alpha=alpha, sigma=sigma, log_variance=smallest)
    assert kl_bits(prediction, x0, SCHEDULE, INDEX).abs().max() < 1e-4


def test_what_has_no_bound_is_refused():
    x0, eps, x_t, alpha, sigma = noised()
    with pytest.raises(InputError, match="learned variance"):
        kl_bits(Prediction(output=eps, kind="eps", x_t=x_t, alpha=alpha, sigma=sigma), x0, SCHEDULE, INDEX)
    with pytest.raises(InputError, match="flow"):
        posterior_log_variance(flow())
