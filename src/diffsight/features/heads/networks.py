"""The networks behind the heads: from feature maps to logits (arXiv 2307.08702), and feedback.

A network is made from the shapes of its columns by name, and fed a mapping that holds at least those: what goes where
is decided by names and never by position. Flattening is channel-major: all positions of a channel stand together.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diffsight.errors import InputError
from diffsight.features.heads.columns import Shape


def num_features(shapes: Mapping[str, Shape], pool: int | None) -> int:
    """Length of the vector that `flatten` makes of columns of these shapes."""
    most = pool or sys.maxsize
    return sum(channels * min(height, most) * min(width, most) for channels, height, width in shapes.values())


def flatten(
    maps: Mapping[str, Float[Tensor, "b _ _ _"]], names: Sequence[str], pool: int | None
) -> Float[Tensor, "b d"]:
    """Average to at most ``pool`` × ``pool``, flatten channel-major, and join the columns in the order of names."""
    return torch.cat([_average(maps[name], pool).flatten(1) for name in names], dim=1)


def _average(maps: Tensor, pool: int | None) -> Tensor:
    if pool is None:
        return maps
    return functional.adaptive_avg_pool2d(maps, (min(maps.shape[2], pool), min(maps.shape[3], pool)))


class FlatHead(nn.Module):
    """A linear layer on the flattened maps, or an MLP with ReLU between its layers; no norm, no dropout."""

    def __init__(
        self, shapes: Mapping[str, Shape], num_classes: int, *, hidden: Sequence[int] = (), pool: int | None = None
    ) -> None:
        super().__init__()
        self.names, self.pool = tuple(shapes), pool
        widths = [num_features(shapes, pool), *hidden, num_classes]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, maps: Mapping[str, Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.layers(flatten(maps, self.names, self.pool))


class CNNHead(nn.Module):
    """[Conv 3×3 stride 2, BatchNorm, ReLU] × n on each column → global average → one linear layer.

    The authors' CNN is in no code that they published: this is a design of our own in its place.
    """

    def __init__(self, shapes: Mapping[str, Shape], num_classes: int, *, widths: Sequence[int]) -> None:
        super().__init__()
        self.names = tuple(shapes)
        least = 2 ** len(widths)
        for name, (_, height, width) in shapes.items():
            if min(height, width) < least:
                raise InputError(
                    f"A CNN of {len(widths)} strided layers needs maps of {least}×{least} or more; column {name!r} has "
                    f"{height}×{width}. Take fewer widths, pool less, or use a linear head."
                )
        self.stacks = nn.ModuleList(self._stack([channels, *widths]) for channels, _, _ in shapes.values())
        self.linear = nn.Linear(widths[-1] * len(shapes), num_classes)

    @staticmethod
    def _stack(widths: Sequence[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            convolution = nn.Conv2d(width, following, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(following), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, maps: Mapping[str, Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k"]:
        """Logits."""
        means = [stack(maps[name]).mean((2, 3)) for name, stack in zip(self.names, self.stacks, strict=True)]
        return self.linear(torch.cat(means, dim=1))


class Feedback(nn.Module):
    """DifFeed's feedback (2311.17921): what features of the first pass add to the outputs of layers in the second.

    For each pair: 1×1 convolution without bias to the target's channels → BatchNorm → ReLU → bilinear to its size. The
    paper's six pairs (b21→17, 24→14, 27→11, 30→8, 33→5, 36→2) are 2.76 M parameters.
    """

    def __init__(self, pairs: Mapping[str, str], shapes: Mapping[str, Shape]) -> None:
        """Make one connection for each pair.

        Args:
            pairs: The target layer of each source layer.
            shapes: Channels, height and width of the output of every layer in ``pairs``.
        """
        super().__init__()
        if len(set(pairs.values())) < len(pairs):
            raise InputError(f"Each layer can be fed by one other; got {dict(pairs)}.")
        self.pairs = dict(pairs)
        self.sizes = {target: shapes[target][1:] for target in pairs.values()}
        self.connections = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(shapes[source][0], shapes[target][0], 1, bias=False),
                nn.BatchNorm2d(shapes[target][0]),
                nn.ReLU(),
            )
            for source, target in pairs.items()
        )

    def forward(self, features: Mapping[str, Float[Tensor, "b _ _ _"]]) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """By target layer, what to add to its output; ``features`` are by source layer."""
        connected = zip(self.pairs.items(), self.connections, strict=True)
        return {
            target: functional.interpolate(
                connect(features[source]), self.sizes[target], mode="bilinear", align_corners=False
            )
            for (source, target), connect in connected
        }
