"""Named places inside a denoiser, what passes through them, and what it costs to get there.

A UNet is a chain of encoder blocks, a middle block and decoder blocks. A block is what guided-diffusion calls one: a
ResNet, with the attention that follows it, or a change of resolution, which in a decoder belongs to the block before
it. They are called ``enc.0`` … ``mid`` … ``dec.17`` and, as Mukhopadhyay et al. (2307.08702) count them, ``b1`` …
``b37``. The blocks of a transformer are ``block.0`` … (of FLUX ``double.0`` … and ``single.0`` …), from ``b1`` on as
well; where they pass image and text on, what counts is the image. Any other module that gives a map or tokens is called
by its native path, such as ``up_blocks.1.attentions.0``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diffsight.backbones.base import Backbone, Condition, Layer
from diffsight.errors import InputError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """A layer's output and the way there, for one image.

    Attributes:
        layer: Which one.
        shape: Channels, height and width of its output.
        flops: Floating point operations from the input to this output: matrix products, convolutions and attention,
            two for each multiplication.
        share: The same as a share of the whole network.
    """

    layer: Layer
    shape: tuple[int, int, int]
    flops: int
    share: float


def unet_layers(network: nn.Module) -> tuple[Layer, ...]:
    """The blocks of a diffusers UNet in the order in which they run.

    Args:
        network: A ``UNet2DModel`` or ``UNet2DConditionModel``.
    """
    encoder, decoder = ["conv_in"], []
    for number, block in enumerate(network.get_submodule("down_blocks").children()):
        encoder += _steps(block, f"down_blocks.{number}")
        encoder += [f"down_blocks.{number}.downsamplers.0"] if _has(block, "downsamplers") else []
    for number, block in enumerate(network.get_submodule("up_blocks").children()):
        decoder += _steps(block, f"up_blocks.{number}")
        decoder[-1:] = [f"up_blocks.{number}.upsamplers.0"] if _has(block, "upsamplers") else decoder[-1:]
    named = [(f"enc.{i}", path) for i, path in enumerate(encoder)]
    named += [("mid", "mid_block")] if _has(network, "mid_block") else []
    named += [(f"dec.{i}", path) for i, path in enumerate(decoder)]
    return tuple(Layer(name=name, path=path, number=number) for number, (name, path) in enumerate(named, start=1))


def _steps(block: nn.Module, path: str) -> list[str]:
    """The last module of each ResNet, with or without attention."""
    kind = "attentions" if _has(block, "attentions") else "resnets"
    return [f"{path}.{kind}.{index}" for index, _ in enumerate(block.get_submodule("resnets").children())]


def _has(module: nn.Module, name: str) -> bool:
    return getattr(module, name, None) is not None


def transformer_layers(
    network: nn.Module, blocks: str = "transformer_blocks", *, name: str = "block", before: int = 0, output: int = 0
) -> tuple[Layer, ...]:
    """The blocks of a diffusion transformer in the order in which they run.

    Args:
        network: The transformer.
        blocks: Which of its lists.
        name: What they are called before their number.
        before: How many blocks of another list run before them.
        output: Which of their outputs is the image's.
    """
    count = len(network.get_submodule(blocks)._modules)
    return tuple(
        Layer(name=f"{name}.{i}", path=f"{blocks}.{i}", number=before + i + 1, output=output) for i in range(count)
    )


def find_layer(backbone: Backbone, name: str) -> Layer:
    """A layer by any of its names: ``dec.4``, ``b24``, or the path of any module.

    Raises:
        InputError: If there is none; the message has the nearest names and the ranges of all.
    """
    for layer in backbone.layers:
        if name in (layer.name, f"b{layer.number}", layer.path):
            return layer
    if name in dict(backbone.network.named_modules()) and name:
        return Layer(name=name, path=name, number=None)
    names = [layer.name for layer in backbone.layers]
    known = [*names, *(f"b{layer.number}" for layer in backbone.layers)]
    raise InputError(
        f"{backbone.name} has no layer {name!r}. {nearest(name, known)} It has {_ranges(names)}, also called b1 to "
        f"b{len(names)}, and every module by its path; 'diffsight layers {backbone.name}' lists them."
    )


def find_layers(backbone: Backbone, names: Sequence[str]) -> tuple[Layer, ...]:
    """Layers by name, in the order asked for.

    Raises:
        InputError: If the list is empty, a layer is unknown, or two names mean the same one.
    """
    if isinstance(names, str) or not names:
        raise InputError(f"Layers are a list of names such as ['dec.4']; got {names!r}.")
    found: dict[str, str] = {}
    layers = []
    for name in names:
        layer = find_layer(backbone, name)
        if layer.path in found:
            raise InputError(f"The layers {found[layer.path]!r} and {name!r} are the same one; name it once.")
        found[layer.path] = name
        layers.append(layer)
    return tuple(layers)


def intermediates(
    backbone: Backbone,
    x_t: Float[Tensor, "b c lh lw"],
    index: Int[Tensor, " b"],
    condition: Condition,
    layers: Sequence[Layer],
    *,
    stop_early: bool = True,
    add: Mapping[str, Tensor] | None = None,
) -> list[Float[Tensor, "b _ _ _"]]:
    """Run the denoiser and keep what some layers gave.

    Args:
        backbone: The model.
        x_t: Noised images or latents.
        index: The schedule's level of each row.
        condition: One member per row.
        layers: Which ones, from `find_layers`.
        stop_early: Run nothing after the last of them.
        add: Something to add to the output of layers, by native path, before the network goes on.

    Returns:
        Feature maps in the order of ``layers``, in the network's dtype; tokens are laid out as the map that they came
        from.

    Raises:
        InputError: If a layer does not run, or gives neither a map nor tokens of one.
    """
    found: dict[str, Tensor] = {}
    paths = {layer.path for layer in layers}
    outputs = {layer.path: layer.output for layer in (*backbone.layers, *layers)}

    def adder(path: str, extra: Tensor) -> Callable[..., object]:
        def hook(module: nn.Module, args: object, output: object) -> object:
            which = outputs.get(path, 0)
            changed = _tensor(path, output, which) + extra
            return (*output[:which], changed, *output[which + 1 :]) if isinstance(output, tuple) else changed

        return hook

    def keeper(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            found.setdefault(path, _tensor(path, output, outputs[path]))
            if stop_early and len(found) == len(paths):
                raise _Enough

        return hook

    # Hooks run in the order of registration: what is kept includes what was added.
    hooks = [(path, adder(path, extra)) for path, extra in (add or {}).items()]
    hooks += [(path, keeper(path)) for path in paths]
    handles = [backbone.network.get_submodule(path).register_forward_hook(hook) for path, hook in hooks]
    try:
        backbone.predict(x_t, index, condition)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if silent := [layer.name for layer in layers if layer.path not in found]:
        raise InputError(f"{backbone.name} does not run the layer {silent[0]!r} in a forward pass. Choose another.")
    return [as_map(found[layer.path], backbone.latent_shape[1:], layer.name) for layer in layers]


def profile(backbone: Backbone, layers: Sequence[Layer] | None = None) -> tuple[LayerProfile, ...]:
    """Shapes and costs of layers, from one pass without data: no weight is read, and nothing is computed.

    Args:
        backbone: The model.
        layers: Which ones; all blocks by default.

    Raises:
        InputError: As for `intermediates`.
    """
    chosen = backbone.layers if layers is None else tuple(layers)
    meta = torch.device("meta")
    network = backbone.network
    encoded = backbone.condition(())
    # Any class does where there is no null class: only shapes matter.
    some = (
        encoded.nulls(1) if encoded.null or not backbone.class_names else backbone.condition(backbone.class_names[:1])
    )
    condition = Condition(names=(), tensors={key: value.to(meta) for key, value in some.tensors.items()}, null={})
    spent: dict[str, int] = {}
    shell = _Shell(network, backbone, chosen)
    stand_ins = {name: t.to(meta) for name, t in (*shell.named_parameters(), *shell.named_buffers())}
    counter = FlopCounterMode(display=False)

    def meter(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            spent.setdefault(path, counter.get_total_flops())

        return hook

    handles = [network.get_submodule(layer.path).register_forward_hook(meter(layer.path)) for layer in chosen]
    x_t = torch.empty(1, *backbone.latent_shape, device=meta)
    try:
        with counter, torch.no_grad():
            maps = torch.func.functional_call(shell, stand_ins, (x_t, torch.zeros(1, dtype=torch.long), condition))
    finally:
        for handle in handles:
            handle.remove()
    total = counter.get_total_flops()
    return tuple(
        LayerProfile(layer=layer, shape=(m.shape[1], m.shape[2], m.shape[3]), flops=flops, share=flops / total)
        for layer, m, flops in zip(chosen, maps, (spent[layer.path] for layer in chosen), strict=True)
    )


def as_map(output: Tensor, sides: tuple[int, int], name: str = "the layer") -> Float[Tensor, "b _ _ _"]:
    """Bring a layer's output into the form (b, channels, height, width).

    Args:
        output: A map; tokens (b, tokens, channels) of a grid as wide for its height as the latent; or a vector (b,
            channels), which becomes a map of 1×1.
        sides: Height and width of the latent.
        name: What to call the layer in the error.

    Raises:
        InputError: If it is neither.
    """
    if output.ndim == 4:
        return output
    if output.ndim == 2:
        return output[:, :, None, None]
    if output.ndim == 3:
        tokens = output.shape[1]
        patch = math.isqrt(sides[0] * sides[1] // tokens)
        if patch and sides[0] // patch * (sides[1] // patch) == tokens:
            return output.transpose(1, 2).reshape(len(output), -1, sides[0] // patch, sides[1] // patch)
    raise InputError(
        f"{name} gives {tuple(output.shape)} for latents of {sides[0]}×{sides[1]}: neither a map nor one token for "
        "each place of a map. Choose another layer."
    )


class _Enough(BaseException):
    """All that was asked for is there; not an Exception, so that nothing on the way up takes it for an error."""


class _Shell(nn.Module):
    """A module around the network, so that `functional_call` can put other tensors in the place of its weights."""

    def __init__(self, network: nn.Module, backbone: Backbone, layers: Sequence[Layer]) -> None:
        super().__init__()
        self.network = network
        self.run = lambda x_t, index, condition: intermediates(
            backbone, x_t, index, condition, layers, stop_early=False
        )

    def forward(self, x_t: Tensor, index: Tensor, condition: Condition) -> list[Tensor]:
        return self.run(x_t, index, condition)


def _tensor(path: str, output: object, which: int) -> Tensor:
    one = output[which] if isinstance(output, tuple | list) and len(output) > which else output
    if not isinstance(one, Tensor):
        raise InputError(f"The module {path!r} gives a {type(output).__name__} and no tensor. Choose another layer.")
    return one


def _ranges(names: Sequence[str]) -> str:
    """``enc.0 to enc.17, mid, dec.0 to dec.17``."""
    families = list(dict.fromkeys(name.partition(".")[0] for name in names))
    groups = [[name for name in names if name.partition(".")[0] == family] for family in families]
    return ", ".join(group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}" for group in groups)
