"""From requests (image, draw, arm) to denoising errors: the one hot loop."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from diffsight.backbones.base import Backbone, Condition
from diffsight.diffusion.likelihood import kl_bits
from diffsight.diffusion.noise import NoiseBank
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

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


@runtime_checkable
class Probe(Protocol):
    """Looks into the denoiser while it scores, and gives further columns: cross-attention, for example."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what it gives."""
        ...

    def watch(
        self, network: nn.Module, members: Int[Tensor, " b"]
    ) -> AbstractContextManager[Callable[[], Float[Tensor, "b columns"]]]:
        """Look while the context is open; ``members`` is the condition's member of each row."""
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scorer:
    """Scores requests with one model, one set of conditions and one sequence of draws.

    Attributes:
        backbone: The model.
        condition: One member per arm.
        levels: The schedule's level of each draw, shape (draws,).
        bank: Where noise comes from.
        variational: Also give the KL term of the variational bound, for models with learned variance.
        probe: What else to read off the denoiser, or None.
    """

    backbone: Backbone
    condition: Condition
    levels: Int[Tensor, " draws"]
    bank: NoiseBank
    variational: bool = False
    probe: Probe | None = None

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of the columns: ``l1``, ``l2``, ``huber``, ``kl`` where asked for, and then those of the probe."""
        errors = (*LOSSES, "kl") if self.variational else LOSSES
        return (*errors, *self.probe.columns) if self.probe else errors

    @torch.no_grad()
    def score(
        self, x0: Float[Tensor, "images c h w"], ids: Sequence[str], requests: Requests
    ) -> Float[Tensor, "b losses"]:
        """Denoise each request once and compare; see `score_with_gradient`."""
        return self.score_with_gradient(x0, ids, requests)

    def score_with_gradient(
        self, x0: Float[Tensor, "images c h w"], ids: Sequence[str], requests: Requests
    ) -> Float[Tensor, "b losses"]:
        """Denoise each request once and compare; what is learned in the model or the condition gets its gradient.

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
        eps = send(torch.cat(noise), device)
        level = self.levels[torch.from_numpy(draw)]
        clean = x0[send(torch.from_numpy(image), device)]
        x_t = self.backbone.schedule.mix(clean, eps, level)
        level_of_row = level[torch.from_numpy(pair_of_row)]
        rows = send(torch.from_numpy(pair_of_row), device)
        members = torch.from_numpy(requests.arm)
        watching = self.probe.watch(self.backbone.network, members) if self.probe else nullcontext(None)
        with watching as seen:
            prediction = self.backbone.predict(x_t[rows], level_of_row, self.condition.take(members))
            columns = [denoising_errors(prediction.eps, eps[rows])]
            if self.variational:
                columns.append(kl_bits(prediction, clean[rows], self.backbone.schedule, level_of_row)[:, None])
            if seen:
                columns.append(seen())
        return torch.cat(columns, dim=1)


def score_within_memory(
    scorer: Scorer,
    x0: Float[Tensor, "images c h w"],
    ids: Sequence[str],
    requests: Requests,
    *,
    on_shrink: Callable[[int], None] | None = None,
) -> Float[Tensor, "b losses"]:
    """Score requests; if the device runs out of memory, in halves.

    Args:
        scorer: The model and its draws.
        x0: As for `Scorer.score`.
        ids: As for `Scorer.score`.
        requests: As for `Scorer.score`.
        on_shrink: Told the number of rows that is tried next.

    Raises:
        ModelError: If a single row does not fit.
    """
    try:
        return scorer.score(x0, ids, requests)
    except torch.OutOfMemoryError as error:
        if len(requests) == 1:
            raise ModelError(
                f"{scorer.backbone.name} does not fit {x0.device}: a single denoiser call ran out of memory. "
                f"Free memory, or use dtype 'bf16' or device 'cpu'."
            ) from error
        torch.cuda.empty_cache()
    if on_shrink:
        on_shrink(max(1, len(requests) // 2))
    return torch.cat([score_within_memory(scorer, x0, ids, half, on_shrink=on_shrink) for half in requests.halves()])


def denoising_errors(eps_hat: Float[Tensor, "b c h w"], eps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b losses"]:
    """L1, L2 and Huber (delta 1) errors per sample, averaged over all dimensions in fp32 (Li et al., eq. 5)."""
    difference = (eps_hat.float() - eps.float()).flatten(1)
    huber = functional.huber_loss(difference, torch.zeros_like(difference), reduction="none")
    return torch.stack([difference.abs().mean(1), difference.square().mean(1), huber.mean(1)], dim=1)
