"""How heads are trained, as values: the default, and those of the papers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, pi
from typing import Literal, get_args

from diffsight.errors import InputError, nearest

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How heads are trained, with cross-entropy.

    Attributes:
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: At the start; a probe may have its own.
        momentum: Of SGD.
        weight_decay: A probe may have its own.
        schedule: ``"cosine"`` falls to 0 step by step; ``"step"`` divides by 10 after each quarter of the epochs.
        epochs: Passes over the rows. Pass number e sees view e modulo the number of views.
        batch_size: Rows per step at most; the rows of an epoch are shared out evenly.
        standardize: Whether each channel is brought to mean 0 and deviation 1 first, as measured on the training rows.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.0
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    epochs: int = 50
    batch_size: int = 256
    standardize: bool = True

    def __post_init__(self) -> None:
        for value, known in ((self.optimizer, get_args(Optimizer)), (self.schedule, get_args(Schedule))):
            if value not in known:
                raise InputError(f"A recipe knows no {value!r}. {nearest(str(value), known)}")
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(f"A recipe needs at least 1 epoch and batches of at least 2 rows; got {self}.")
        if not self.learning_rate > 0 or self.weight_decay < 0 or not 0 <= self.momentum < 1:
            raise InputError(f"A recipe needs a positive rate, no negative decay and momentum below 1; got {self}.")
        if self.momentum and self.optimizer != "sgd":
            raise InputError(f"momentum is an option of SGD only; got {self.momentum} with {self.optimizer!r}.")

    def factor(self, epoch: int, progress: float) -> float:
        """What the learning rate is multiplied by in an epoch, after a share ``progress`` of all steps."""
        if self.schedule == "cosine":
            return (1 + cos(pi * progress)) / 2
        return 0.1 ** (4 * epoch // self.epochs) if self.schedule == "step" else 1.0


def _gd2023(learning_rate: float, batch_size: int) -> Recipe:
    return Recipe(
        optimizer="sgd",
        learning_rate=learning_rate,
        weight_decay=0.0,
        schedule="step",
        epochs=28,
        batch_size=batch_size,
        standardize=False,
    )


# The scripts that Mukhopadhyay et al. released (fact sheet §4); there is none for their MLP and CNN.
RECIPES: Mapping[str, Recipe] = {
    "default": Recipe(),
    "gd2023/linear": _gd2023(1e-2, 128),
    "gd2023/attention": _gd2023(5e-2, 128),
    "gd2023/difformer": _gd2023(5e-2, 128),
    "gd2023/diffeed": _gd2023(1e-2, 16),
}


def find_recipe(recipe: str | Recipe | None) -> Recipe:
    """A recipe by its name in `RECIPES`, the default for None, or the recipe as it is.

    Raises:
        InputError: If there is no such recipe.
    """
    if isinstance(recipe, Recipe):
        return recipe
    name = recipe or "default"
    if name not in RECIPES:
        raise InputError(f"Unknown recipe {name!r}. {nearest(name, RECIPES)}")
    return RECIPES[name]
