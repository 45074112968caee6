"""A score that is learnt: weights of what was measured, fitted in seconds and without the network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.errors import InputError
from diffsight.matching.losses import loudness, set_loss
from diffsight.matching.options import FitOptions
from diffsight.matching.statistics import Statistics

_PRIOR = 4.0  # How many differences the common spread of columns counts for, against a column's own.
_SOFT = (1.0, 0.1, 0.01, 1e-3)  # The hinge's corner is made sharp in steps, and is rounded off by 0.001 log K at last.


@dataclass(frozen=True, slots=True)
class Weighted:
    """A learnt sum of what was measured: Σ_j w[band(t), j] · f_j, made by fitting, never by hand.

    The f_j are the attention of each layer and head, and last the gain of the error's norm over the empty text.

    Attributes:
        weights: For each band of noise levels (equal parts of the schedule) the weight of each column.
    """

    name: ClassVar[str] = "weighted"
    weights: tuple[tuple[float, ...], ...] = ((1.0,),)

    @property
    def needs_null(self) -> bool:
        """Yes: for the gain."""
        return True

    @property
    def needs_attention(self) -> bool:
        """If there are weights of attention."""
        return len(self.weights[0]) > 1

    @property
    def compares_images(self) -> bool:
        """As far as it was fitted to: where it learnt from images of one text."""
        return True

    def per_draw(
        self, statistics: Statistics, weights: Float[np.ndarray, " draws"]
    ) -> Float[np.ndarray, "draws pairs"]:
        """The weighted sum.

        Raises:
            InputError: If other attention was measured than the weights are for.
        """
        learnt = np.array(self.weights)
        features = features_of(statistics)
        if features.shape[2] != learnt.shape[1]:
            raise InputError(
                f"There are weights for {learnt.shape[1]} columns, but {features.shape[2]} were measured. Use the "
                "attention layers that they were fitted with."
            )
        band = np.minimum((statistics.times * len(learnt)).astype(int), len(learnt) - 1)
        return np.einsum("dpj,dj->dp", features, learnt[band])

    def to_dict(self) -> dict[str, Any]:
        """Name and weights."""
        return {"name": self.name, "weights": [list(row) for row in self.weights]}


def features_of(statistics: Statistics) -> Float[np.ndarray, "draws pairs columns"]:
    """What learnt weights are for: attention by layer and head, then the gain of the error's norm."""
    norms = [np.sqrt(statistics.size * errors) for errors in (statistics.null_errors, statistics.errors)]
    return np.concatenate([statistics.attention, (norms[0] - norms[1])[:, :, None]], axis=2)


def fit_weights(
    statistics: Sequence[Statistics], sets: Sequence[Sequence[Int[np.ndarray, " _"]]], options: FitOptions
) -> tuple[Float[Tensor, "bands columns"], float]:
    """Fit `Weighted` to what was measured: a convex problem, solved by L-BFGS in float64.

    The zero-shot score is the gain of the error's norm. Its spread in the candidate sets is made 1; for infonce it then
    gets its `loudness`. Weights δ of all columns, each divided by its own spread in the sets, are added, and the sum of
    the losses plus ridge · columns / 2 · ‖δ‖² is minimised. With ridge 1 what is learnt has, before any example is
    seen, a spread of 1, however many columns there are: one example turns it by little, and many by as much as they
    agree. From few examples the spread of a column is badly known, and one in which they happen to be alike would get a
    huge weight: the mean of all columns of its kind counts as 4 differences more.

    Args:
        statistics: One for each query.
        sets: Places of the pairs that compete in each, the right one first.
        options: Bands, ridge, loss and margin.

    Returns:
        The weights, and the mean loss without the penalty.
    """
    from scipy.optimize import minimize

    tables = [_by_band(one, options.bands) for one in statistics]
    shape = tables[0].shape[1:]
    own = [table[pairs].reshape(len(pairs), -1) for table, some in zip(tables, sets, strict=True) for pairs in some]
    apart = np.concatenate([one - one.mean(0) for one in own]).reshape(-1, *shape)
    free = len(apart) - len(own)
    spread = _spread(apart, free)
    zero_shot = np.zeros(shape)
    zero_shot[:, -1] = 1 / (math.sqrt((apart[:, :, -1].sum(1) ** 2).sum() / free) or 1)
    longest = max(map(len, own))
    wrong = [np.pad(one[1:] - one[0], ((0, longest - len(one)), (0, 0)), constant_values=np.nan) for one in own]
    differences = torch.from_numpy(np.stack(wrong))
    absent, differences = differences[:, :, 0].isnan(), differences.nan_to_num()
    before = differences @ torch.from_numpy(zero_shot.ravel())
    differences = differences / torch.from_numpy(spread.ravel())
    hinge = options.loss == "hinge"
    factor = 1.0 if hinge else loudness(before.masked_fill(absent, -math.inf))
    zero_shot, before = factor * zero_shot, factor * before
    penalty = options.ridge * np.count_nonzero(apart.any(0))

    def losses(learnt: Tensor, softness: float) -> Tensor:
        gaps = (before + differences @ learnt).masked_fill(absent, -math.inf)
        return set_loss(gaps, margin=options.margin if hinge else 0.0, softness=softness)

    @torch.enable_grad()
    def objective(values: np.ndarray, softness: float) -> tuple[float, np.ndarray]:
        learnt = torch.from_numpy(values).requires_grad_()
        total = losses(learnt, softness).sum() + penalty / 2 * learnt.square().sum()
        return float(total.detach()), torch.autograd.grad(total, learnt)[0].numpy()

    found = np.zeros(zero_shot.size)
    limits = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9}
    for softness in _SOFT if hinge else (1.0,):
        found = minimize(objective, found, (softness,), method="L-BFGS-B", jac=True, options=limits).x
    loss = losses(torch.from_numpy(found), 0.0 if hinge else 1.0).mean()
    return torch.from_numpy(zero_shot + found.reshape(shape) / spread), float(loss)


def _spread(apart: Float[np.ndarray, "rows bands columns"], free: int) -> Float[np.ndarray, "bands columns"]:
    """Of each column in the candidate sets; 1 of one that is constant."""
    squares = (apart**2).sum(0)
    for kind in (slice(None, -1), slice(-1, None)):
        found = squares[:, kind]
        common = found[found > 0].mean() / free if found.any() else 1.0
        squares[:, kind] = np.where(found > 0, (found + _PRIOR * common) / (free + _PRIOR), 1.0)
    return np.sqrt(squares)


def _by_band(statistics: Statistics, bands: int) -> Float[np.ndarray, "pairs bands columns"]:
    """What `Weighted` multiplies with its weights: the sum over the draws of each band, over the number of draws."""
    features = features_of(statistics)
    band = np.minimum((statistics.times * bands).astype(int), bands - 1)
    return np.stack([features[band == one].sum(0) for one in range(bands)], axis=1) / len(features)
