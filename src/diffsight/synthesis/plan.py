"""Everything that decides a synthetic set, as one value; the paper's presets; what will be drawn, and what it costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool

from diffsight.backbones.base import Backbone, ReadsText
from diffsight.backbones.sampling import Sampler
from diffsight.data.prompts import prompt_key
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import InputError, PromptError, nearest
from diffsight.synthesis.bag import DOMAINS, TrickOptions, make_trick
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.filters import Filters
from diffsight.synthesis.tricks import Guidance, Merged, Prescription, Trick
from diffsight.synthesis.wording import Choice

VERSION = 1  # Raised with every change that changes images.
FORMATS = ("folder", "wds")
LARGEST = 4096
_TOKENISED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SynthesisSettings:
    """How to make a set, apart from the model and the classes.

    Attributes:
        trick: Prompts and guidance.
        per_class: Images of each class.
        sampler: How noise becomes an image.
        seed: Of the noise and of the tricks.
        size: Side of the images that are written; None leaves them as the model draws them.
        antialias: Whether resizing filters what the smaller picture cannot hold; the paper's "32A" does, its "64" not.
        filters: What is not kept.
        format: ``"folder"`` of images, or ``"wds"`` for webdataset's tar files.

    Raises:
        InputError: If a number is out of range, or the format unknown.
    """

    trick: Trick | Merged = field(default_factory=lambda: make_trick("merged"))
    per_class: int = 100
    sampler: Sampler = field(default_factory=Sampler)
    seed: int = 0
    size: int | None = None
    antialias: bool = True
    filters: Filters = field(default_factory=Filters)
    format: str = "folder"

    def __post_init__(self) -> None:
        if isinstance(self.per_class, bool) or not isinstance(self.per_class, int) or self.per_class < 1:
            raise InputError(f"per_class must be a whole number from 1; got {self.per_class!r}.")
        if self.size is not None and not (isinstance(self.size, int) and 4 <= self.size <= LARGEST):
            raise InputError(f"size is a number of pixels from 4 to {LARGEST}; got {self.size!r}.")
        if self.format not in FORMATS:
            raise InputError(f"Unknown format {self.format!r}. {nearest(self.format, FORMATS)}")
        NoiseBank(self.seed)

    @property
    def resize(self) -> str | None:
        """The policy in the paper's words: ``"32A"`` is 32 pixels with anti-aliasing, ``"64"`` 64 without."""
        return None if self.size is None else f"{self.size}{'A' if self.antialias else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values, for a fingerprint."""
        return {
            "trick": self.trick.to_dict(),
            "per_class": self.per_class,
            "sampler": self.sampler.to_dict(),
            "seed": self.seed,
            "resize": self.resize,
            "filters": self.filters.to_dict(),
            "format": self.format,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What a paper did for one data set.

    Attributes:
        model: Name of the card.
        sampler: How images are drawn.
        per_class: For each prompt; 2,000 are the code's ``n_samples 2 × n_iter 1000``.
        size: Side after resizing, or None.
        antialias: Whether that filters.
        source: Where it is from.
    """

    model: str = "sd-1.4"
    sampler: Sampler = field(default_factory=lambda: Sampler(name="ddim", steps=40))
    per_class: int = 2000
    size: int | None = None
    antialias: bool = True
    source: str = "Shipard et al. 2302.03298"


# Fact sheet A.2. The noise is ours: the code gives every class and domain the same 2,000 noises (A.5.5), and draws one
# random scale for a whole run (A.5.4).
PRESETS: Mapping[str, Preset] = {
    "shipard2023": Preset(),
    "shipard2023/cifar10": Preset(size=32),
    "shipard2023/cifar100": Preset(size=32),
    "shipard2023/eurosat": Preset(size=64, antialias=False),
}
# What the paper's code makes tricks with: no article, CompVis's usual scale, whole random scales.
PAPER_TRICKS = TrickOptions(
    guidance=Guidance(low=7.5, high=7.5), random=Guidance(low=1, high=5, whole=True), articles=False
)


def preset(name: str) -> Preset:
    """A paper's settings by name.

    Raises:
        InputError: If there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"Unknown preset {name!r}. {nearest(name, PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """A model, classes and settings that fit together: which images will be drawn. Made by `make_plan`.

    Attributes:
        backbone: The model.
        classes: What of.
        settings: How.
        choices: What each trick can say of each class.
    """

    backbone: Backbone
    classes: Classes
    settings: SynthesisSettings
    choices: tuple[Mapping[str, Sequence[Choice]], ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.classes) * self.settings.per_class

    def prescription(self, label: int, index: int) -> Prescription:
        """What an image is made from; see `tricks.sample`."""
        name, seed = self.classes.names[label], self.settings.seed
        return self.settings.trick.prescribe(name, label, index, seed=seed, choices=self.choices[label])

    @cached_property
    def guided(self) -> Bool[np.ndarray, "classes images"]:
        """Which images need the null condition as well."""
        labels, images = range(len(self.classes)), range(self.settings.per_class)
        return np.array([[self.prescription(label, i).guidance_scale != 1 for i in images] for label in labels])

    def batches(self, wanted: Sequence[tuple[int, int]], batch_size: int) -> Iterator[list[tuple[int, int]]]:
        """Cut images into full batches of mixed classes; those without guidance come first, in batches of their own.

        Args:
            wanted: Class and number of each image.
            batch_size: Rows of a batch.
        """
        ordered = sorted(wanted, key=lambda item: (item[1], item[0]))
        for guided in (False, True):
            chosen = [(label, index) for label, index in ordered if self.guided[label, index] == guided]
            yield from (chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size))

    @property
    def calls(self) -> int:
        """Denoiser calls if every image is kept at the first attempt."""
        sampler, guided = self.settings.sampler, int(self.guided.sum())
        return guided * sampler.calls(guided=True) + (len(self) - guided) * sampler.calls(guided=False)

    def fingerprint(self) -> dict[str, Any]:
        """Everything that changes images; not the batch size, nor where the model's files lie."""
        return {
            "version": VERSION,
            "backbone": self.backbone.identity(),
            "classes": [
                {"name": name, "folder": folder}
                for name, folder in zip(self.classes.names, self.classes.folders, strict=True)
            ],
            "settings": self.settings.to_dict(),
            "noise": NoiseBank(self.settings.seed).fingerprint(),
        }


def make_plan(backbone: Backbone, classes: Classes | Sequence[str], settings: SynthesisSettings | None = None) -> Plan:
    """Fit classes and settings to a model, before anything is drawn.

    Args:
        backbone: The model.
        classes: Or their names, as users write them; see `Classes.parse`.
        settings: How; by default the best that we can show.

    Raises:
        PromptError: If classes or prompts cannot be used: the model reads no text or no classes, a prompt is too long
            for it, or two classes share a prompt.
        InputError: If the model cannot be sampled so.
    """
    chosen = classes if isinstance(classes, Classes) else Classes.parse(classes)
    settings = settings or SynthesisSettings()
    settings = replace(settings, sampler=settings.sampler.fitting(backbone.schedule))
    if backbone.class_names == ():
        raise PromptError(
            f"{backbone.name} is unconditional: it takes neither classes nor text, so it cannot draw a class. Use a "
            "model that reads text or class ids ('diffsight ls models')."
        )
    settings.sampler.check(backbone)
    choices = tuple({part.name: part.prompts.choices(name) for part in settings.trick.parts} for name in chosen.names)
    plan = Plan(backbone=backbone, classes=chosen, settings=settings, choices=choices)
    prompts = _prompts(plan)
    if isinstance(backbone, ReadsText):
        try:
            for start in range(0, len(prompts), _TOKENISED):
                backbone.tokens(prompts[start : start + _TOKENISED])
        except PromptError as error:
            raise PromptError(f"{error} Or choose another trick, or other domains for this one.") from error
    else:
        _check_class_ids(plan, prompts)
    return plan


def fit_domains(
    spec: str, options: TrickOptions, backbone: Backbone, class_names: Sequence[str]
) -> tuple[TrickOptions, tuple[str, ...]]:
    """Leave out those of the paper's domains with which a model cannot read the prompts of all classes to their ends.

    Args:
        spec: As for `make_trick`.
        options: What the tricks are made with; domains that are given there stay as they are.
        backbone: The model that draws.
        class_names: What of.

    Returns:
        The options with the domains that are left, and those that are not. If none would be left, the options as they
        are: `make_plan` refuses them, and says why.

    Raises:
        InputError: As `make_trick`.
        PromptError: As `make_trick`.
    """
    said: dict[str, list[str]] = {domain: [] for domain in DOMAINS}
    for part in make_trick(spec, options).parts:
        for choice in (choice for name in class_names for choice in part.prompts.choices(name)):
            if choice.domain is not None and options.domains is None:
                said[choice.domain].append(choice.prompt)
    if not isinstance(backbone, ReadsText):
        return options, ()
    left_out = tuple(domain for domain, prompts in said.items() if prompts and not _reads(backbone, prompts))
    if len(left_out) in (0, len(DOMAINS)):
        return options, ()
    return replace(options, domains=tuple(domain for domain in DOMAINS if domain not in left_out)), left_out


def _reads(backbone: ReadsText, prompts: Sequence[str]) -> bool:
    try:
        backbone.tokens(prompts)
    except PromptError:
        return False
    return True


def _prompts(plan: Plan) -> list[str]:
    """All prompts that can come up; refuses one that two classes share."""
    owner: dict[str, int] = {}
    for label, tricks in enumerate(plan.choices):
        for prompt in {choice.prompt for said in tricks.values() for choice in said}:
            if owner.setdefault(prompt_key(prompt), label) != label:
                one, other = plan.classes.names[owner[prompt_key(prompt)]], plan.classes.names[label]
                raise PromptError(f"The classes {one!r} and {other!r} share the prompt {prompt!r}. Word them apart.")
    return sorted({choice.prompt for tricks in plan.choices for said in tricks.values() for choice in said})


def _check_class_ids(plan: Plan, prompts: Sequence[str]) -> None:
    """A model of class ids takes bare class names, and guidance needs its null class."""
    backbone = plan.backbone
    try:
        condition = backbone.condition(prompts)
    except PromptError as error:
        raise PromptError(
            f"{error} It takes class ids and reads no text: use the trick 'class-prompt', with its own class names."
        ) from error
    if not condition.null and plan.guided.any():
        raise InputError(f"{backbone.name} has no null class, which guidance needs: use a guidance scale of 1.")
