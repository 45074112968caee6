"""Options that change how fast a loaded backbone computes, and its numbers by no more than rounding."""

from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from diffsight.backbones.base import Backbone
from diffsight.errors import InputError, ModelError, nearest

# torch's own names. The second and third replay a CUDA graph: one launch for the whole network.
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_GRAPHED = ("reduce-overhead", "max-autotune")
_MOST_SHAPES = 4  # Compiled for one network: each costs a minute and memory.

Model = TypeVar("Model", bound=Backbone)


def speed_up(
    backbone: Model, *, channels_last: bool = False, compile: str | None = None, backend: str = "inductor"
) -> Model:
    """The same model with exactly these options of speed; what is not asked for is undone.

    Nothing here belongs to a run's fingerprint: `identity` stays as it is.

    A compiled network is made for constant shapes. It is compiled (tens of seconds) when a batch of one shape comes for
    the second time running, which full batches do and the rest at the end of a stream does not; any other batch runs
    plainly. It also runs plainly wherever somebody looks inside (features, attention, layers), changes it (LoRA), or
    wants gradients: compiled code would pass all that by in silence.

    Args:
        backbone: From `diffsight.load`.
        channels_last: Lay the weights of a UNet's convolutions out as NHWC. They are laid out anew where they are, not
            copied: a backbone that shares the network has them so, too.
        compile: A mode of ``torch.compile``: ``"default"``, ``"reduce-overhead"`` (CUDA graphs, for small batches),
            ``"max-autotune"`` or ``"max-autotune-no-cudagraphs"``; None does not compile.
        backend: Of ``torch.compile``; another than ``"inductor"`` takes no mode but ``"default"``.

    Returns:
        A backbone of the same kind, with the same weights in memory.

    Raises:
        InputError: If a mode is unknown, or the network is none to which an option applies.
    """
    if compile is not None and compile not in MODES:
        raise InputError(f"Unknown mode of compilation {compile!r}. {nearest(str(compile), MODES)}")
    if compile not in (None, "default") and backend != "inductor":
        raise InputError(f"The mode {compile!r} is one of the backend 'inductor'. With {backend!r} use 'default'.")
    network = backbone.network
    place = _place(backbone)
    if channels_last and not hasattr(network, "down_blocks"):
        raise InputError(
            f"channels_last is for UNets, whose work is in convolutions; {backbone.name} is a "
            f"{type(network).__name__}. Leave it off."
        )
    if hasattr(network, "down_blocks"):
        network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    plain = copy(network)  # a shell around the same modules and weights
    vars(plain).pop("forward", None)
    if compile is None:
        return replace(backbone, **{place: plain})  # pyright: ignore[reportArgumentType] - a dataclass, see _place
    fast = copy(plain)
    fast.forward = _Dispatch(plain, name=backbone.name, mode=compile, backend=backend)
    return replace(backbone, **{place: fast})  # pyright: ignore[reportArgumentType]


def _place(backbone: Backbone) -> str:
    """The field that holds the network."""
    if is_dataclass(backbone):
        for field in fields(backbone):
            if getattr(backbone, field.name) is backbone.network:
                return field.name
    raise InputError(
        f"{backbone.name} is a {type(backbone).__name__}, which does not keep its network in a field of a dataclass: "
        "there is nothing to put another into."
    )


class _Dispatch:
    """Stands for a network's forward: compiled for shapes that keep coming, as it was for everything else."""

    def __init__(self, network: nn.Module, *, name: str, mode: str, backend: str) -> None:
        self._network = network
        self._name = name
        self._graphed = mode in _GRAPHED and backend == "inductor"
        options: dict[str, Any] = {"mode": mode} if backend == "inductor" else {}
        self._compiled: Callable[..., Any] = torch.compile(network.forward, dynamic=False, backend=backend, **options)
        self._modules = _walk(network)
        self._made: set[tuple[object, ...]] = set()
        self._last: tuple[object, ...] | None = None

    def __call__(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - whatever the network takes and gives
        if torch.is_grad_enabled() or self._is_watched() or _first_tensor(args, options).is_meta:
            return self._network.forward(*args, **options)
        # Tensors made under inference mode are of another sort, for which torch compiles anew.
        shapes = (*map(_shape, args), _shape(options), torch.is_inference_mode_enabled())
        if shapes not in self._made:
            again, self._last = shapes == self._last, shapes
            if not again or len(self._made) == _MOST_SHAPES:
                return self._network.forward(*args, **options)
            return self._first(shapes, *args, **options)
        return self._run(*args, **options)

    def _first(self, shapes: tuple[object, ...], /, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        try:
            output = self._run(*args, **options)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ModelError(
                f"{self._name} cannot be compiled here ({reason.strip()}). "
                f"Check that torch.compile works, or leave it off."
            ) from error
        self._made.add(shapes)
        return output

    def _run(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        if not self._graphed:
            return self._compiled(*args, **options)
        torch.compiler.cudagraph_mark_step_begin()
        output = self._compiled(*args, **options)
        # A graph writes its next output over this one.
        return type(output)(sample=output.sample.clone())

    def _is_watched(self) -> bool:
        """Whether there are hooks, or other modules than when it was compiled."""
        modules = _walk(self._network)
        return len(modules) != len(self._modules) or any(
            now is not then or now._forward_hooks or now._forward_pre_hooks
            for now, then in zip(modules, self._modules, strict=True)
        )


def _walk(network: nn.Module) -> list[nn.Module]:
    """All modules, quicker than `nn.Module.modules`: this is in the hot loop."""
    found = [network]
    for module in found:  # it grows while it is read
        if module._modules:
            found.extend(child for child in module._modules.values() if child is not None)
    return found


def _shape(value: object) -> object:
    """Everything about an argument for which there is other compiled code."""
    match value:
        case Tensor():
            return (value.shape, value.dtype, value.device)
        case dict():
            return tuple((key, _shape(item)) for key, item in value.items())
        case list() | tuple():
            return tuple(map(_shape, value))
    return value


def _first_tensor(args: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
    return next(value for value in (*args, *options.values()) if isinstance(value, Tensor))
