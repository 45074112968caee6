"""What a denoiser says about a noised image: one value, four views of it.

With ``x_t = alpha * x0 + sigma * eps`` the views are ``eps``, ``x0``, the velocity ``v = alpha * eps - sigma * x0`` and
the flow ``eps - x0``. A network gives one of them; ``x_t`` determines the others, for any alpha and sigma. EDM's
denoiser gives ``x0`` with alpha = 1.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from diffsight.errors import InputError, nearest

Space = Literal["eps", "x0", "v", "flow"]
SPACES: tuple[Space, ...] = get_args(Space)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """A network's output at a noise level.

    Every view is fp32, or float64 if the output is. The view of the output's own kind is the output itself. Where
    mathematics leaves a view open it is not finite: at alpha = 0 (zero terminal SNR) an "eps" output knows nothing of
    the other three views, at sigma = 0 an "x0" output nothing of the others. "v" and "flow" outputs have all their
    views at both ends, and so does "x0" at alpha = 0 and "eps" at sigma = 0.

    Attributes:
        output: What the network gave.
        kind: What that stands for.
        x_t: The noised image.
        alpha: Factor of the image in ``x_t``, broadcastable to it, fp32 or better.
        sigma: Factor of the noise in ``x_t``, broadcastable to it, fp32 or better.
        log_variance: Logarithm of the learned variance of the reverse step, for models that have it.

    Raises:
        InputError: If the kind is unknown, or ``output`` and ``x_t`` differ in shape.
    """

    output: Float[Tensor, "b *shape"]
    kind: Space
    x_t: Float[Tensor, "b *shape"]
    alpha: Tensor
    sigma: Tensor
    log_variance: Float[Tensor, "b *shape"] | None = None

    def __post_init__(self) -> None:
        check_space(self.kind)
        if self.output.shape != self.x_t.shape:
            raise InputError(
                f"A prediction {tuple(self.output.shape)} must have the shape of its input {tuple(self.x_t.shape)}. "
                "Split a learned variance off first."
            )

    @property
    def eps(self) -> Float[Tensor, "b *shape"]:
        """The noise."""
        out, x_t = _precise(self.output), _precise(self.x_t)
        match self.kind:
            case "eps":
                return out
            case "x0":
                return (x_t - self.alpha * out) / self.sigma
            case "v":
                return (self.sigma * x_t + self.alpha * out) / (self.alpha**2 + self.sigma**2)
            case "flow":
                return (x_t + self.alpha * out) / (self.alpha + self.sigma)

    @property
    def x0(self) -> Float[Tensor, "b *shape"]:
        """The clean image or latent."""
        out, x_t = _precise(self.output), _precise(self.x_t)
        match self.kind:
            case "eps":
                return (x_t - self.sigma * out) / self.alpha
            case "x0":
                return out
            case "v":
                return (self.alpha * x_t - self.sigma * out) / (self.alpha**2 + self.sigma**2)
            case "flow":
                return (x_t - self.sigma * out) / (self.alpha + self.sigma)

    @property
    def v(self) -> Float[Tensor, "b *shape"]:
        """The velocity ``alpha * eps - sigma * x0`` of Salimans & Ho (2202.00512)."""
        return self._view("v")

    @property
    def flow(self) -> Float[Tensor, "b *shape"]:
        """The rectified flow's velocity ``eps - x0``."""
        return self._view("flow")

    def _view(self, kind: Space) -> Tensor:
        if self.kind == kind:
            return _precise(self.output)
        return target(kind, x0=self.x0, eps=self.eps, alpha=self.alpha, sigma=self.sigma)


def target(
    kind: Space, *, x0: Float[Tensor, "b *shape"], eps: Float[Tensor, "b *shape"], alpha: Tensor, sigma: Tensor
) -> Float[Tensor, "b *shape"]:
    """Give what a network of this kind should have said; fp32 or better, and finite at every noise level.

    Args:
        kind: What the network predicts.
        x0: Clean images or latents.
        eps: The noise that was mixed in.
        alpha: Factor of the image, broadcastable to ``x0``.
        sigma: Factor of the noise, broadcastable to ``x0``.

    Raises:
        InputError: If the kind is unknown.
    """
    check_space(kind)
    x0, eps = _precise(x0), _precise(eps)
    match kind:
        case "eps":
            return eps
        case "x0":
            return x0
        case "v":
            return alpha * eps - sigma * x0
        case "flow":
            return eps - x0


def check_space(kind: str) -> None:
    """Refuse what is not one of the four views.

    Raises:
        InputError: If the name is unknown.
    """
    if kind not in SPACES:
        raise InputError(f"{kind!r} is not something that a denoiser predicts. {nearest(kind, SPACES)}")


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
