"""How heads are trained, as values: the default, and those of the papers."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Literal, get_args

from diffsight.errors import InputError, nearest

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "constant"]

# Of AdamW, by head, from sweeps on features of tiny-fashion, 200 to 3000 images, compared on 1,500 test images. The
# linear head's was within 3 points of the best for 128 to 8192 features; more features want less, from 3e-2 for the
# fewest to 3e-4 for the most.
LEARNING_RATES = {"linear": 1e-2, "mlp": 1e-3, "cnn": 1e-3, "attention": 3e-4, "difformer": 3e-4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How heads are trained, with cross-entropy. The default is ours: AdamW on standardised features.

    Attributes:
        optimizer: ``"sgd"`` or ``"adamw"``.
        learning_rate: At the start; a probe may have its own. None is that of AdamW for the head, in `LEARNING_RATES`.
        momentum: Of SGD.
        weight_decay: A probe may have its own.
        schedule: ``"cosine"`` falls to 0 step by step; ``"step"`` divides by 10 after each quarter of the epochs.
        epochs: Passes over the rows. Pass number e sees view e modulo the number of views.
        batch_size: Rows per step at most; the rows of an epoch are shared out evenly.
        standardize: Whether each channel is brought to mean 0 and deviation 1 first, as measured on the training rows.
    """

    optimizer: Optimizer = "adamw"
    learning_rate: float | None = None
    momentum: float = 0.0
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    epochs: int = 50
    batch_size: int = 64
    standardize: bool = True

    def __post_init__(self) -> None:
        for value, known in ((self.optimizer, get_args(Optimizer)), (self.schedule, get_args(Schedule))):
            if value not in known:
                raise InputError(f"A recipe knows no {value!r}. {nearest(str(value), known)}")
        if self.epochs < 1 or self.batch_size < 2:
            raise InputError(f"A recipe needs at least 1 epoch and batches of at least 2 rows; got {self}.")
        if (self.learning_rate is not None and not self.learning_rate > 0) or not self.weight_decay >= 0:
            raise InputError(f"A recipe needs a positive learning rate and no negative weight decay; got {self}.")
        if self.optimizer == "sgd" and self.learning_rate is None:
            raise InputError("SGD has no learning rate that suits every head: give one.")
        if not 0 <= self.momentum < 1 or (self.momentum and self.optimizer != "sgd"):
            raise InputError(f"momentum is an option of SGD, from 0 to below 1; got {self}.")

    def steps(self, rows: int) -> int:
        """Steps of an epoch: as many rows in each, and never a single one, of which BatchNorm has no variance."""
        return max(1, min(ceil(rows / self.batch_size), rows // 2))

    def factor(self, epoch: int, progress: float) -> float:
        """What the learning rate is multiplied by in an epoch, after a share ``progress`` of all steps."""
        if self.schedule == "cosine":
            return (1 + cos(pi * progress)) / 2
        return 0.1 ** (4 * epoch // self.epochs) if self.schedule == "step" else 1.0


def _released(learning_rate: float, batch_size: int) -> Recipe:
    return Recipe(
        optimizer="sgd",
        learning_rate=learning_rate,
        weight_decay=0.0,
        schedule="step",
        epochs=28,
        batch_size=batch_size,
        standardize=False,
    )


# The scripts that Mukhopadhyay et al. released with their second paper (ECCV 2024): plain SGD whose rate falls to a
# tenth after each 7 of 28 epochs. There is none for the MLP and CNN of the first.
RECIPES: Mapping[str, Recipe] = {
    "gd2024/linear": _released(1e-2, 128),
    "gd2024/attention": _released(5e-2, 128),
    "gd2024/difformer": _released(5e-2, 128),
    "gd2024/diffeed": _released(1e-2, 16),
}


def find_recipe(recipe: str | Recipe | None) -> Recipe:
    """A paper's recipe by its name in `RECIPES`, our own for None, or the recipe as it is.

    Raises:
        InputError: If there is no such recipe.
    """
    if recipe is None:
        return Recipe()
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise InputError(f"Unknown recipe {recipe!r}. {nearest(recipe, RECIPES)}")
    return RECIPES[recipe]
