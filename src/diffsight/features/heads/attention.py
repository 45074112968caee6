"""Attention heads: transformers over the positions of feature maps (arXiv 2307.08702 and 2311.17921).

The first is from arXiv 2307.08702, the others from its second version, arXiv 2311.17921.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diffsight.errors import InputError
from diffsight.features.heads.columns import Shape

Norm = Literal["layer", "batch"]


class Block(nn.Module):
    """A pre-norm transformer block: attention, then an MLP with GELU; no bias on queries, keys and values."""

    def __init__(self, dim: int, *, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(
                f"{dim} channels cannot be shared by {heads} attention heads. Take heads that divide {dim}."
            )
        self.heads = heads
        self.attention_norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, tokens: Float[Tensor, "b n d"], rows: int | None = None) -> Float[Tensor, "b m d"]:
        """Transform the first ``rows`` tokens (None: all); the others are only looked at."""
        normed = self.attention_norm(tokens)
        query = self._split(self.query(normed[:, :rows]))
        key, value = (self._split(part) for part in self.key_value(normed).chunk(2, dim=-1))
        attended = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        kept = tokens[:, :rows] + self.out(attended)
        return kept + self.mlp(self.mlp_norm(kept))

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Transformer(nn.Module):
    """Blocks over a learned class token (zero at first) and the given tokens, without positional embedding."""

    def __init__(self, dim: int, *, blocks: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(dim))
        self.blocks = nn.ModuleList(Block(dim, heads=heads, mlp_ratio=mlp_ratio) for _ in range(blocks))

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The class token after the last block, which therefore computes no other."""
        tokens = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self.blocks[-1](tokens, rows=1)[:, 0]


class AttentionHead(nn.Module):
    """The first paper's attention head (2307.08702): 2×2 averages → tokens of the column's own width → blocks → linear.

    1 to 5 blocks on 1024×16×16 and 1000 classes are 13.6, 26.2, 38.8, 51.4 and 64.0 M parameters, as in its figure.
    """

    def __init__(
        self, shapes: Mapping[str, Shape], num_classes: int, *, blocks: int, heads: int, mlp_ratio: int = 4
    ) -> None:
        super().__init__()
        if len(shapes) != 1:
            raise InputError(f"The attention head takes one column; got {list(shapes)}. Use 'difformer' for several.")
        ((self.name, (channels, height, width)),) = shapes.items()
        if min(height, width) < 2:
            raise InputError(
                f"The attention head averages 2×2 positions; column {self.name!r} has maps of {height}×{width}. Pool "
                "less, or use a linear head."
            )
        self.transformer = Transformer(channels, blocks=blocks, heads=heads, mlp_ratio=mlp_ratio)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, maps: Mapping[str, Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k"]:
        """Logits."""
        # On maps of odd size the last row and column are averaged by themselves rather than lost.
        pooled = functional.avg_pool2d(maps[self.name], 2, ceil_mode=True)
        return self.linear(self.transformer(pooled.flatten(2).transpose(1, 2)))


class Tokenizer(nn.Module):
    """Average to at most ``size`` × ``size`` → norm → 1×1 convolution → one token per position (2311.17921).

    The layer norm is over the whole map [C, h, w], and its gains and biases are all that tells a position.
    """

    def __init__(self, shape: Shape, dim: int, *, size: int, norm: Norm) -> None:
        super().__init__()
        channels, height, width = shape
        self.size = min(height, size), min(width, size)
        self.norm = nn.LayerNorm([channels, *self.size]) if norm == "layer" else nn.BatchNorm2d(channels)
        self.convolution = nn.Conv2d(channels, dim, 1)

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Tokens, positions in reading order."""
        pooled = functional.adaptive_avg_pool2d(maps, self.size)
        return self.convolution(self.norm(pooled)).flatten(2).transpose(1, 2)


class DifFormerHead(nn.Module):
    """DifFormer (2311.17921): tokens of all layers of a timestep → shared transformer → joined class tokens → linear.

    Tokenizers belong to a layer and are shared over the timesteps. One layer at one timestep is the attention head of
    the second paper: 27.79 M parameters on 1024×16×16 with 1000 classes.
    """

    def __init__(
        self,
        shapes: Mapping[str, Shape],
        num_classes: int,
        *,
        dim: int,
        blocks: int,
        heads: int,
        size: int,
        norm: Norm,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__()
        layers, self.timesteps = by_timestep(shapes)
        self.tokenizers = nn.ModuleList(Tokenizer(shape, dim, size=size, norm=norm) for shape in layers.values())
        self.transformer = Transformer(dim, blocks=blocks, heads=heads, mlp_ratio=mlp_ratio)
        self.linear = nn.Linear(dim * len(self.timesteps), num_classes)

    def forward(self, maps: Mapping[str, Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k"]:
        """Logits."""
        summaries = []
        for names in self.timesteps:
            tokens = [tokenize(maps[name]) for name, tokenize in zip(names, self.tokenizers, strict=True)]
            summaries.append(self.transformer(torch.cat(tokens, dim=1)))
        return self.linear(torch.cat(summaries, dim=1))


def by_timestep(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], tuple[tuple[str, ...], ...]]:
    """Sort columns ``"layer@timestep"`` into a table of timesteps × layers, both in the order of first appearance.

    Returns:
        The shape of each layer, and for each timestep its column names in the order of the layers.

    Raises:
        InputError: If a layer is missing at a timestep, or has another shape there.
    """
    layers: dict[str, Shape] = {}
    table: dict[str, dict[str, str]] = {}
    for name, shape in shapes.items():
        layer, at, timestep = name.rpartition("@") if "@" in name else (name, "", "")
        if layers.setdefault(layer, shape) != shape:
            raise InputError(f"Layer {layer!r} has maps of {layers[layer]} and, at {at}{timestep}, of {shape}.")
        table.setdefault(timestep, {})[layer] = name
    for timestep, row in table.items():
        if missing := [layer for layer in layers if layer not in row]:
            raise InputError(
                f"DifFormer needs every layer at every timestep; {', '.join(missing)} is missing at {timestep or '—'}."
            )
    return layers, tuple(tuple(row[layer] for layer in layers) for row in table.values())
