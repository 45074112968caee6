"""Terms of the variational bound of discrete diffusion models whose variance is learned (DiT, guided-diffusion).

References:
    Nichol & Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2102.09672, eq. 10, 11, 15.
    Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier, 2303.16203, §6 (the "VLB" rule).
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule
from diffsight.diffusion.transfer import send
from diffsight.errors import InputError


def posterior_log_variance(schedule: Schedule) -> Float[Tensor, " n"]:
    """Log variance of q(x_{t-1} | x_t, x_0) at every level, float64.

    At the first level it is zero, whose logarithm is replaced by the second level's, as everybody does.
    """
    beta, previous = _beta(schedule), _previous_alpha_bar(schedule)
    variance = beta * (1 - previous) / schedule.sigma**2
    return torch.cat([variance[1:2], variance[1:]]).log()


def learned_log_variance(
    factor: Float[Tensor, "b c h w"], schedule: Schedule, index: Int[Tensor, " b"]
) -> Float[Tensor, "b c h w"]:
    """Interpolate between the smallest and the largest sensible log variance.

    Args:
        factor: The network's extra output channels, −1 for the posterior's variance and 1 for beta (eq. 15).
        schedule: A DDPM schedule.
        index: Level of each row.

    Returns:
        Log variance of p(x_{t-1} | x_t), fp32.
    """
    low = _rows(posterior_log_variance(schedule), index, factor)
    high = _rows(_beta(schedule).log(), index, factor)
    fraction = (factor.float() + 1) / 2
    return fraction * high + (1 - fraction) * low


def with_variance(
    output: Float[Tensor, "b channels h w"],
    kind: Space,
    x_t: Float[Tensor, "b c h w"],
    schedule: Schedule,
    index: Int[Tensor, " b"],
) -> Prediction:
    """The prediction of a network that may say its variance, too: then its output has twice the channels of its input.

    Args:
        output: What the network gave, fp32.
        kind: What its first half, or all of it, stands for.
        x_t: The noised image.
        schedule: A DDPM schedule, if there is a variance.
        index: Level of each row.
    """
    alpha, sigma = schedule.at(index, like=x_t)
    log_variance = None
    if output.shape[1] == 2 * x_t.shape[1]:
        output, factor = output.chunk(2, dim=1)
        log_variance = learned_log_variance(factor, schedule, index)
    return Prediction(output=output, kind=kind, x_t=x_t, alpha=alpha, sigma=sigma, log_variance=log_variance)


def kl_bits(
    prediction: Prediction, x0: Float[Tensor, "b c h w"], schedule: Schedule, index: Int[Tensor, " b"]
) -> Float[Tensor, " b"]:
    """KL(q(x_{t-1} | x_t, x_0) ‖ p(x_{t-1} | x_t)) in bits per dimension (eq. 5 of 2102.09672), fp32.

    Args:
        prediction: Of a model with learned variance.
        x0: The clean latents.
        schedule: A DDPM schedule.
        index: Level of each row.

    Returns:
        One value per row.

    Raises:
        InputError: If the prediction has no variance.
    """
    if prediction.log_variance is None:
        raise InputError("The KL term needs a model with learned variance, and this prediction has none.")
    log_q = _rows(posterior_log_variance(schedule), index, x0)
    log_p = prediction.log_variance.float()
    scale = _beta(schedule) * _previous_alpha_bar(schedule).sqrt() / schedule.sigma**2
    gap = _rows(scale, index, x0) * (x0.float() - prediction.x0)
    kl = 0.5 * (log_p - log_q - 1 + (log_q - log_p).exp() + gap.square() * (-log_p).exp())
    return kl.flatten(1).mean(1) / math.log(2)


def _beta(schedule: Schedule) -> Tensor:
    if schedule.beta is None:
        raise InputError(
            f"A {schedule.kind} schedule has no betas: the variational bound is known for DDPM tables only."
        )
    return schedule.beta


def _previous_alpha_bar(schedule: Schedule) -> Tensor:
    alpha_bar = schedule.alpha**2
    return torch.cat([torch.ones(1, dtype=alpha_bar.dtype), alpha_bar[:-1]])


def _rows(table: Tensor, index: Tensor, like: Tensor) -> Tensor:
    values = send(table[index.cpu()].float(), like.device)
    return values.reshape(-1, *([1] * (like.ndim - 1)))
