"""What is made small when an adapter is fitted: losses of sets of candidates, of which one is right."""

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def set_loss(
    gaps: Float[Tensor, "sets wrong"], *, margin: float = 0.0, softness: float = 1.0
) -> Float[Tensor, " sets"]:
    """The loss s · log(1 + Σ exp((gap + margin) / s)) with softness s, which is two well-known ones.

    With softness 1 and no margin it is InfoNCE, the cross-entropy of the softmax over candidates. As softness goes to 0
    it becomes max(0, max gap + margin), the hinge on the hardest wrong candidate, and at 0 it is that.

    Args:
        gaps: Score of each wrong candidate less that of the right one; -inf where there is none.
        margin: By which the right candidate has to be better.
        softness: Of the maximum.
    """
    if softness == 0:
        return (gaps.amax(1) + margin).clamp(min=0)
    exponents = torch.cat([torch.zeros_like(gaps[:, :1]), (gaps + margin) / softness], dim=1)
    return softness * exponents.logsumexp(1)


def loudness(gaps: Float[Tensor, "sets wrong"]) -> float:
    """The factor by which a softmax of scores fits best, with a prior of e^±1 around 1; always over 0.

    Where scores are right they may be louder. What is learnt later then changes what they say, and is not spent on
    saying it louder; and scores that are wrong as often as right are not held to.

    Args:
        gaps: As in `set_loss`, of scores whose spread in the sets is 1.
    """
    powers = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    losses = [float(set_loss(gaps * math.exp(power)).sum()) + power**2 / 2 for power in powers.tolist()]
    return math.exp(float(powers[int(np.argmin(losses))]))
