"""k nearest neighbours by cosine, as DINOv2 evaluates features (arXiv 2304.07193): no training at all.

A neighbour votes for its class with weight softmax(cosine / temperature) over the k nearest. Queries and references are
looked at in chunks, so the references may be a memory-mapped array, and the similarities never exist as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from diffsight.errors import InputError
from diffsight.features.heads.columns import Shape
from diffsight.features.heads.networks import flatten, num_features
from diffsight.features.heads.options import as_dict, check_sizes

# Similarities in memory at once: 2048 × 8192 in fp32 are 64 MB.
_QUERIES, _REFERENCES = 2048, 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Settings of the nearest-neighbour head.

    Attributes:
        k: How many neighbours vote; all references where there are fewer. DINOv2 reports 10, 20, 100 and 200.
        temperature: Of the votes, in units of cosine.
        pool: Maps are averaged to at most this size; None takes them as they are.
    """

    name: ClassVar[str] = "knn"
    k: int = 20
    temperature: float = 0.07
    pool: int | None = None

    def __post_init__(self) -> None:
        check_sizes(self, "k", "pool")
        if not self.temperature > 0:
            raise InputError(f"The temperature of votes must be more than 0; got {self.temperature!r}.")

    def to_dict(self) -> dict[str, Any]:
        """Name and options as JSON values."""
        return as_dict(self)


def find_neighbours(
    queries: Float[Tensor, "q d"],
    references: Float[Tensor, "r d"] | Float[np.ndarray, "r d"],
    *,
    k: int,
    chunk: int = _REFERENCES,
) -> tuple[Float[Tensor, "q k"], Int[Tensor, "q k"]]:
    """The nearest references of each query by cosine.

    Which of several equally near references takes the last place is not defined.

    Args:
        queries: Of any length; one without length has cosine 0 with everything.
        references: Likewise; may be a memory-mapped array.
        k: How many; all references where there are fewer.
        chunk: How many references to look at at once; does not change results.

    Returns:
        Cosines, falling, and the indices of the references.
    """
    queries = functional.normalize(queries, dim=1)
    best = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(references), chunk):
        some = references[start : start + chunk]
        some = torch.from_numpy(some.copy()) if isinstance(some, np.ndarray) else some  # torch takes no read-only array
        part = functional.normalize(some.to(queries), dim=1)
        places = torch.arange(start, start + len(part), device=queries.device).expand(len(queries), -1)
        cosines = torch.cat([best, queries @ part.T], dim=1)
        best, chosen = cosines.topk(min(k, cosines.shape[1]))
        index = torch.cat([index, places], dim=1).gather(1, chosen)
    return best, index


def vote(
    queries: Float[Tensor, "q d"],
    references: Float[Tensor, "r d"] | Float[np.ndarray, "r d"],
    labels: Int[Tensor, " r"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[Tensor, "q classes"]:
    """Class probabilities of each query from the votes of its nearest references.

    Args:
        queries: Features; they need no normalisation.
        references: Features with known classes; may be a memory-mapped array.
        labels: The class of each reference, on the device of the queries.
        num_classes: How many classes there are.
        k: How many neighbours vote.
        temperature: Of the votes, in units of cosine.
    """
    shares = []
    for some in queries.split(_QUERIES):
        cosines, index = find_neighbours(some, references, k=k)
        weights = (cosines / temperature).softmax(dim=1)
        shares.append(some.new_zeros(len(some), num_classes).scatter_add_(1, labels[index], weights))
    return torch.cat(shares)


class NeighboursHead(nn.Module):
    """The references as a network, so that it is used and stored as the other heads are."""

    references: Tensor
    labels: Tensor

    def __init__(self, shapes: Mapping[str, Shape], num_classes: int, *, settings: Neighbours, count: int) -> None:
        super().__init__()
        self.names, self.num_classes, self.settings = tuple(shapes), num_classes, settings
        self.register_buffer("references", torch.zeros(count, num_features(shapes, settings.pool)))
        self.register_buffer("labels", torch.zeros(count, dtype=torch.long))

    def forward(self, maps: Mapping[str, Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b k"]:
        """Logarithms of the probabilities; for a class without a vote that of the least normal number."""
        shares = vote(
            flatten(maps, self.names, self.settings.pool),
            self.references,
            self.labels,
            num_classes=self.num_classes,
            k=self.settings.k,
            temperature=self.settings.temperature,
        )
        return shares.clamp_min(torch.finfo(shares.dtype).tiny).log()
