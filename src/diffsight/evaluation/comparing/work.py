"""What the methods of a comparison share: the model, vectors of the same images, one generated set."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffsight.backbones.base import Backbone, resolve_device
from diffsight.data.sources import Source
from diffsight.errors import InputError
from diffsight.evaluation.comparing.question import Question
from diffsight.evaluation.comparing.rows import CompareSettings, Entry
from diffsight.evaluation.comparing.vectors import VectorEmbedder, baseline_embedder, cost_of, kept, pixel_embedder
from diffsight.evaluation.embedding import DiffusionEmbedder, Embedded, diffusion_embedder
from diffsight.store.disk import digest
from diffsight.store.stopwatch import FILE, Stopwatch
from diffsight.synthesis.bag import TrickOptions, make_trick
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.dataset import SyntheticSet
from diffsight.synthesis.generator import synthesize
from diffsight.synthesis.plan import Plan, SynthesisSettings, fit_domains, make_plan

TRICK = "merged"
Report = Callable[[str, int, int, int], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Found:
    """What a method gave.

    Attributes:
        runs: Its run directories.
        metrics: Of each seed.
        said: What has to be said beside its numbers.
        model: Whose network.
        calls: Denoiser calls of an image.
        seconds: For an image.
        flops: For an image.
        once: What was spent before the first image.
    """

    runs: list[Path]
    metrics: list[dict[str, Any]]
    said: str
    model: str | None
    calls: float = 0.0
    seconds: float | None = None
    flops: float | None = None
    once: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True, eq=False, kw_only=True)
class Work:
    """A comparison at work.

    Attributes:
        question: What is asked.
        labels: Of each class, all numbers that are tried.
        settings: How.
        backbone: The diffusion model; None where no method needs one.
        out: The directory.
        device: Where networks compute.
        dtype: Of encoders.
        batch_size: Rows of the denoiser in one call; does not change results.
        progress: Called with (what is done, how many, of how many, denoiser calls so far).
    """

    question: Question
    labels: tuple[int, ...]
    settings: CompareSettings
    backbone: Backbone | None
    out: Path
    device: torch.device = field(default_factory=lambda: resolve_device(None))
    dtype: str | None = None
    batch_size: int = 64
    progress: Report | None = None
    _vectors: dict[tuple[str, str], Embedded] = field(default_factory=dict)
    _embedders: dict[str, VectorEmbedder | DiffusionEmbedder] = field(default_factory=dict)
    _costs: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)
    _made: SyntheticSet | None = None

    @property
    def shared(self) -> Path:
        """Where is kept what several rows use."""
        return self.out / "shared"

    @property
    def watch(self) -> Stopwatch:
        """Time of parts."""
        return Stopwatch(self.shared / FILE)

    def folder(self, entry: Entry) -> Path:
        """Of a row."""
        return self.out / "rows" / entry.key

    def model(self) -> Backbone:
        """The diffusion model.

        Raises:
            InputError: If there is none.
        """
        if self.backbone is None:
            raise InputError("No diffusion model was given. Name one by --model.")
        return self.backbone

    def tell(self, what: str, total: int) -> Callable[[int, int], None]:
        """A report on a stage, to be called with how many are done, and calls so far."""
        return lambda done, calls: self.progress(what, done, total, calls) if self.progress is not None else None

    def seeds(self) -> range:
        """Of labels and trainings."""
        return range(self.settings.seed, self.settings.seed + self.settings.seeds)

    def embedder(self, entry: Entry) -> VectorEmbedder | DiffusionEmbedder:
        """What gives the vectors of a row; each is made once, and of baselines only the last one is held."""
        own = f"baseline {entry.baseline}" if entry.baseline is not None else entry.method.on
        if own not in self._embedders:
            if entry.baseline is not None and entry.kind is not None:
                for other in [key for key in self._embedders if key.startswith("baseline ")]:
                    del self._embedders[other]
                made = baseline_embedder(entry.baseline, entry.kind, device=self.device, dtype=self.dtype)
            elif entry.method.on == "pixels":
                made = pixel_embedder(self.question.test)
            else:
                cache = self.shared / "features"
                made = diffusion_embedder(self.model(), cache=cache, batch_size=self.batch_size)
            self._embedders[own] = made
        return self._embedders[own]

    def embedded(self, embedder: VectorEmbedder | DiffusionEmbedder, source: Source, what: str) -> Embedded:
        """Vectors of images, from the disk where they are kept."""
        key = (embedder.name, f"{source.name} {source.fingerprint()}")
        if key not in self._vectors:
            told = self.tell(what, len(source))
            if isinstance(embedder, DiffusionEmbedder) or embedder.name.startswith("pixels "):
                self._vectors[key] = embedder.embed(source, told)
            else:
                name = digest(f"{embedder.name} {source.name} {source.fingerprint()}".encode())[:16]
                self._vectors[key] = kept(embedder, source, self.shared / "vectors" / name, told)
        return self._vectors[key]

    def cost(self, embedder: VectorEmbedder | DiffusionEmbedder) -> tuple[float | None, float | None]:
        """Seconds and floating-point operations of a test image's vector, measured once."""
        if embedder.name not in self._costs:
            self._costs[embedder.name] = cost_of(embedder, self.question.test)
        return self._costs[embedder.name]

    def draws(self, labels: int) -> list[np.ndarray]:
        """Positions of the training images of each seed."""
        return [self.question.draw(labels, seed) for seed in self.seeds()]

    def training_union(self) -> np.ndarray:
        """Positions of all training images that any row uses."""
        return np.unique(np.concatenate(self.draws(max(self.labels))))

    def plan(self) -> Plan:
        """What is generated."""
        names = self.question.classes
        fitting, _ = fit_domains(TRICK, TrickOptions(), self.model(), names)
        trick = make_trick(TRICK, fitting)
        wanted = SynthesisSettings(trick=trick, per_class=self.settings.per_class, seed=self.settings.seed)
        return make_plan(self.model(), Classes.of_task(names), wanted)

    def synthetic(self) -> SyntheticSet:
        """The generated set, drawn when it is first asked for."""
        if self._made is None:
            plan = self.plan()
            with self.watch.running("synthesize"):
                self._made = synthesize(
                    self.model(),
                    plan.classes,
                    self.shared / "synthetic",
                    settings=plan.settings,
                    batch_size=self.batch_size,
                    progress=self.tell("images drawn", len(plan)),
                )
        return self._made
