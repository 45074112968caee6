"""Cross-attention between an image and a text, read off a stock denoiser while it runs.

What is read are the logits before the softmax, a = ⟨q, k⟩ / √d of every image place q and token k (He et al.,
2305.10722, §3). They are made from the queries and keys that the network computes anyway, a stretch of image places
at a time, and pooled at once: the map itself is never in memory, and the attention of the network stays fused.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffsight.errors import InputError, nearest

POOLS = ("lse", "mean", "max", "cosine")
_STRETCH = 2**21  # Logits in memory at once: 8 MiB in fp32.


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionLayer:
    """A place where image and text meet.

    Attributes:
        name: Stable name: ``down.2.0``, ``mid.0``, ``up.3.1``; ``block.7`` in a transformer.
        path: Of the attention module in the network.
        heads: How many heads it has.
        joint: Whether image and text attend to each other in one attention, as in Stable Diffusion 3; then its
            image-to-text part is read.
    """

    name: str
    path: str
    heads: int
    joint: bool


def attention_layers(network: nn.Module) -> tuple[AttentionLayer, ...]:
    """All cross-attention and joint-attention layers of a denoiser, in the order in which they are stored.

    Layers whose keys are rotated by their place (FLUX) are left out: their logits are not ⟨q, k⟩.
    """
    found = []
    rotary = "Flux" in type(network).__name__
    for path, module in network.named_modules():
        heads: Any = getattr(module, "heads", None)
        if heads is None or not hasattr(module, "to_q") or not hasattr(module, "to_k"):
            continue
        joint = getattr(module, "add_k_proj", None) is not None
        if not rotary if joint else getattr(module, "is_cross_attention", False):
            found.append(AttentionLayer(name=_short(path), path=path, heads=int(heads), joint=joint))
    return tuple(sorted(found, key=lambda layer: _section(layer.path)))


def default_layers(network: nn.Module) -> tuple[AttentionLayer, ...]:
    """The layers of He et al.'s code: the last cross-attention block of each section of a UNet.

    These are 6 of Stable Diffusion's 16. Of a transformer, which they did not use, the second half of its blocks.

    Raises:
        InputError: If the network has none.
    """
    layers = attention_layers(network)
    if not layers:
        raise InputError("This model has no attention between image and text. Use the score 'pmi' or 'error'.")
    if all(layer.name.startswith("block.") for layer in layers):
        return layers[len(layers) // 2 :]
    # The block is ``down.2`` or ``mid``; what follows is the layer in it.
    blocks = ["mid" if layer.name.startswith("mid") else ".".join(layer.name.split(".")[:2]) for layer in layers]
    wanted = {block.partition(".")[0]: block for block in blocks}.values()
    return tuple(layer for layer, block in zip(layers, blocks, strict=True) if block in wanted)


def find_attention_layers(network: nn.Module, names: Sequence[str] | None) -> tuple[AttentionLayer, ...]:
    """Layers by name; None for the default ones.

    Raises:
        InputError: If a name is unknown or there twice; the message has the nearest names.
    """
    if names is None:
        return default_layers(network)
    known = {layer.name: layer for layer in attention_layers(network)} | {
        layer.path: layer for layer in attention_layers(network)
    }
    if isinstance(names, str) or not names:
        raise InputError(f"Attention layers are a list of names such as ['mid.0']; got {names!r}.")
    for name in names:
        if name not in known:
            raise InputError(f"There is no attention layer {name!r}. {nearest(name, list(known))}")
    chosen = tuple(known[name] for name in names)
    if len(set(chosen)) < len(chosen):
        raise InputError(f"An attention layer is there twice: {', '.join(names)}.")
    return chosen


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pooling:
    """How logits become one number per layer and head.

    Over tokens by ``pool``, then by the mean over image places.

    Attributes:
        pool: ``lse`` (1/λ · log Σ exp(λa)), ``mean``, ``max``, or ``cosine`` (mean of the angles' cosines, not of the
            logits).
        temperature: λ of the LSE.
        per_token: Divide by the number of tokens inside of the LSE's logarithm, so that a longer text is not a better
            one. Without, as published, log of the number of tokens is most of the score.
    """

    pool: str = "lse"
    temperature: float = 1.0
    per_token: bool = True

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise InputError(f"Unknown pooling of attention {self.pool!r}. {nearest(self.pool, POOLS)}")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"The temperature of the log-sum-exp must be over 0; got {self.temperature}.")

    def __call__(
        self,
        query: Float[Tensor, "b heads places d"],
        key: Float[Tensor, "b heads tokens d"],
        tokens: Bool[Tensor, "b tokens"],
    ) -> Float[Tensor, "b heads"]:
        """Pool the logits of queries and keys in fp32.

        Args:
            query: Of image places.
            key: Of tokens.
            tokens: Which tokens count; at least one in each row.
        """
        batch, heads, places, _ = query.shape
        step = max(1, _STRETCH // (batch * heads * key.shape[2]))
        pool = partial(self._places, key=key, tokens=tokens)
        total = torch.zeros(batch, heads, device=query.device)
        for start in range(0, places, step):
            part = query[:, :, start : start + step]
            # Training remembers queries and keys, not logits: they are made again on the way back.
            again = torch.is_grad_enabled() and (query.requires_grad or key.requires_grad)
            total = total + (checkpoint(pool, part, use_reentrant=False) if again else pool(part))
        return total / places

    def _places(self, query: Tensor, key: Tensor, tokens: Tensor) -> Tensor:
        """The sum over some image places."""
        query, key = query.float(), key.float()
        if self.pool == "cosine":
            query, key = (nn.functional.normalize(x, dim=-1) for x in (query, key))
            scale = 1.0
        else:
            scale = query.shape[-1] ** -0.5
        logits = torch.einsum("bhqd,bhkd->bhqk", query, key) * scale
        mask = tokens[:, None, None, :]
        count = tokens.sum(1)[:, None, None].float()
        if self.pool == "max":
            pooled = logits.masked_fill(~mask, -math.inf).amax(-1)
        elif self.pool == "lse":
            pooled = (self.temperature * logits).masked_fill(~mask, -math.inf).logsumexp(-1)
            pooled = (pooled - (count.log() if self.per_token else 0)) / self.temperature
        else:
            pooled = logits.masked_fill(~mask, 0).sum(-1) / count
        return pooled.sum(-1)


@dataclass(slots=True, eq=False)
class Reading:
    """What passes through attention layers while `reading` is on."""

    pooled: dict[str, Tensor] = field(default_factory=dict)
    half: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def reading(
    network: nn.Module,
    layers: Sequence[AttentionLayer],
    pool: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[Mapping[str, Tensor]]:
    """Read attention layers while the network runs.

    Args:
        network: A denoiser of diffusers, unchanged; adapters of PEFT inside are seen.
        layers: From `attention_layers`.
        pool: Given queries (b, heads, places, d) and keys (b, heads, tokens, d) of a layer; its result is kept.

    Yields:
        The results of the last forward pass by path of the layer.

    Raises:
        InputError: If a layer ran with keys that are not there (a processor that does not call the layer's own
            projections).
    """
    state = Reading()
    handles = []

    def keep(path: str, what: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            state.half[f"{path}:{what}"] = output

        return hook

    def finish(layer: AttentionLayer) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            query, key = state.half.pop(f"{layer.path}:q", None), state.half.pop(f"{layer.path}:k", None)
            if query is None or key is None:
                raise InputError(
                    f"The attention layer {layer.name} does not compute its queries and keys by its own projections: "
                    "they cannot be read. Undo fused projections, or use the score 'pmi'."
                )
            norms: list[Any] = [
                getattr(module, name) for name in ("norm_q", "norm_added_k" if layer.joint else "norm_k")
            ]
            query, key = (_ready(x, norm, layer.heads) for x, norm in zip((query, key), norms, strict=True))
            state.pooled[layer.path] = pool(query, key)

        return hook

    for layer in layers:
        module = network.get_submodule(layer.path)
        keys = "add_k_proj" if layer.joint else "to_k"
        handles.append(module.get_submodule("to_q").register_forward_hook(keep(layer.path, "q")))
        handles.append(module.get_submodule(keys).register_forward_hook(keep(layer.path, "k")))
        handles.append(module.register_forward_hook(finish(layer)))
    try:
        yield state.pooled
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AttentionProbe:
    """Pooled attention as statistics of a pass, for `diffsight.scoring.scorer.Scorer`.

    Attributes:
        layers: Which layers.
        pooling: How each becomes a number per head.
        tokens: Which tokens count, for each member of the condition, shape (members, tokens).
    """

    layers: tuple[AttentionLayer, ...]
    pooling: Pooling
    tokens: Bool[Tensor, "members tokens"]

    @property
    def columns(self) -> tuple[str, ...]:
        """``mid.0/2``: layer and head of each column."""
        return tuple(f"{layer.name}/{head}" for layer in self.layers for head in range(layer.heads))

    @contextmanager
    def watch(self, network: nn.Module, members: Int[Tensor, " b"]) -> Iterator[Callable[[], Float[Tensor, "b c"]]]:
        """Read during a pass over one member of the condition per row; then call what is given for the columns."""
        device = next(network.parameters()).device
        tokens = self.tokens[members].to(device)
        with reading(network, self.layers, partial(self._pool, tokens=tokens)) as pooled:
            yield lambda: torch.cat([pooled[layer.path] for layer in self.layers], dim=1)

    def _pool(self, query: Tensor, key: Tensor, tokens: Tensor) -> Tensor:
        # Learned prompt tokens stand before those of the text, and count with it.
        extra = key.shape[2] - tokens.shape[1]
        return self.pooling(query, key, nn.functional.pad(tokens, (extra, 0), value=True) if extra else tokens)


def _ready(x: Tensor, norm: nn.Module | None, heads: int) -> Tensor:
    """Split into heads and normalised, or the other way round, where the norm is over all heads together (Sana)."""
    if norm is None:
        return _heads(x, heads)
    scale = getattr(norm, "weight", None)
    together = scale is not None and scale.numel() == x.shape[-1]
    return _heads(norm(x), heads) if together else norm(_heads(x, heads))


def _heads(x: Tensor, heads: int) -> Tensor:
    """(b, n, heads·d) → (b, heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _section(path: str) -> int:
    """Down, middle, up: the order in which a UNet runs; its modules are stored in another."""
    return 1 if "mid_block" in path else 2 if "up_blocks" in path else 0


def _short(path: str) -> str:
    """``down_blocks.2.attentions.0.transformer_blocks.0.attn2`` → ``down.2.0``."""
    parts = path.split(".")
    if parts[0] == "transformer_blocks":
        return f"block.{parts[1]}"
    numbers = [part for part in parts if part.isdigit()]
    section = next((name for name in ("down", "mid", "up") if parts[0].startswith(name)), parts[0])
    # Stable Diffusion has one transformer block per attention; where there are more, the number says which.
    deep = "transformer_blocks" in parts and int(numbers[-1]) > 0
    kept = numbers if deep else numbers[:-1] if "transformer_blocks" in parts else numbers
    return ".".join([section, *kept])
