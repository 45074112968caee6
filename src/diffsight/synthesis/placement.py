"""Where a network is trained: one device, or the processes that ``accelerate launch`` started.

For one device torch is enough. HF Accelerate keeps its choice of device and precision for the whole process, so that it
is asked only where several processes have to work as one.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffsight.backbones.base import resolve_device
from diffsight.errors import InputError, ModelError

Value = TypeVar("Value")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Placement:
    """Devices and precision of a training.

    Attributes:
        device: Of this process.
        amp: ``"no"``, ``"bf16"`` or ``"fp16"``.
        accelerator: Accelerate's, if there are several processes.
    """

    device: torch.device
    amp: str
    accelerator: Any = None

    @property
    def processes(self) -> int:
        """How many work together."""
        return 1 if self.accelerator is None else self.accelerator.num_processes

    @property
    def rank(self) -> int:
        """Which of them this is."""
        return 0 if self.accelerator is None else self.accelerator.process_index

    @property
    def leads(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, with gradients that are averaged over the processes."""
        return network if self.accelerator is None else self.accelerator.prepare_model(network)

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in the chosen precision."""
        if self.amp == "no":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=_DTYPES[self.amp])

    def scaler(self) -> torch.amp.GradScaler:
        """What keeps small gradients of fp16 from vanishing; it does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over the processes."""
        return value if self.accelerator is None else self.accelerator.reduce(value, reduction="sum")

    def agree(self, find: Callable[[], Value]) -> Value:
        """What the first process finds, in all of them."""
        if self.accelerator is None:
            return find()
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [find() if self.leads else None]
        return broadcast_object_list(found)[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()


def place(device: str | torch.device | None, amp: str) -> Placement:
    """Choose devices and precision.

    Args:
        device: Of the one process; several, under ``accelerate launch``, get theirs from it.
        amp: ``"auto"``, ``"no"``, ``"bf16"`` or ``"fp16"``.

    Raises:
        InputError: If the device does not exist, cannot compute in this precision, or is given to several processes.
        ModelError: If there are several processes and Accelerate is not installed.
    """
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device not in (None, "cpu"):
            raise InputError(f"Several processes choose their devices themselves: leave out the device {device!r}.")
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ModelError(
                "Training in several processes needs Accelerate. Install it: pip install 'diffsight[train]'."
            ) from error
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")  # precision is `autocast`'s business
        chosen = accelerator.device
    else:
        chosen = resolve_device(device)
    if amp == "auto":
        amp = "bf16" if chosen.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    if amp == "fp16" and chosen.type != "cuda":
        raise InputError(f"fp16 needs a CUDA GPU, and this is {chosen.type}. Use amp 'bf16' or 'no'.")
    return Placement(device=chosen, amp=amp, accelerator=accelerator)
