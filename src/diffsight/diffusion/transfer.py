"""From the CPU to a device and back without a wait: a GPU that is never waited for is never idle."""

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor


def send(tensor: Shaped[Tensor, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """Put a tensor on a device.

    A copy from ordinary memory waits until the GPU has done all that it was given; one from pinned memory takes its
    turn there instead.

    Args:
        tensor: On the CPU; one that is elsewhere is moved as torch does it.
        device: Where to.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True, slots=True, eq=False)
class Arriving:
    """A tensor on its way back to the CPU; made by `fetch`.

    Attributes:
        values: Where it arrives.
        event: What says that it has, or None if it was there at once.
    """

    values: Tensor
    event: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """The tensor on the CPU, once it is there; what the GPU was given later is not waited for."""
        if self.event is not None:
            self.event.synchronize()
        return self.values


def fetch(tensor: Shaped[Tensor, "*shape"]) -> Arriving:
    """Let a tensor come back to the CPU as soon as it is computed."""
    if tensor.device.type != "cuda":
        return Arriving(tensor.cpu(), None)
    values = tensor.to("cpu", non_blocking=True)  # into pinned memory
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(tensor.device))
    return Arriving(values, event)
