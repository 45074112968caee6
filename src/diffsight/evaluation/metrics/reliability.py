"""How far a stated confidence can be believed (Guo et al. 2017, arXiv:1706.04599)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """How often images of a stated confidence are right: a reliability diagram.

    Attributes:
        edges: Ends of the equal-width bins of confidence, from 0 to 1; a bin contains its upper end.
        counts: Images in each bin.
        accuracy: Share of right images in each bin, NaN in an empty one.
        confidence: Mean confidence in each bin, NaN in an empty one.
    """

    edges: Float[np.ndarray, " ends"]
    counts: Int[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]

    @property
    def error(self) -> float:
        """Expected calibration error: the mean gap of accuracy and confidence, weighted by the images in each bin."""
        return float(np.nansum(self.counts * np.abs(self.accuracy - self.confidence)) / self.counts.sum())


def reliability(confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, bins: int = 15) -> Reliability:
    """Compare stated confidence with accuracy (Guo et al. 2017, arXiv:1706.04599, §2).

    Args:
        confidence: Probability of the predicted class.
        correct: Which images are right.
        bins: How many bins of equal width.
    """
    edges = np.linspace(0, 1, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    known = np.where(counts > 0, counts, np.nan)
    return Reliability(
        edges,
        counts,
        np.bincount(index, weights=correct, minlength=bins) / known,
        np.bincount(index, weights=confidence, minlength=bins) / known,
    )


def calibration(diagram: Reliability) -> dict[str, Any]:
    """A diagram as JSON values: ``ece``, ``mean_confidence`` and the filled ``bins``."""
    filled = np.flatnonzero(diagram.counts)
    return {
        "ece": diagram.error,
        "mean_confidence": float(np.nansum(diagram.counts * diagram.confidence) / diagram.counts.sum()),
        "bins": [
            {
                "low": float(diagram.edges[index]),
                "high": float(diagram.edges[index + 1]),
                "images": int(diagram.counts[index]),
                "accuracy": float(diagram.accuracy[index]),
                "confidence": float(diagram.confidence[index]),
            }
            for index in filled
        ],
    }
