"""Training many heads on the same features in one pass: the features are read once for all of them.

A probe is a head on some columns with a learning rate. Probes share the batches and nothing else: each gets the weights
that it would get alone. So a sweep over layers, noise levels, heads and rates costs little more than reading the
features once, as DINOv2 trains its linear probes (arXiv 2304.07193).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from diffsight.backbones.base import resolve_device
from diffsight.errors import InputError, NumericsError
from diffsight.features.heads.columns import Columns, check_columns, check_labels, read
from diffsight.features.heads.fitted import FittedHead, forward, top1
from diffsight.features.heads.recipes import LEARNING_RATES, Recipe, find_recipe
from diffsight.features.heads.scaling import fit_scaling
from diffsight.features.heads.specs import NetworkSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One head to train.

    Attributes:
        columns: What it sees, in order.
        head: Its settings.
        learning_rate: Its own, or None for that of the recipe.
        weight_decay: Its own, or None for that of the recipe.
    """

    columns: tuple[str, ...]
    head: NetworkSpec
    learning_rate: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"The learning rate of a probe must be more than 0; got {self.learning_rate!r}.")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fitted:
    """What became of a probe.

    Attributes:
        probe: What was asked for.
        result: The head after the last epoch, or None if it diverged.
        losses: Mean cross-entropy of each epoch, while it trained.
        accuracies: Top-1 accuracy on the validation rows after each epoch, a tie being an error; empty without these.
    """

    probe: Probe
    result: FittedHead | None
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def diverged(self) -> bool:
        """Whether its loss or a weight stopped being finite, in epoch ``len(losses)``."""
        return self.result is None

    @property
    def head(self) -> FittedHead:
        """The head after the last epoch.

        Raises:
            NumericsError: If it diverged.
        """
        if self.result is None:
            raise NumericsError(f"{self.probe} diverged in epoch {len(self.losses)}. Lower its learning rate.")
        return self.result


@torch.enable_grad()
def fit_heads(
    columns: Columns,
    labels: Int[np.ndarray, " n"],
    probes: Sequence[Probe],
    *,
    classes: Sequence[Any] | None = None,
    recipe: str | Recipe | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
    validation: tuple[Columns, Int[np.ndarray, " m"]] | None = None,
) -> list[Fitted]:
    """Train all probes together.

    Args:
        columns: The features.
        labels: The class of each row, from 0.
        probes: What to train.
        classes: What each label stands for; by default the labels themselves, up to the largest.
        recipe: How: a `Recipe`, a name in `recipes.RECIPES`, or None for our own.
        seed: Of the initial weights and the order of rows. Probes with heads of one form start from the same weights.
        device: Where to train; by default CUDA where there is one. The heads stay there.
        progress: Called with the steps that are done and all steps.
        validation: Features and labels to measure accuracy on after each epoch. Nothing is chosen by it.

    Returns:
        One result for each probe. One that diverged says so and leaves the others as they are.

    Raises:
        InputError: If columns, labels and heads do not fit together, or a feature is not finite.
        NumericsError: If all probes diverged.
    """
    recipe = find_recipe(recipe)
    if not probes:
        raise InputError("There is no probe to train. Give at least one.")
    shapes = [check_columns(columns, probe.columns) for probe in probes]
    names = list(dict.fromkeys(name for own in shapes for name in own))
    classes = check_labels(labels, len(columns), classes)
    if validation is not None:
        check_labels(validation[1], len(validation[0]), classes, least=1)
    device = resolve_device(device)
    measured = fit_scaling(columns, names) if recipe.standardize else {}
    scaling = {name: scale.to(device) for name, scale in measured.items()}
    heads = [
        FittedHead(
            spec=probe.head,
            shapes=own,
            classes=classes,
            scaling={name: scaling[name] for name in own} if scaling else {},
            network=probe.head.build(own, len(classes), torch.Generator().manual_seed(seed)).to(device),
        )
        for probe, own in zip(probes, shapes, strict=True)
    ]
    optimizer = _optimizer(recipe, probes, heads)
    steps = recipe.steps(len(labels))
    total = recipe.epochs * steps
    schedule = LambdaLR(optimizer, lambda step: recipe.factor(step // steps, step / total))
    targets, order = torch.tensor(labels, dtype=torch.long, device=device), np.random.default_rng(seed)
    losses, accuracies, alive = [[] for _ in probes], [[] for _ in probes], list(range(len(probes)))
    for epoch in range(recipe.epochs):
        sums = torch.zeros(len(probes), device=device)
        for step, batch in enumerate(np.array_split(order.permutation(len(labels)), steps)):
            indices = np.sort(batch)  # caches are read faster in order
            maps = {name: read(columns, name, indices, epoch % columns.views).to(device) for name in names}
            for index, logits in zip(alive, forward([heads[index] for index in alive], maps), strict=True):
                loss = functional.cross_entropy(logits, targets[indices])
                loss.backward()
                sums[index] += loss.detach() * len(indices)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if progress is not None:
                progress(epoch * steps + step + 1, total)
        for index in alive:
            losses[index].append(float(sums[index]) / len(labels))
        alive = [index for index in alive if np.isfinite(losses[index][-1]) and _is_finite(heads[index])]
        if not alive:
            raise NumericsError(
                f"All {len(probes)} probes diverged by epoch {epoch + 1}: their loss is no longer finite. Lower the "
                "learning rate, or standardise the features."
            )
        if validation is not None:
            for index, accuracy in zip(alive, _accuracies([heads[index] for index in alive], *validation), strict=True):
                accuracies[index].append(accuracy)
    return [
        Fitted(
            probe=probe,
            result=_frozen(heads[index]) if index in alive else None,
            losses=tuple(losses[index]),
            accuracies=tuple(accuracies[index]),
        )
        for index, probe in enumerate(probes)
    ]


def _optimizer(recipe: Recipe, probes: Sequence[Probe], heads: Sequence[FittedHead]) -> torch.optim.Optimizer:
    """One optimizer with a group for each probe."""
    groups = [
        {
            "params": list(head.network.parameters()),
            "lr": probe.learning_rate or recipe.learning_rate or LEARNING_RATES.get(probe.head.name, 1e-3),
            "weight_decay": recipe.weight_decay if probe.weight_decay is None else probe.weight_decay,
        }
        for probe, head in zip(probes, heads, strict=True)
    ]
    return make_optimizer(recipe, groups)


def make_optimizer(recipe: Recipe, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The recipe's optimizer, for groups of parameters with ``lr`` and ``weight_decay`` of their own."""
    return torch.optim.SGD(groups, momentum=recipe.momentum) if recipe.optimizer == "sgd" else torch.optim.AdamW(groups)


def _frozen(head: FittedHead) -> FittedHead:
    head.network.eval().requires_grad_(False)
    return head


def _is_finite(head: FittedHead) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in head.network.parameters())


def _accuracies(heads: Sequence[FittedHead], columns: Columns, labels: np.ndarray) -> list[float]:
    """Top-1 of heads that go on training afterwards."""
    for head in heads:
        head.network.eval()
    found = top1(heads, columns, labels)
    for head in heads:
        head.network.train()
    return found
