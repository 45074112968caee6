"""Heads by name: what can be put on feature maps, as values that build the networks and go into JSON.

`Linear`, `MLP`, `CNN`, `Attention` and `DifFormer` are networks, trained by `training.fit_heads`; `Logistic` and
`Neighbours` are fitted in closed form or by a solver. Which paper each is from is told with its network.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, TypeVar, get_args, runtime_checkable

import torch
from torch import nn

from diffsight.errors import InputError, nearest
from diffsight.features.heads.attention import AttentionHead, DifFormerHead, Norm, Transformer
from diffsight.features.heads.columns import Shape
from diffsight.features.heads.logistic import Logistic
from diffsight.features.heads.neighbours import Neighbours
from diffsight.features.heads.networks import CNNHead, FlatHead
from diffsight.features.heads.options import as_dict, check_sizes

Module = TypeVar("Module", bound=nn.Module)


@runtime_checkable
class HeadSpec(Protocol):
    """Any head's settings. ``name`` is its name in files and on the command line."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Name and options as JSON values; `head_from_dict` reads them."""
        ...


@runtime_checkable
class NetworkSpec(HeadSpec, Protocol):
    """Settings of a head that is a network."""

    def build(
        self, shapes: Mapping[str, Shape], num_classes: int, generator: torch.Generator | None = None
    ) -> nn.Module:
        """Make the network.

        Args:
            shapes: Channels, height and width of the maps of each column, in order.
            num_classes: How many logits.
            generator: Of the initial weights; None leaves them on the meta device, to be counted or loaded.

        Raises:
            InputError: If maps of these shapes cannot be used.
        """
        ...


