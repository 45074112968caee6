"""Which layer, which pooling, which timestep: found on held-out training images, from coarse to fine.

Accuracy depends on the layer most (10 to 62 % in the sweeps of Mukhopadhyay et al. 2307.08702), then on the pooling,
and on the timestep little, over a broad plateau. So all layers are tried at a few noise levels, which one pass of the
network gives together; then the best layers with larger grids; then the best of these at noise levels in between, with
an early exit. All heads of a stage are trained together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from diffsight.backbones.base import Backbone
from diffsight.backbones.layers import find_layers
from diffsight.data.images import images_from
from diffsight.data.splits import hold_out
from diffsight.errors import InputError
from diffsight.features.cache import FeatureCache, extract
from diffsight.features.extraction import plan
from diffsight.features.heads.columns import Grids, Subset
from diffsight.features.heads.fitted import top1
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.specs import Linear
from diffsight.features.heads.training import Probe, fit_heads
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool

# t = 10, 50, 90, 150, 300 and 500 of ADM, the noise levels of the papers' sweeps.
LOG_SNRS = (6.12, 3.47, 2.35, 1.30, -0.43, -2.47)
RECIPE = Recipe(epochs=20)
_FINALISTS = 3  # Layers that are tried with larger grids.
_STEPS = 4  # Timesteps that are tried in between, at most.


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting and how good it was.

    Attributes:
        stage: ``"layer"``, ``"pool"`` or ``"timestep"``.
        layer: Whose output.
        timestep: At which level of the schedule.
        size: Side of the grid to which the maps were averaged.
        learning_rate: Of the best of the heads that were trained on it.
        accuracy: Of that head on the images held out.
    """

    stage: str
    layer: str
    timestep: int
    size: int
    learning_rate: float
    accuracy: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SearchResult:
    """What was tried and what it cost.

    Attributes:
        best: The setting with the highest accuracy; of equal ones the first, which is the cheaper. Its accuracy is that
            of a winner, and so too high: measure it on test images.
        trials: All settings, stage by stage.
        layers: The layers that were tried, in the order in which they run.
        timesteps: The noise levels of the first stage.
        images: How many images heads were trained on and how many were held out.
        calls: Passes through the denoiser, not counting what was in the cache already.
        heads: How many heads were trained.
        seconds: Wall time.
    """

    best: Trial
    trials: tuple[Trial, ...]
    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    images: tuple[int, int]
    calls: int
    heads: int
    seconds: float

    def heatmap(self) -> Float[np.ndarray, "layers timesteps"]:
        """Accuracies of the first stage: global average pooling of every layer at every noise level."""
        found = {(t.layer, t.timestep): t.accuracy for t in self.trials if t.stage == "layer"}
        return np.array([[found[layer, level] for level in self.timesteps] for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self)


def search(
    backbone: Backbone,
    images: Any,  # noqa: ANN401
    labels: Int[np.ndarray, " n"],
    *,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[int] | None = None,
    sizes: Sequence[int] = (1, 2, 4),
    learning_rates: Sequence[float] = (1e-3, 1e-2),
    share: float = 0.25,
    noise: Noise | None = None,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    root: Path | str | None = None,
    batch_size: int = 64,
    progress: Callable[[str, int, int, int], None] | None = None,
) -> SearchResult:
    """Find the best layer, grid and timestep for a linear head. No test image may be among the images.

    Args:
        backbone: The model.
        images: Training images, in any form that `images_from` takes.
        labels: Class of each image, from 0.
        layers: Which to try; all blocks by default.
        timesteps: Noise levels of the first stage; by default those with the log-SNR of the papers' sweeps.
        sizes: Grids to which maps are averaged, each dividing the largest; the first stage takes the smallest.
        learning_rates: Tried for every setting; the better one counts.
        share: Of the images of each class that are held out.
        noise: What is mixed in; one fixed draw by default.
        recipe: How the heads are trained.
        seed: Of the division and of the heads.
        root: A directory of caches, as for `extract`.
        batch_size: Rows of the denoiser in one call; does not change results.
        progress: Called with (stage, images finished, all images, denoiser calls of this stage so far).

    Raises:
        InputError: If labels do not fit the images, a class has a single image, or a setting makes no sense.
    """
    started = perf_counter()
    items = images_from(images)
    if len(labels) != len(items):
        raise InputError(f"There are {len(items)} images and {len(labels)} labels.")
    if not sizes or not learning_rates or min(sizes) < 1 or min(learning_rates) <= 0:
        raise InputError(
            f"A search needs sizes and learning rates over 0; got {list(sizes)} and {list(learning_rates)}."
        )
    if uneven := [size for size in sizes if max(sizes) % size]:
        raise InputError(f"Each size must divide the largest, whose averages are kept; {uneven[0]} does not.")
    smallest = min(sizes)
    levels = coarse_timesteps(backbone) if timesteps is None else tuple(timesteps)
    chosen = find_layers(backbone, [layer.name for layer in backbone.layers] if layers is None else layers)
    ground = _Ground(
        backbone=backbone,
        images=images,
        labels=labels,
        division=hold_out(labels, share=share, seed=seed),
        learning_rates=tuple(learning_rates),
        noise=noise or Noise(),
        recipe=recipe,
        seed=seed,
        root=root,
        batch_size=batch_size,
        progress=progress,
    )
    trials = ground.run("layer", {(layer.name, level): (smallest,) for level in levels for layer in chosen})
    if larger := tuple(size for size in sizes if size > smallest):
        finalists = _finalists(trials)
        trials += ground.run("pool", {(trial.layer, trial.timestep): larger for trial in finalists})
    leader = _best(trials)
    if between := _between(backbone, levels, leader.timestep):
        trials += ground.run("timestep", {(leader.layer, level): (leader.size,) for level in between})
    return SearchResult(
        best=_best(trials),
        trials=tuple(trials),
        layers=tuple(layer.name for layer in chosen),
        timesteps=levels,
        images=(len(ground.division[0]), len(ground.division[1])),
        calls=ground.calls,
        heads=len(trials) * len(learning_rates),
        seconds=perf_counter() - started,
    )


def coarse_timesteps(backbone: Backbone) -> tuple[int, ...]:
    """The model's levels that are nearest to the papers' in log-SNR, from clean to noisy."""
    return tuple(sorted({backbone.schedule.nearest_level(log_snr) for log_snr in LOG_SNRS}))


def estimate_calls(images: int, timesteps: int) -> int:
    """Denoiser calls of a search, at most: those of the first stage, and fewer, shorter ones of the others."""
    return images * (timesteps + _FINALISTS + _STEPS)


@dataclass(slots=True, eq=False, kw_only=True)
class _Ground:
    """What all stages have in common, and a count of the calls."""

    backbone: Backbone
    images: Any
    labels: np.ndarray
    division: tuple[np.ndarray, np.ndarray]
    learning_rates: tuple[float, ...]
    noise: Noise
    recipe: Recipe
    seed: int
    root: Path | str | None
    batch_size: int
    progress: Callable[[str, int, int, int], None] | None
    calls: int = 0

    def run(self, stage: str, settings: Mapping[tuple[str, int], tuple[int, ...]]) -> list[Trial]:
        """Try grids of some sizes on layers at timesteps: the features are taken once, all heads trained together."""
        extraction = plan(
            self.backbone,
            layers=list(dict.fromkeys(layer for layer, _ in settings)),
            timesteps=list(dict.fromkeys(level for _, level in settings)),
            noise=self.noise,
            pool=Pool(size=max(size for sizes in settings.values() for size in sizes)),
        )
        before = self.calls

        def report(images: int, calls: int) -> None:
            self.calls = before + calls
            if self.progress is not None:
                self.progress(stage, images, len(self.labels), calls)

        cache = extract(extraction, self.images, root=self.root, batch_size=self.batch_size, progress=report)
        train, held = (_present(cache, rows) for rows in self.division)
        sizes = {f"{layer}@{level}": chosen for (layer, level), chosen in settings.items()}
        # Pooled before they are standardised: as they will be when the head that was found is trained.
        grids = Grids(cache, sizes)
        probes = [
            Probe(columns=(column,), head=Linear(), learning_rate=rate)
            for column in grids.names
            for rate in self.learning_rates
        ]
        labels = self.labels[cache.positions]
        fitted = fit_heads(
            Subset(grids, train), labels[train], probes, recipe=self.recipe, seed=self.seed, device=self.backbone.device
        )
        sound = [one for one in fitted if not one.diverged]
        accuracies = top1([one.head for one in sound], Subset(grids, held), labels[held])
        found = {id(one.probe): accuracy for one, accuracy in zip(sound, accuracies, strict=True)}
        of_probe = iter([found.get(id(probe), 0.0) for probe in probes])
        trials = []
        for (layer, level), chosen in settings.items():
            for size in chosen:
                tried = [(next(of_probe), rate) for rate in self.learning_rates]
                accuracy, rate = max(tried, key=lambda pair: pair[0])
                trials.append(
                    Trial(stage=stage, layer=layer, timestep=level, size=size, learning_rate=rate, accuracy=accuracy)
                )
        return trials


def _present(cache: FeatureCache, positions: np.ndarray) -> np.ndarray:
    """Rows of the cache whose images are at these positions; those that could not be read have none."""
    return np.flatnonzero(np.isin(cache.positions, positions))


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.accuracy)


def _finalists(trials: Sequence[Trial]) -> list[Trial]:
    """The best layers, each at its best timestep."""
    best = {layer: _best([t for t in trials if t.layer == layer]) for layer in dict.fromkeys(t.layer for t in trials)}
    return sorted(best.values(), key=lambda trial: -trial.accuracy)[:_FINALISTS]


def _between(backbone: Backbone, levels: Sequence[int], best: int) -> list[int]:
    """Timesteps that were not tried around the best one: a third and two thirds of the way to its neighbours."""
    ordered = sorted(levels)
    place = ordered.index(best)
    log_snr = backbone.schedule.log_snr
    found = [
        backbone.schedule.nearest_level(float(log_snr[best] + part / 3 * (log_snr[neighbour] - log_snr[best])))
        for neighbour in (*ordered[max(0, place - 1) : place], *ordered[place + 1 : place + 2])
        for part in (1, 2)
    ]
    return sorted(set(found) - set(levels))
