"""How adapters are fitted, as a value."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from diffsight.errors import InputError, nearest
from diffsight.scoring.elimination import check_count

KINDS = ("weights", "prompt", "lora")
LOSSES = ("infonce", "hinge")

_TRAINED = ("steps", "epochs", "learning_rate", "weight_decay", "draws_per_step", "paired")
_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "weights": ("bands", "ridge", "attention"),
    "prompt": (*_TRAINED, "temperature", "tokens"),
    "lora": (*_TRAINED, "temperature", "rank", "alpha"),
}
_LEARNING_RATES = {"prompt": 1e-2, "lora": 1e-3}
# Of He et al.'s code; what is not here is equal to our defaults.
_PUBLISHED: Mapping[str, Any] = {"kind": "lora", "loss": "hinge", "epochs": 50, "learning_rate": 1e-4} | {
    **{"draws_per_step": 1, "paired": False}
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FitOptions:
    """Everything that decides what is learnt, apart from the queries and the settings of matching.

    Attributes:
        kind: ``weights`` of the statistics that a denoiser gives anyway: fitted in seconds, after measuring as for
            matching; ``prompt``: tokens before those of each text; ``lora``: low-rank matrices in all attention layers.
            The last two are trained through the denoiser.
        loss: ``infonce``: cross-entropy of the softmax over candidates; ``hinge`` on the hardest wrong candidate.
        margin: Of the hinge, in units of the score; for weights, in spreads of the zero-shot score.
        seed: Of start, draws and order. Weights have nothing random.
        bands: For weights: equal parts of the schedule with weights of their own.
        ridge: For weights: how strongly they are held to the zero-shot solution, see `fit_weights`.
        attention: For weights: whether attention has some, or the gain of the error alone.
        tokens: For prompt: how many.
        rank: For lora: of the matrices.
        alpha: For lora: their product is multiplied by ``alpha / rank``; None is the rank.
        steps: For prompt and lora, as all below: how many, of one query each; 200 without steps and epochs.
        epochs: Passes over the queries, instead of steps.
        learning_rate: Of AdamW, constant; None is 1e-2 for a prompt and 1e-3 for lora.
        weight_decay: Of AdamW.
        draws_per_step: Noise levels and noises over which a score is averaged in training.
        paired: Whether the candidates of a query share their draws, as in matching; or each has its own, as published.
        temperature: Of infonce: scores are divided by it. It stays as it is in training; None is that by which the
            untrained scores fit best, see `loudness`. Weights find their own scale.

    Raises:
        InputError: If an option is unknown, out of range, or of another kind or loss than is asked for.
    """

    kind: str = "weights"
    loss: str = "infonce"
    margin: float = 0.1
    seed: int = 0
    bands: int = 4
    ridge: float = 1.0
    attention: bool = True
    tokens: int = 4
    rank: int = 4
    alpha: float | None = None
    steps: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    draws_per_step: int = 4
    paired: bool = True
    temperature: float | None = None

    def __post_init__(self) -> None:
        for what, value, known in (("kind of adapter", self.kind, KINDS), ("loss", self.loss, LOSSES)):
            if value not in known:
                raise InputError(f"Unknown {what} {value!r}. {nearest(str(value), known)}")
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {field.name: given[field.name] for field in fields(self) if given[field.name] != field.default}
        for name, value in given.items():
            if (owners := [kind for kind in KINDS if name in _ONLY_FOR[kind]]) and self.kind not in owners:
                raise InputError(f"{name} is an option of {' and '.join(owners)}, not of {self.kind}. Leave it out.")
            if name in ("bands", "tokens", "rank", "steps", "epochs", "draws_per_step"):
                check_count(name, value)
            if name in ("ridge", "alpha", "learning_rate", "temperature") and not 0 < value < math.inf:
                raise InputError(f"{name} must be a finite number over 0; got {value!r}.")
            if name in ("margin", "weight_decay") and not 0 <= value < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0; got {value!r}.")
        check_count("seed", self.seed, least=0)
        if foreign := {"margin": "infonce", "temperature": "hinge"}.items() & {(name, self.loss) for name in given}:
            raise InputError(f"The loss {self.loss!r} has no {next(iter(foreign))[0]}. Leave it out.")
        if self.steps is not None and self.epochs is not None:
            raise InputError(f"Give steps or epochs, not both; got {self.steps} and {self.epochs}.")

    @property
    def rate(self) -> float:
        """The learning rate."""
        return self.learning_rate or _LEARNING_RATES[self.kind]

    @property
    def scale(self) -> float:
        """The alpha of low-rank matrices."""
        return float(self.alpha or self.rank)

    def steps_for(self, queries: int) -> int:
        """How many steps there are."""
        return queries * self.epochs if self.epochs else self.steps or 200

    def to_dict(self) -> dict[str, Any]:
        """The options of this kind, as JSON values."""
        others = {name for names in _ONLY_FOR.values() for name in names} - {*_ONLY_FOR[self.kind]}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in others}


def fit_options(name: str, values: Mapping[str, Any] | None = None) -> FitOptions:
    """Options by name.

    Args:
        name: ``"weights"``, ``"prompt"``, ``"lora"``; or ``"discffusion"``, to train as He et al.'s code (2305.10722)
            does: LoRA of rank 4, a hinge of margin 0.1, one query per step, one draw of its own for each candidate,
            50 passes over the queries. Match with the `match_preset` of the same name.
        values: Further options by name, as from a command line.

    Raises:
        InputError: If there is no such name or option, or a value makes no sense.
    """
    values, names, known = dict(values or {}), (*KINDS, "discffusion"), [field.name for field in fields(FitOptions)]
    if name not in names:
        raise InputError(f"Unknown kind of adapter {name!r}. {nearest(name, names)}")
    for key in values:
        if key not in known:
            raise InputError(f"Fitting has no option {key!r}. {nearest(key, known)}")
    start = _PUBLISHED if name == "discffusion" else {"kind": name}
    try:
        return FitOptions(**{**start, **({"epochs": None} if "steps" in values else {}), **values})
    except TypeError as error:
        raise InputError(f"An option of fitting is of the wrong type; got {values}.") from error
