"""Known models as data: where they are, at which commit, under which licence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path

import yaml

from diffsight.backbones.own.model_file import is_model_file, read_model_file
from diffsight.errors import ModelError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What is known about a model before it is loaded.

    Attributes:
        name: What users call it.
        family: The adapter that loads it: a module of `diffsight.backbones.models`.
        description: One line.
        licence: Of the weights.
        parameters: Of the denoiser, roughly.
        embedded: Folder inside the package, for the embedded checkpoints.
        repo: Hub repository.
        revision: Its commit. None means that no commit has been verified: what ``main`` is then gets recorded.
        mirrors: Other repositories with the same weights.
        weights: What `loading.weights_hash` must give; other weights are refused. None where it is not known yet.
        checkpoint: Where its authors publish it, if that is a format which ``diffsight convert`` has to read first.
        reads: What it is told beside the image: ``text``, ``class ids`` or ``nothing``.
        transform: Settings of `ImageTransform` that differ from the family's.
        trained_on: The task whose very classes an embedded model saw in training.
    """

    name: str
    family: str
    description: str
    licence: str
    parameters: str = ""
    embedded: str | None = None
    repo: str | None = None
    revision: str | None = None
    mirrors: tuple[str, ...] = ()
    weights: str | None = None
    checkpoint: str | None = None
    reads: str = "text"
    transform: Mapping[str, object] = field(default_factory=dict)
    trained_on: str | None = None


@cache
def cards() -> dict[str, Card]:
    """All cards of the package by name."""
    text = resources.files("diffsight.backbones").joinpath("cards.yaml").read_text(encoding="utf-8")
    known = {f.name for f in fields(Card)}
    found = {}
    for name, values in yaml.safe_load(text).items():
        if surplus := set(values) - known:
            raise ModelError(f"The card {name!r} has unknown keys {sorted(surplus)}.")
        found[name] = Card(name=name, **{**values, "mirrors": tuple(values.get("mirrors", ()))})
    return found


def honesty(name: str) -> str | None:
    """What has to be said beside the numbers of an embedded model, or what a model file says; None for other models."""
    if is_model_file(name) and Path(name).is_file():
        try:
            own = read_model_file(name)
        except ModelError:  # A report of a run may be made when what the run used has been moved.
            return None
        notes = [f"{name} says that it was trained on {own.trained_on}."] if own.trained_on else []
        return " ".join([*notes, *filter(None, [honesty(own.base)])]) or None
    card = cards().get(name)
    if card is None or card.trained_on is None:
        return None
    return (
        f"{name} was trained on the classes of {card.trained_on}: its accuracy on them checks the machinery, and is no "
        "claim about zero-shot skill."
    )


def find_card(name: str) -> Card:
    """The card of that name.

    Raises:
        ModelError: If there is none; the message names the nearest ones.
    """
    if name not in cards():
        raise ModelError(
            f"Unknown model {name!r}. {nearest(name, cards())} A Hub model is written 'hf:org/repo@revision', a local "
            f"diffusers folder as its path."
        )
    return cards()[name]


def assets() -> Path:
    """The folder of the embedded checkpoints and sample images."""
    return Path(str(resources.files("diffsight"))) / "assets"
