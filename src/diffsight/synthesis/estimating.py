"""What a set will cost, before it is drawn: calls by calculation, time and room from a few images that are drawn."""

import time
from dataclasses import dataclass

from diffsight.synthesis.folder import encode
from diffsight.synthesis.painting import Order, Painter, resized
from diffsight.synthesis.plan import Plan

PILOT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a set costs if every image is kept at the first attempt; each that is drawn again costs as much again.

    Attributes:
        images: In the whole set.
        calls: Denoiser calls.
        calls_per_second: Of the pilot, decoding and writing included.
        bytes: On disk, roughly.
        pilot_images: That were really drawn.
    """

    images: int
    calls: int
    calls_per_second: float
    bytes: float
    pilot_images: int

    @property
    def seconds(self) -> float:
        """Wall time without loading and without what the label check costs."""
        return self.calls / self.calls_per_second


def estimate(plan: Plan, batch_size: int) -> Cost:
    """Draw the first images of a plan, keep nothing, and extrapolate.

    Args:
        plan: From `make_plan`.
        batch_size: As for the whole; a few images fill no large batch, so that a GPU will be quicker than this says.
    """
    settings = plan.settings
    painter = Painter(backbone=plan.backbone, sampler=settings.sampler, seed=settings.seed)
    wanted = [(label, index) for index in range(settings.per_class) for label in range(len(plan.classes))]
    batch = wanted[: min(PILOT, batch_size)]
    names = plan.classes.names
    started, size = time.perf_counter(), 0
    orders = [
        Order(label=label, name=names[label], index=index, attempt=0, prescription=plan.prescription(label, index))
        for label, index in batch
    ]
    for painted in painter.paint(orders):
        size += len(encode(resized(painted.pixels, settings.size, antialias=settings.antialias), ""))
    rate = painter.calls / max(time.perf_counter() - started, 1e-9)
    return Cost(
        images=len(plan),
        calls=plan.calls,
        calls_per_second=rate,
        bytes=size / len(batch) * len(plan),
        pilot_images=len(batch),
    )
