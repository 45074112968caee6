"""Low-rank matrices in the attention of a denoiser, through PEFT; taken out again afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffsight.errors import ModelError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_NAME = "diffsight"


@contextmanager
def injected(network: nn.Module, *, rank: int, alpha: float, seed: int = 0) -> Iterator[list[nn.Parameter]]:
    """Add low-rank matrices to all attention layers, self and cross, as He et al. do with rank 4.

    The second matrix of each pair starts at 0, so that the network computes at first what it did.

    Args:
        network: The denoiser; whatever happens, it is left as it was, with the same modules and parameters.
        rank: Of the matrices.
        alpha: Their product is multiplied by ``alpha / rank``.
        seed: Of their random start; the global random state is left alone.

    Yields:
        The new parameters, which can be trained; fp32 whatever the network computes in.

    Raises:
        ModelError: If PEFT is not installed, the network has low-rank matrices already, or no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise ModelError("LoRA needs PEFT. Install it: pip install 'diffsight[lora]'.") from error
    modules = dict(network.named_modules())
    if any(isinstance(module, BaseTunerLayer) for module in modules.values()):
        # Taking ours out would leave the others behind, in a network that is no longer the one that was loaded.
        raise ModelError(
            "The network has low-rank matrices already. Apply one adapter at a time, and load the model without LoRA."
        )
    # The layers that PEFT replaces, and what it freezes.
    replaced = {path: module for path, module in modules.items() if path.endswith(tuple(f".{x}" for x in TARGETS))}
    if not replaced:
        raise ModelError(f"The network has no attention layers with {', '.join(TARGETS)}. Fit 'weights'.")
    trained = {parameter: parameter.requires_grad for parameter in network.parameters()}
    attributes = set(vars(network))
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), lora_dropout=0.0, bias="none")  # pyright: ignore[reportArgumentType] - PEFT's annotation says int, and it only divides
    try:
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)
            inject_adapter_in_model(config, network, adapter_name=_NAME)
        for value in _matrices(network).values():
            value.data = value.data.float()  # bf16 would swallow small steps
        yield list(_matrices(network).values())
    finally:
        for path, module in replaced.items():
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, module)
        for name in set(vars(network)) - attributes:
            delattr(network, name)
        for parameter, before in trained.items():
            parameter.requires_grad_(before)


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """The low-rank matrices in a network, by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in _matrices(network).items()}


def load_lora(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the low-rank matrices in a network.

    Raises:
        ModelError: If names or shapes are not those of this network.
    """
    own = _matrices(network)
    wrong = sorted({*own} ^ {*state}) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ModelError(
            f"The low-rank matrices are of another network: {wrong[0]} does not fit. Fit the adapter again."
        )
    for name, value in own.items():
        value.data.copy_(state[name])


def _matrices(network: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name: value
        for name, value in network.named_parameters()
        if f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name
    }
