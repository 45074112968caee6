"""Any head on any columns, fitted in the way that it needs: by gradient, by a solver, or by remembering."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import resolve_device
from diffsight.errors import InputError
from diffsight.features.heads.columns import Averaged, Columns, check_columns, check_labels, read, spans
from diffsight.features.heads.fitted import FittedHead
from diffsight.features.heads.logistic import Logistic, fit_logistic
from diffsight.features.heads.neighbours import Neighbours, NeighboursHead
from diffsight.features.heads.networks import flatten
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.scaling import Scaling, fit_scaling, scaled
from diffsight.features.heads.specs import HeadSpec, Linear, NetworkSpec, head_spec
from diffsight.features.heads.training import Probe, fit_heads

log = logging.getLogger(__name__)


def fit_head(
    columns: Columns,
    labels: Int[np.ndarray, " n"],
    head: str | HeadSpec,
    *,
    names: Sequence[str] | None = None,
    classes: Sequence[Any] | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FittedHead:
    """Fit one head.

    Logistic regression and nearest neighbours see the mean over a row's views, and the former always standardised
    features, the latter never, as DINOv2 has it.

    Args:
        columns: The features.
        labels: The class of each row, from 0.
        head: Its settings, or its name for the default ones.
        names: Which columns it sees; all by default.
        classes: What each label stands for; by default the labels themselves, up to the largest.
        recipe: How a network is trained: a `Recipe`, or a name in `recipes.RECIPES`.
        seed: Of all that is random.
        device: Where the head is to be; by default CUDA where there is one.
        progress: Called with the steps that are done and all steps, while a network is trained.

    Raises:
        InputError: If head, columns and labels do not fit together, or a feature is not finite.
        NumericsError: If the training diverged.
    """
    spec = head_spec(head)
    names = columns.names if names is None else tuple(names)
    if isinstance(spec, NetworkSpec):
        probe = Probe(columns=names, head=spec)
        (fitted,) = fit_heads(
            columns, labels, [probe], classes=classes, recipe=recipe, seed=seed, device=device, progress=progress
        )
        return fitted.head
    shapes = check_columns(columns, names)
    classes = check_labels(labels, len(columns), classes)
    scaling: Mapping[str, Scaling] = {}
    if isinstance(spec, Neighbours):
        network = NeighboursHead(shapes, len(classes), settings=spec, count=len(labels))
        network.references = _vectors(columns, names, {}, spec.pool)
        network.labels = torch.tensor(labels, dtype=torch.long)
    elif isinstance(spec, Logistic):
        scaling = fit_scaling(columns, names)
        vectors = _vectors(columns, names, scaling, spec.pool).numpy()
        solution = fit_logistic(vectors, labels, num_classes=len(classes), C=spec.C, max_iter=spec.max_iter, seed=seed)
        if not solution.converged:
            log.warning("Logistic regression with C=%g ended after %d steps unfinished.", solution.C, spec.max_iter)
        network = Linear(pool=spec.pool).build(shapes, len(classes))
        weights = {"layers.0.weight": solution.coefficients, "layers.0.bias": solution.intercepts}
        network.load_state_dict(
            {key: torch.from_numpy(value).float().contiguous() for key, value in weights.items()}, assign=True
        )
    else:
        raise InputError(f"{spec!r} is none of diffsight's heads.")
    device = resolve_device(device)
    return FittedHead(
        spec=spec,
        shapes=shapes,
        classes=classes,
        scaling={name: scale.to(device) for name, scale in scaling.items()},
        network=network.eval().requires_grad_(False).to(device),
    )


def _vectors(
    columns: Columns, names: Sequence[str], scaling: Mapping[str, Scaling], pool: int | None
) -> Float[Tensor, "n d"]:
    """Mean over the views of the pooled, flattened and joined columns of each row."""
    averaged = Averaged(columns)
    parts = []
    for indices in spans(len(averaged), 256):
        maps = {name: read(averaged, name, indices, 0) for name in names}
        parts.append(flatten(scaled(maps, scaling), names, pool))
    return torch.cat(parts)
