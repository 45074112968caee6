"""What a comparison says of each method, and what is asked of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from diffsight.backbones.encoders.loading import WITH_TEXTS
from diffsight.errors import InputError, nearest
from diffsight.evaluation.baselines import TIMM_KIND, baseline_kind
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.store.disk import digest
from diffsight.synthesis.options import TrainSettings
from diffsight.zero_shot.settings import Settings

MANY = 100  # From so many labels of each class on it is no longer called few-shot.


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A way to recognise images.

    Attributes:
        name: What it is called.
        on: What it is built on: the diffusion model, a baseline that reads texts, the vectors of any baseline, a
            supervised network, or the pixels.
        least: From how many labels of each class on; 0 for methods that take none.
        about: In a few words.
    """

    name: str
    on: Literal["model", "texts", "vectors", "network", "pixels"]
    least: int
    about: str


METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method(name="diffusion", on="model", least=0, about="zero-shot by denoising error"),
        Method(name="zero-shot", on="texts", least=0, about="images against prompts"),
        Method(name="pretrained", on="network", least=0, about="a supervised network as it is"),
        Method(name="synthetic", on="model", least=0, about="a network trained on generated images"),
        Method(name="gdc", on="model", least=0, about="Gaussians on features of generated images"),
        Method(name="features", on="model", least=1, about="logistic regression on diffusion features"),
        Method(name="pixels", on="pixels", least=1, about="logistic regression on pixels"),
        Method(name="pixels-knn", on="pixels", least=1, about="nearest neighbours of pixels"),
        Method(name="probe", on="vectors", least=1, about="logistic regression on a baseline's vectors"),
        Method(name="knn", on="vectors", least=1, about="nearest neighbours of a baseline's vectors"),
        Method(name="network", on="pixels", least=MANY, about="a network trained on the labelled images"),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A row that is to be filled.

    Attributes:
        method: How.
        labels: Of each class.
        baseline: On which baseline, if it is built on one.
        kind: What sort of baseline that is.
    """

    method: Method
    labels: int
    baseline: str | None = None
    kind: str | None = None

    @property
    def key(self) -> str:
        """A name for its folder."""
        name = f"{self.labels:04d}-{self.method.name}"
        if self.baseline is None:
            return name
        short = re.sub(r"[^a-z0-9]+", "-", self.baseline.lower()).strip("-")[-40:].strip("-")
        return f"{name}-{short}-{digest(self.baseline.encode())[:6]}"

    @property
    def protocol(self) -> str:
        """What may be learnt from."""
        if self.method.on == "network" and self.labels == 0:
            return "supervised"
        return "zero-shot" if self.labels == 0 else "few-shot" if self.labels < MANY else "supervised"


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareSettings:
    """How methods are compared.

    Attributes:
        baselines: Names of baselines, see `evaluation.baselines`.
        methods: Which methods; None for all that apply.
        seeds: How often labels are drawn, and networks trained.
        per_class: Generated images of each class.
        seed: The first seed; also of noise and of what is generated.
        scoring: How the diffusion model is asked; by default the best that we can show.
        training: How networks are trained.

    Raises:
        InputError: If a method is unknown, or a number makes no sense.
    """

    baselines: tuple[str, ...] = ()
    methods: tuple[str, ...] | None = None
    seeds: int = 3
    per_class: int = 50
    seed: int = 0
    scoring: Settings = field(default_factory=Settings)
    training: TrainSettings = field(default_factory=lambda: TrainSettings(network="mobilenetv3-small", epochs=20))

    def __post_init__(self) -> None:
        for name in self.methods or ():
            if name not in METHODS:
                raise InputError(f"Unknown method {name!r}. {nearest(name, METHODS)}")
        if self.seeds < 1 or self.per_class < 2 or self.seed < 0:
            raise InputError(
                f"At least 1 seed, 2 generated images of each class and a seed from 0 are needed; got {self.seeds}, "
                f"{self.per_class} and {self.seed}."
            )
        if repeated := [name for name in self.baselines if self.baselines.count(name) > 1]:
            raise InputError(f"The baseline {repeated[0]!r} is there twice. Give each once.")


def labels_of(number: int) -> str:
    """A number of labels in words: ``no labels``, ``1 label of each class``, ``10 labels of each class``."""
    if number == 0:
        return "no labels"
    return f"{number:,} {'label' if number == 1 else 'labels'} of each class"


def entries(settings: CompareSettings, labels: Sequence[int]) -> list[Entry]:
    """All rows of a comparison, by number of labels.

    Raises:
        InputError: If a baseline is none, or no method applies.
    """
    kinds: dict[str, str] = {}
    for name in settings.baselines:
        kind = baseline_kind(name)
        if kind is None:
            raise InputError(
                f"{name!r} is no baseline, or cannot be reached: give a CLIP, SigLIP or DINOv2 (a card, hf:ORG/REPO or "
                "a folder with config.json), or timm:NAME or timm:FOLDER."
            )
        kinds[name] = kind
    found = []
    for number in labels:
        for method in METHODS.values():
            if settings.methods is not None and method.name not in settings.methods:
                continue
            if (number == 0) != (method.least == 0) or number < method.least:
                continue
            if method.on in ("model", "pixels"):
                found.append(Entry(method=method, labels=number))
                continue
            fitting = {"texts": WITH_TEXTS, "network": (TIMM_KIND,)}.get(method.on)
            found += [
                Entry(method=method, labels=number, baseline=name, kind=kind)
                for name, kind in kinds.items()
                if fitting is None or kind in fitting
            ]
    if not found:
        chosen = ", ".join(settings.methods or METHODS)
        raise InputError(
            f"No method applies: of {chosen} with {', '.join(map(str, labels))} labels of each class and "
            f"{len(kinds)} baselines. See 'diffsight compare --help'."
        )
    return found


def without_row(settings: CompareSettings, found: Sequence[Entry]) -> list[str]:
    """Methods and baselines that were named and have no row, such as a baseline that no chosen method asks."""
    methods, baselines = {entry.method.name for entry in found}, {entry.baseline for entry in found}
    idle = [name for name in settings.methods or () if name not in methods]
    return idle + [name for name in settings.baselines if name not in baselines]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method with a number of labels, and what came of it; all of it JSON values.

    Attributes:
        key: Name of its folder.
        method: Name of the method.
        model: Whose network; None where there is none but pixels.
        labels: Of each class.
        protocol: ``"zero-shot"``, ``"few-shot"`` or ``"supervised"``.
        said: What has to be said beside its numbers.
        failure: Why there is no result, or None.
        value: What the task reports, the mean over the seeds.
        low: Lower end of its 95 % interval over test images.
        high: Upper end of it.
        sd: Deviation over the seeds.
        seeds: The value of each seed.
        images: Test images.
        failed: Of these could not be scored.
        coverage: Share that was scored.
        calls: Denoiser calls for an image.
        seconds: For an image, with reading it.
        flops: For an image; None where they cannot be counted.
        memory: Peak bytes of CUDA memory; None on a CPU.
        once: ``calls`` and ``seconds`` that were spent before the first image.
        runs: Its run directories, inside that of the comparison.
    """

    key: str
    method: str
    model: str | None
    labels: int
    protocol: str
    said: str = ""
    failure: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    seeds: list[float] = field(default_factory=list)
    images: int = 0
    failed: int = 0
    coverage: float | None = None
    calls: float | None = None
    seconds: float | None = None
    flops: float | None = None
    memory: int | None = None
    once: dict[str, float] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)

    @property
    def title(self) -> str:
        """Method and model in one."""
        return f"{self.method} · {self.model}" if self.model else self.method


def accuracy_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of what a task reports, with the interval over its test images, and the deviation over seeds.

    The interval is Wilson's at the mean; of a mean over classes it is the bootstrap's of the first seed, moved there.
    """
    first = metrics[0]
    values = [each["value"] for each in metrics]
    found: dict[str, Any] = {key: first[key] for key in ("images", "failed", "coverage")}
    if any(value is None for value in values):
        return found
    mean = float(np.mean(values))
    if first["metric"] == "top1":
        estimate = wilson(round(mean * first["labelled"]), first["labelled"])
        low, high = min(estimate.low, mean), max(estimate.high, mean)
    else:
        low, high = (first[first["metric"]][end] + mean - first["value"] for end in ("low", "high"))
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return found | {"value": mean, "low": max(low, 0.0), "high": min(high, 1.0), "sd": sd, "seeds": values}