def seeded(make: Callable[[], Module], generator: torch.Generator | None) -> Module:
    """Make a network with torch's default initial weights, but from a generator instead of the global random state.

    Args:
        make: Makes it, of linear layers, 2-D convolutions, norms and the transformers of this package only.
        generator: On the CPU; None leaves the weights on the meta device.
    """
    with torch.device("meta"):
        module = make()
    if generator is None:
        return module
    module.to_empty(device="cpu")
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            bound = part.weight[0].numel() ** -0.5
            for parameter in part.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        elif isinstance(part, nn.LayerNorm | nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, Transformer):
            nn.init.zeros_(part.cls)
    return module


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One linear layer on the flattened maps.

    Attributes:
        pool: Maps are averaged to at most this size; None takes them as they are.
    """

    name: ClassVar[str] = "linear"
    pool: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "pool")

    def build(
        self, shapes: Mapping[str, Shape], num_classes: int, generator: torch.Generator | None = None
    ) -> FlatHead:
        """As `NetworkSpec.build`."""
        return seeded(lambda: FlatHead(shapes, num_classes, pool=self.pool), generator)

    def to_dict(self) -> dict[str, Any]:
        """As `HeadSpec.to_dict`."""
        return as_dict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MLP:
    """Linear layers with ReLU between them on the flattened maps.

    Attributes:
        hidden: Widths of the hidden layers.
        pool: Maps are averaged to at most this size; None takes them as they are.
    """

    name: ClassVar[str] = "mlp"
    hidden: tuple[int, ...] = (2048,)
    pool: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "hidden", "pool")

    def build(
        self, shapes: Mapping[str, Shape], num_classes: int, generator: torch.Generator | None = None
    ) -> FlatHead:
        """As `NetworkSpec.build`."""
        return seeded(lambda: FlatHead(shapes, num_classes, hidden=self.hidden, pool=self.pool), generator)

    def to_dict(self) -> dict[str, Any]:
        """As `HeadSpec.to_dict`."""
        return as_dict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CNN:
    """Strided convolutions on each column; a design of our own, as the authors' is not published.

    Attributes:
        widths: Channels of the layers, each of which halves the maps.
    """

    name: ClassVar[str] = "cnn"
    widths: tuple[int, ...] = (512, 512)

    def __post_init__(self) -> None:
        check_sizes(self, "widths")

    def build(self, shapes: Mapping[str, Shape], num_classes: int, generator: torch.Generator | None = None) -> CNNHead:
        """As `NetworkSpec.build`."""
        return seeded(lambda: CNNHead(shapes, num_classes, widths=self.widths), generator)

    def to_dict(self) -> dict[str, Any]:
        """As `HeadSpec.to_dict`."""
        return as_dict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """The first paper's transformer over the positions of one column.

    Attributes:
        blocks: How many; the first paper has 1 to 5.
        heads: Of attention; they must divide the column's channels.
    """

    name: ClassVar[str] = "attention"
    blocks: int = 2
    heads: int = 8

    def __post_init__(self) -> None:
        check_sizes(self, "blocks", "heads")

    def build(
        self, shapes: Mapping[str, Shape], num_classes: int, generator: torch.Generator | None = None
    ) -> AttentionHead:
        """As `NetworkSpec.build`."""
        return seeded(lambda: AttentionHead(shapes, num_classes, blocks=self.blocks, heads=self.heads), generator)

    def to_dict(self) -> dict[str, Any]:
        """As `HeadSpec.to_dict`."""
        return as_dict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DifFormer:
    """A transformer over several layers and timesteps; with one column, the second paper's attention head.

    Attributes:
        dim: Width of the tokens.
        blocks: How many.
        heads: Of attention; they must divide ``dim``.
        size: Maps are averaged to at most this size.
        norm: What the tokenizers normalise with: ``"layer"`` over the whole map, or ``"batch"``.
    """

    name: ClassVar[str] = "difformer"
    dim: int = 1024
    blocks: int = 2
    heads: int = 8
    size: int = 16
    norm: Norm = "layer"

    def __post_init__(self) -> None:
        check_sizes(self, "dim", "blocks", "heads", "size")
        if self.norm not in get_args(Norm):
            raise InputError(f"Unknown norm {self.norm!r}. {nearest(self.norm, get_args(Norm))}")

    def build(
        self, shapes: Mapping[str, Shape], num_classes: int, generator: torch.Generator | None = None
    ) -> DifFormerHead:
        """As `NetworkSpec.build`."""
        return seeded(
            lambda: DifFormerHead(
                shapes,
                num_classes,
                dim=self.dim,
                blocks=self.blocks,
                heads=self.heads,
                size=self.size,
                norm=self.norm,
            ),
            generator,
        )

    def to_dict(self) -> dict[str, Any]:
        """As `HeadSpec.to_dict`."""
        return as_dict(self)


HEADS: Mapping[str, type] = {head.name: head for head in (Linear, MLP, CNN, Attention, DifFormer, Logistic, Neighbours)}


def head_spec(head: str | HeadSpec) -> HeadSpec:
    """A head by name with its default options, or the settings as they are.

    Raises:
        InputError: If there is no such head.
    """
    return head_from_dict({"name": head}) if isinstance(head, str) else head


def head_from_dict(values: Mapping[str, Any]) -> HeadSpec:
    """Make a head's settings from its name and options, as `HeadSpec.to_dict` or JSON has them.

    Args:
        values: ``{"name": "linear", "pool": 2}``; options that are left out are the head's defaults.

    Raises:
        InputError: If there is no such head, it has no such option, or a value makes no sense.
    """
    options = dict(values)
    name = str(options.pop("name", ""))
    if name not in HEADS:
        raise InputError(f"Unknown head {name!r}. {nearest(name, HEADS)}")
    known = [field.name for field in fields(HEADS[name])]
    for option in options:
        if option not in known:
            raise InputError(f"Head {name!r} has no option {option!r}. {nearest(option, known)}")
    arguments = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    try:
        return HEADS[name](**arguments)
    except TypeError as error:
        raise InputError(f"An option of head {name!r} is of the wrong type; got {options}.") from error
