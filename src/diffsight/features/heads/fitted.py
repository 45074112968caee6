"""A fitted head: from columns of features to logits."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffsight.errors import InputError
from diffsight.features.heads.columns import Averaged, Columns, Shape, check_columns, read, spans
from diffsight.features.heads.neighbours import Neighbours
from diffsight.features.heads.networks import FlatHead, flatten
from diffsight.features.heads.scaling import Scaling
from diffsight.features.heads.specs import HeadSpec


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FittedHead:
    """A head that can be used.

    Attributes:
        spec: Its settings.
        shapes: Channels, height and width of the maps of each column that it takes, in order.
        classes: What each logit stands for.
        scaling: Standardisation of each column; empty if the head takes maps as they are.
        network: Standardised maps by column name → logits; frozen, and in evaluation mode.
    """

    spec: HeadSpec
    shapes: Mapping[str, Shape]
    classes: tuple[Any, ...]
    scaling: Mapping[str, Scaling]
    network: nn.Module

    @property
    def num_parameters(self) -> int:
        """How many numbers training may change, which belongs beside every accuracy; 0 for nearest neighbours."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    @property
    def device(self) -> torch.device:
        """Where the network and the scaling are."""
        return next(chain(self.network.parameters(), self.network.buffers())).device

    def logits(self, columns: Columns, *, batch_size: int = 256) -> Float[Tensor, "n k"]:
        """Logits of every row, the mean over its views, on the CPU.

        Nearest neighbours are those of the mean over the views instead, which is also what they were fitted to.

        Args:
            columns: With at least the head's columns, of the same shapes.
            batch_size: Rows at once; does not change results.

        Raises:
            InputError: If a column is missing, has another shape, or holds a value that is not finite.
        """
        if isinstance(self.spec, Neighbours):
            columns = Averaged(columns)
        return torch.cat([logits.cpu() for _, (logits,) in score([self], columns, batch_size=batch_size)])

    def probabilities(self, columns: Columns, *, batch_size: int = 256) -> Float[Tensor, "n k"]:
        """Softmax of `logits`."""
        return self.logits(columns, batch_size=batch_size).softmax(dim=1)


def forward(
    heads: Sequence[FittedHead], maps: Mapping[str, Float[Tensor, "b _ _ _"]]
) -> Iterator[Float[Tensor, "b k"]]:
    """Logits of several heads, one after the other; standardising and pooling are done once for all that share them.

    Args:
        heads: All on one device.
        maps: With at least the columns of all heads, not standardised, on that device.
    """

    @cache
    def scaled(name: str, scaling: Scaling | None) -> Tensor:
        return maps[name] if scaling is None else scaling(maps[name])

    @cache
    def flattened(scalings: tuple[tuple[str, Scaling | None], ...], pool: int | None) -> Tensor:
        return flatten(
            {name: scaled(name, scaling) for name, scaling in scalings}, [name for name, _ in scalings], pool
        )

    for head in heads:
        scalings = tuple((name, head.scaling.get(name)) for name in head.shapes)
        if isinstance(head.network, FlatHead):
            yield head.network.layers(flattened(scalings, head.network.pool))
        else:
            yield head.network({name: scaled(name, scaling) for name, scaling in scalings})


def score(
    heads: Sequence[FittedHead], columns: Columns, *, batch_size: int
) -> Iterator[tuple[Int[np.ndarray, " b"], list[Float[Tensor, "b k"]]]]:
    """Logits of several heads, the mean over the views, in one pass over the features.

    Args:
        heads: All on one device.
        columns: With at least the columns of all heads.
        batch_size: Rows at once.

    Yields:
        Row indices, in order and each row once, and the logits of each head on its device.

    Raises:
        InputError: If a column is missing, has another shape, or holds a value that is not finite.
    """
    shapes = {name: shape for head in heads for name, shape in head.shapes.items()}
    found = check_columns(columns, list(shapes))
    for name, shape in shapes.items():
        if found[name] != shape:
            raise InputError(f"The head was fitted to maps of {shape} in column {name!r}; these have {found[name]}.")
    for indices in spans(len(columns), batch_size):
        yield indices, _score(heads, columns, indices)


def top1(heads: Sequence[FittedHead], columns: Columns, labels: Int[np.ndarray, " n"]) -> list[float]:
    """Accuracy of several heads in one pass over the features; a tie for the first place is an error.

    Args:
        heads: All on one device.
        columns: With at least the columns of all heads.
        labels: The class of each row, from 0.

    Raises:
        InputError: As for `score`.
    """
    hits = np.zeros(len(heads))
    for indices, logits in score(heads, columns, batch_size=256):
        for index, each in enumerate(logits):
            own = each.gather(1, torch.tensor(labels[indices], dtype=torch.long, device=each.device)[:, None])
            hits[index] += int(((each >= own).sum(dim=1) == 1).sum())
    return (hits / len(labels)).tolist()


@torch.inference_mode()
def _score(heads: Sequence[FittedHead], columns: Columns, indices: np.ndarray) -> list[Tensor]:
    names = {name for head in heads for name in head.shapes}
    sums = [torch.zeros((), device=head.device) for head in heads]
    for view in range(columns.views):
        maps = {name: read(columns, name, indices, view).to(heads[0].device) for name in names}
        for index, logits in enumerate(forward(heads, maps)):
            sums[index] = sums[index] + logits
    return [total / columns.views for total in sums]
