"""Low-rank matrices in the attention of a denoiser, through PEFT; taken out again afterwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from diffsight.errors import ModelError

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
_NAME = "diffsight"


@contextmanager
def injected(network: nn.Module, *, rank: int, alpha: int, seed: int = 0) -> Iterator[list[nn.Parameter]]:
    """Add low-rank matrices to all attention layers, self and cross, as He et al. do with rank 4.

    Args:
        network: The denoiser; frozen, and left as it was.
        rank: Of the matrices.
        alpha: Their product is multiplied by ``alpha / rank``.
        seed: Of their random start; the global random state is left alone.

    Yields:
        The new parameters, which can be trained.

    Raises:
        ModelError: If PEFT is not installed.
    """
    import torch

    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.tuners_utils import BaseTunerLayer
    except ImportError as error:
        raise ModelError("LoRA needs PEFT. Install it: pip install 'diffsight[lora]'.") from error
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), lora_dropout=0.0, bias="none")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        inject_adapter_in_model(config, network, adapter_name=_NAME)
    try:
        yield [value for name, value in network.named_parameters() if _is_lora(name)]
    finally:
        for path, module in list(network.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, name = path.rpartition(".")
                setattr(network.get_submodule(parent), name, module.get_base_layer())
        if hasattr(network, "peft_config"):
            del network.peft_config
        network.requires_grad_(False)


def lora_state(network: nn.Module) -> dict[str, Tensor]:
    """The low-rank matrices in a network, by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.named_parameters() if _is_lora(name)}


def load_lora(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Set the low-rank matrices in a network.

    Raises:
        ModelError: If names or shapes are not those of this network.
    """
    own = {name: value for name, value in network.named_parameters() if _is_lora(name)}
    wrong = sorted({*own} ^ {*state}) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise ModelError(
            f"The low-rank matrices are of another network: {wrong[0]} does not fit. Fit the adapter again."
        )
    for name, value in own.items():
        value.data.copy_(state[name])


def _is_lora(name: str) -> bool:
    return f".lora_A.{_NAME}." in name or f".lora_B.{_NAME}." in name
