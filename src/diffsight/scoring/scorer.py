"""From requests (image, draw, arm) to denoising errors: the one hot loop."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from diffsight.backbones.base import Backbone, Condition
from diffsight.diffusion.likelihood import kl_bits
from diffsight.diffusion.noise import NoiseBank

LOSSES = ("l1", "l2", "huber")


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """A batch of requests as arrays of one length.

    Attributes:
        image: Which of the images at hand, from 0.
        draw: Which draw: its time level comes from the grid, its noise from the bank.
        arm: Which member of the condition.
    """

    image: Int[np.ndarray, " b"]
    draw: Int[np.ndarray, " b"]
    arm: Int[np.ndarray, " b"]

    def __len__(self) -> int:
        return len(self.image)

    def halves(self) -> "tuple[Requests, Requests]":
        """The first and the second half, for a device whose memory did not suffice."""
        return self._part(slice(None, len(self) // 2)), self._part(slice(len(self) // 2, None))

    def _part(self, rows: slice) -> "Requests":
        return Requests(image=self.image[rows], draw=self.draw[rows], arm=self.arm[rows])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scorer:
    """Scores requests with one model, one set of conditions and one sequence of draws.

    Attributes:
        backbone: The model.
        condition: One member per arm.
        levels: The schedule's level of each draw, shape (draws,).
        bank: Where noise comes from.
        variational: Also give the KL term of the variational bound, for models with learned variance.
    """

    backbone: Backbone
    condition: Condition
    levels: Int[Tensor, " draws"]
    bank: NoiseBank
    variational: bool = False

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the columns of an error: ``l1``, ``l2``, ``huber``, and ``kl`` where asked for."""
        return (*LOSSES, "kl") if self.variational else LOSSES

    @torch.no_grad()
    def score(
        self, x0: Float[Tensor, "images c h w"], ids: Sequence[str], requests: Requests
    ) -> Float[Tensor, "b losses"]:
        """Denoise each request once and compare.

        All arms of an image see the same ``x_t``: it is mixed once per (image, draw) and gathered.

        Args:
            x0: Clean latents, fp32, on the model's device.
            ids: Identity of each image, which addresses its noise.
            requests: What to score.

        Returns:
            Mean over channels, height and width of each loss between eps and its prediction, fp32, on the device.
        """
        pairs, pair_of_row = np.unique(requests.image * len(self.levels) + requests.draw, return_inverse=True)
        image, draw = np.divmod(pairs, len(self.levels))
        shape = tuple(x0.shape[1:])
        noise = [self.bank.noise(ids[int(i)], draw[image == i].tolist(), shape) for i in np.unique(image)]
        device = x0.device
        eps = torch.cat(noise).to(device, non_blocking=True)
        level = self.levels[torch.from_numpy(draw)]
        clean = x0[torch.from_numpy(image).to(device)]
        x_t = self.backbone.schedule.mix(clean, eps, level)
        level_of_row = level[torch.from_numpy(pair_of_row)]
        rows = torch.from_numpy(pair_of_row).to(device)
        prediction = self.backbone.predict(x_t[rows], level_of_row, self.condition.take(torch.from_numpy(requests.arm)))
        target = eps[rows]
        errors = denoising_errors(prediction.eps, target)
        if self.variational:
            kl = kl_bits(prediction, clean[rows], self.backbone.schedule, level_of_row)
            errors = torch.cat([errors, kl[:, None]], dim=1)
        return errors


def denoising_errors(eps_hat: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b losses"]:
    """L1, L2 and Huber (delta 1) errors per sample, averaged over all dimensions in fp32 (Li et al., eq. 5)."""
    difference = (eps_hat.float() - eps.float()).flatten(1)
    huber = functional.huber_loss(difference, torch.zeros_like(difference), reduction="none")
    return torch.stack([difference.abs().mean(1), difference.square().mean(1), huber.mean(1)], dim=1)
