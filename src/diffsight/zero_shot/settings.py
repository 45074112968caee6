"""Everything that decides a zero-shot score, as one value; the papers' presets; from settings to an engine."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffsight.backbones.base import Backbone, Condition, warn_of_alike
from diffsight.data.prompts import PromptSet, templates_for
from diffsight.diffusion.noise import NoiseBank
from diffsight.diffusion.weighting import by_name
from diffsight.errors import InputError, nearest
from diffsight.scoring.elimination import Policy, Staged
from diffsight.scoring.engine import Engine, Units
from diffsight.scoring.racing import Forecast, PairedTTest
from diffsight.scoring.scorer import LOSSES, Scorer

ENSEMBLES = ("mean", "min", "mixture", "embedding")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to score, apart from the model and the prompts.

    Attributes:
        policy: Which draws, and when a class is out.
        loss: ``"l1"``, ``"l2"``, ``"huber"``, or ``"kl"`` for models with learned variance.
        weighting: Timestep weights by name: ``"uniform"``, ``"snr"``, ``"vdm"``, ``"exp"``, ``"vlb"``. They are
            converted to eps-space, where errors are measured; L1 and Huber take those of L2 as they are.
        ensemble: How several prompts of a class become one score: mean of their errors, the best prompt (as in Li et
            al.'s code), a mixture of likelihoods, or one averaged text embedding (one call per class).
        seed: Of the noise.
        shared_noise: The same noise for every image, as in Li et al.'s DiT code.
    """

    policy: Policy = field(default_factory=Forecast)
    loss: str = "l2"
    weighting: str = "uniform"
    ensemble: str = "mean"
    seed: int = 0
    shared_noise: bool = False

    def __post_init__(self) -> None:
        if self.loss not in (*LOSSES, "kl"):
            raise InputError(f"Unknown loss {self.loss!r}. {nearest(self.loss, (*LOSSES, 'kl'))}")
        if self.ensemble not in ENSEMBLES:
            raise InputError(f"Unknown ensemble {self.ensemble!r}. {nearest(self.ensemble, ENSEMBLES)}")

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values, for a run's fingerprint."""
        return {
            "policy": self.policy.to_dict(),
            "loss": self.loss,
            "weighting": self.weighting,
            "ensemble": self.ensemble,
            "seed": self.seed,
            "shared_noise": self.shared_noise,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A paper's settings and prompt template for one data set."""

    settings: Settings
    template: str
    source: str


def _li(dataset: str, keep: tuple[int, ...], samples: tuple[int, ...], loss: str) -> Preset:
    policy = Staged(keep=keep, samples=samples, paper_exact=True)
    (template,) = templates_for("li2023", dataset)
    return Preset(settings=Settings(policy=policy, loss=loss), template=template, source="Li et al. 2303.16203")


_FOUR = ((20, 10, 5, 1), (20, 50, 100, 500))

# Fact sheet §2.1 (the authors' commands.md; CIFAR-100 from their issue 19).
LI2023: Mapping[str, Preset] = {
    "food101": _li("food101", *_FOUR, "l2"),
    "cifar10": _li("cifar10", (5, 1), (50, 500), "l1"),
    "aircraft": _li("aircraft", *_FOUR, "l2"),
    "pets": _li("pets", (5, 1), (25, 250), "l1"),
    "flowers102": _li("flowers102", *_FOUR, "l1"),
    "stl10": _li("stl10", (5, 1), (100, 500), "l1"),
    "imagenet": _li("imagenet", (500, 50, 10, 1), (50, 100, 500, 1000), "l2"),
    "objectnet": _li("objectnet", (25, 10, 5, 1), (50, 100, 500, 1000), "l2"),
    "cifar100": _li("cifar100", *_FOUR, "l1"),
}


def preset(name: str) -> Preset:
    """A paper's settings to the letter.

    Args:
        name: ``"li2023"`` (the CIFAR-10 schedule), ``"li2023/DATASET"``, or ``"clark2023"``.

    Returns:
        Settings and template. Clark & Jaini used the first CLIP template of each data set; ``"a photo of a {}."``
        stands where a task has none of its own.

    Raises:
        InputError: If there is no such preset.
    """
    if name == "clark2023":
        settings = Settings(policy=PairedTTest(), loss="l2", weighting="exp")
        (template,) = templates_for("clip")
        return Preset(settings=settings, template=template, source="Clark & Jaini 2303.15233")
    known = {"li2023": LI2023["cifar10"]} | {f"li2023/{key}": value for key, value in LI2023.items()}
    if name not in known:
        raise InputError(f"Unknown preset {name!r}. {nearest(name, [*known, 'clark2023'])}")
    return known[name]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Contest:
    """What competes, without the model: enough to decide on stored errors.

    Attributes:
        class_names: What the answer can be.
        owner: The class of each arm, in the order of the errors' columns.
        ensemble: How arms of a class become one score.
        units: What the policy eliminates: classes, or single prompts for the ensembles ``min`` and ``mixture``.
        class_of_unit: The class of each unit.
    """

    class_names: tuple[str, ...]
    owner: tuple[int, ...]
    ensemble: str
    units: Units
    class_of_unit: tuple[int, ...]

    def class_errors(self, errors: Float[np.ndarray, "draws arms losses"]) -> Float[np.ndarray, "draws classes"]:
        """Unweighted errors of the deciding loss, averaged over each class's prompts; NaN where not scored."""
        chosen, owner = errors[:, :, self.units.loss].astype(np.float64), np.asarray(self.owner)
        return np.stack([chosen[:, owner == k].mean(axis=1) for k in range(len(self.class_names))], axis=1)


def arrange(
    settings: Settings, class_names: tuple[str, ...], owner: tuple[int, ...], *, loss: int, weights: np.ndarray
) -> Contest:
    """Fix what competes.

    Args:
        settings: For the ensemble.
        class_names: What the answer can be.
        owner: The class of each arm.
        loss: Column of the deciding loss.
        weights: Weight of each draw in eps-space; brought to a mean of 1.
    """
    single_prompts = settings.ensemble in ("min", "mixture")
    return Contest(
        class_names=class_names,
        owner=owner,
        ensemble=settings.ensemble,
        units=Units(
            unit_of_arm=tuple(range(len(owner))) if single_prompts else owner,
            loss=loss,
            weights=weights / np.mean(weights),
        ),
        class_of_unit=owner if single_prompts else tuple(range(len(class_names))),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Setup:
    """A model, its prompts and settings, ready to score; made by `prepare`.

    Attributes:
        backbone: The model.
        prompts: Class names and what the model is asked.
        settings: How.
        scorer: Requests to errors.
        contest: Errors to decisions.
    """

    backbone: Backbone
    prompts: PromptSet
    settings: Settings
    scorer: Scorer
    contest: Contest

    def engine(self, batch_size: int) -> Engine:
        """A fresh engine; two batches fly at once where the device works on its own."""
        depth = 1 if self.backbone.device.type == "cpu" else 2
        policy, units = self.settings.policy, self.contest.units
        return Engine(scorer=self.scorer, policy=policy, units=units, batch_size=batch_size, depth=depth)

    def fingerprint(self) -> dict[str, Any]:
        """Everything here that changes numbers."""
        levels = json.dumps(self.scorer.levels.tolist()).encode()
        return {
            "backbone": self.backbone.identity(),
            "classes": list(self.contest.class_names),
            "owner": list(self.contest.owner),
            "prompts": list(self.prompts.prompts),
            "settings": self.settings.to_dict(),
            "schedule_kind": self.backbone.schedule.kind,
            "grid": hashlib.sha256(levels).hexdigest()[:16],
            "noise": self.scorer.bank.fingerprint(),
        }


def prepare(backbone: Backbone, prompts: PromptSet, settings: Settings) -> Setup:
    """Encode the prompts and fix draws, weights and what competes.

    Raises:
        InputError: If the model cannot give the loss that was asked for, or the ensemble needs text.
        PromptError: If a prompt is too long for the model, or a class unknown to it.
    """
    if settings.loss == "kl" and not backbone.learned_variance:
        raise InputError(f"{backbone.name} has no learned variance, so the loss 'kl' does not exist for it. Use 'l2'.")
    levels = settings.policy.grid(len(backbone.schedule))
    weighting = by_name(settings.weighting, backbone.schedule).to("eps", backbone.schedule)
    condition, owner = backbone.condition(prompts.prompts), prompts.owner
    warn_of_alike(backbone, condition, owner)
    if settings.ensemble == "embedding":
        condition, owner = _average_embeddings(condition, prompts), tuple(range(len(prompts.class_names)))
    scorer = Scorer(
        backbone=backbone,
        condition=condition,
        levels=levels,
        bank=NoiseBank(seed=settings.seed, shared=settings.shared_noise),
        variational=settings.loss == "kl",
    )
    contest = arrange(
        settings,
        prompts.class_names,
        owner,
        loss=scorer.losses.index(settings.loss),
        weights=weighting.values[levels].numpy(),
    )
    return Setup(backbone=backbone, prompts=prompts, settings=settings, scorer=scorer, contest=contest)


def _average_embeddings(condition: Condition, prompts: PromptSet) -> Condition:
    if "encoder_hidden_states" not in condition.tensors:
        raise InputError("The ensemble 'embedding' averages text embeddings, and this model has none. Use 'mean'.")
    owner = torch.tensor(prompts.owner)

    def averaged(rows: Tensor) -> Tensor:
        own = [rows[(owner == index).to(rows.device)] for index in range(len(prompts.class_names))]
        # Of masks the union: what one of the prompts has, the average has.
        return torch.stack([each.mean(0) if each.is_floating_point() else each.amax(0) for each in own])

    tensors = {key: averaged(rows) for key, rows in condition.tensors.items()}
    return replace(condition, names=prompts.class_names, tensors=tensors)
