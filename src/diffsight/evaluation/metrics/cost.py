"""What answers cost: denoiser calls, which are counted, and wall time, which is measured."""

from typing import Any

import numpy as np
from jaxtyping import Int


def cost(calls: Int[np.ndarray, " n"]) -> dict[str, float]:
    """Denoiser calls per image, as total, mean, median and 95th percentile; all 0 without an image."""
    known = calls if len(calls) else np.zeros(1)
    return {
        "total": int(known.sum()),
        "mean": float(known.mean()),
        "median": float(np.median(known)),
        "p95": float(np.percentile(known, 95)),
    }


def speed(seconds: float | None, images: int, device: str) -> dict[str, Any]:
    """Wall time of recognition: what is measured and not computed, and so differs from one run to the next.

    Args:
        seconds: With reading the images and without loading the model; None where it was not recorded.
        images: That were scored in this time.
        device: Where.

    Returns:
        ``seconds``; ``seconds_per_image`` and its inverse ``with_reading``, None where they are not known; ``device``.
    """
    known = bool(seconds and images)
    return {
        "seconds": seconds,
        "seconds_per_image": (seconds or 0.0) / images if known else None,
        "with_reading": images / seconds if seconds and known else None,
        "device": device,
    }
