"""Draws that vote: each names the class with the least error, and the class with the most votes wins.

Favero et al. 2025 (2502.03687) decide so, and read the share of votes as confidence. A vote looks only at the order of
the classes within a draw, so that a few draws with large errors cannot outweigh the rest; for the same reason weights
of timesteps change nothing unless the votes themselves are weighted.
"""

import numpy as np
from jaxtyping import Float

from diffsight.errors import InputError

VOTES = ("majority", "weighted")


def vote_shares(
    errors: Float[np.ndarray, "draws classes"], weights: Float[np.ndarray, " draws"] | None = None
) -> Float[np.ndarray, " classes"]:
    """Share of the votes of each class.

    Args:
        errors: Of one image. A draw in which several classes are exactly the best divides its vote among them.
        weights: How much each draw's vote counts; all alike by default.

    Raises:
        InputError: If there is no draw, a class was not scored on every draw (an eliminated class cannot be voted for,
            so the vote would be between the survivors of another rule), or the weights of all draws are 0.
    """
    if len(errors) == 0 or not np.isfinite(errors).all():
        raise InputError(
            "A vote needs the errors of all classes on every draw, and here classes were eliminated on the way. "
            "Evaluate with the policy 'exhaustive', or re-score with one of so few draws that all are complete."
        )
    best = errors == errors.min(axis=1, keepdims=True)
    ballots = best / best.sum(axis=1, keepdims=True)
    if weights is not None:
        if not weights[: len(errors)].any():
            raise InputError(f"All of the {len(errors)} draws have the weight 0, so nobody votes. Use more draws.")
        ballots = ballots * weights[: len(errors), None]
    return ballots.sum(axis=0) / ballots.sum()
