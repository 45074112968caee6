"""What a method costs: seconds and floating-point operations of an image, and peak memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffsight.backbones.base import Backbone
from diffsight.evaluation.recognisers import Recogniser
from diffsight.evaluation.trained import device_of

PILOT = 32


def flops_of(run: Callable[[], object]) -> float | None:
    """Floating-point operations of what is run, as torch counts them (two for a multiply-add); None if it sees none."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops()) or None


def flops_of_recogniser(model: Recogniser) -> float | None:
    """Of one image; None for ONNX, which torch does not see."""
    if device_of(model).startswith("cpu (onnx"):
        return None
    side = model.preprocessing.size
    return flops_of(lambda: model.run(torch.zeros(1, 3, side, side, dtype=torch.uint8)))


def flops_of_call(backbone: Backbone) -> tuple[float | None, float | None]:
    """Of one denoiser call, and of encoding one image."""
    channels, height, width = backbone.latent_shape
    side = backbone.transform.output_size
    condition = backbone.condition(()).nulls(1) if backbone.class_names is None else None
    if condition is None:
        condition = backbone.condition(tuple(backbone.class_names or ())[:1]).take([0])
    x_t = torch.zeros(1, channels, height, width, device=backbone.device)
    with torch.no_grad():
        call = flops_of(lambda: backbone.predict(x_t, torch.zeros(1, dtype=torch.long), condition))
        encoding = flops_of(lambda: backbone.encode(torch.zeros(1, 3, side, side)))
    return call, encoding


@dataclass(slots=True)
class Memory:
    """Peak of what a stretch of work held on a CUDA device.

    Attributes:
        peak: Bytes; None on other devices.
    """

    peak: int | None = None


@contextmanager
def peak_memory(device: torch.device, loaded: int = 0) -> Iterator[Memory]:
    """Measure a stretch of work.

    Args:
        device: Where it is done.
        loaded: Bytes of weights that it uses and that are there already.

    Yields:
        What holds the result at the end.
    """
    found = Memory()
    if device.type != "cuda":
        yield found
        return
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    yield found
    found.peak = torch.cuda.max_memory_allocated(device) - before + loaded


def weights_of(backbone: Backbone) -> int:
    """Bytes of a denoiser's weights."""
    return sum(each.numel() * each.element_size() for each in backbone.network.parameters())
