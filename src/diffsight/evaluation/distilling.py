"""From class names alone, or with photographs that nobody labelled, to a small network: all steps in one.

Generated images alone give a zero-shot network. Photographs get soft labels from a zero-shot diffusion classifier, and
the network learns from these, alone or beside generated images. That is another protocol, ``"distilled"``: real images
were used, though no label of a person, so its numbers do not stand beside those of zero-shot networks.

Each step has a directory of its own in one directory, ``synthetic``, ``labels`` and ``network``, that the same call
continues.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffsight.backbones.base import Backbone
from diffsight.backbones.models.classes import refuse_unconditional
from diffsight.data.prompts import PromptSet
from diffsight.data.sources import Source, open_source
from diffsight.errors import ImageError, InputError
from diffsight.evaluation import runner
from diffsight.evaluation.runner import Job
from diffsight.evaluation.task import DEFAULT_TEMPLATES, Task
from diffsight.store.run import Run
from diffsight.synthesis import estimating, trainer
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.export import check_export, export_onnx
from diffsight.synthesis.generator import synthesize
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.plan import SynthesisSettings, make_plan
from diffsight.synthesis.training_set import TrainingSet, of_synthetic
from diffsight.zero_shot.settings import Settings, prepare

SYNTHETIC, LABELS, NETWORK = "synthetic", "labels", "network"
Report = Callable[[str, int, int, int], None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recipe:
    """What a network is distilled from, and how.

    Attributes:
        backbone: The model that draws and labels.
        classes: What the network is to tell apart.
        synthesis: How images are generated; None generates none.
        photographs: Unlabelled real images; None for none. Labels that they have are not looked at.
        scoring: How photographs are labelled.
        training: How the network is trained.
        seeds: How often.

    Raises:
        InputError: If there is nothing to learn from.
    """

    backbone: Backbone
    classes: Classes
    synthesis: SynthesisSettings | None = None
    photographs: Source | None = None
    scoring: Settings = field(default_factory=Settings)
    training: TrainSettings = field(default_factory=TrainSettings)
    seeds: int = 1

    def __post_init__(self) -> None:
        if self.synthesis is None and self.photographs is None:
            raise InputError("There is nothing to learn from: generate images, or give unlabelled photographs.")
        if self.photographs is not None:
            refuse_unconditional(self.backbone)

    @property
    def protocol(self) -> str:
        """``"zero-shot"`` from generated images alone, ``"distilled"`` with photographs."""
        return "zero-shot" if self.photographs is None else "distilled"

    def job(self) -> Job:
        """The labelling of the photographs, as a run of the zero-shot classifier without labels."""
        if self.photographs is None:
            raise InputError("There are no photographs to label.")
        source = replace(self.photographs, labels=None, class_names=None)
        templates = "{}" if self.backbone.class_names is not None else DEFAULT_TEMPLATES
        prompts = PromptSet.from_templates(self.classes.names, templates)
        task = Task(name="unlabelled photographs", source=source.name, class_names=self.classes.names)
        return Job(task=task, source=source, setup=prepare(self.backbone, prompts, self.scoring))


def open_photographs(folder: Path | str) -> Source:
    """Open a folder of photographs; sub-folders and their names mean nothing.

    Raises:
        SourceError: If there is no image in it.
    """
    return replace(open_source(f"folder:{Path(folder)}"), labels=None, class_names=None)


def label(recipe: Recipe, out: Path | str, *, batch_size: int = 256, progress: Report | None = None) -> TrainingSet:
    """Give photographs the probabilities of a zero-shot classifier, in a run that the same call continues.

    They are those of `DiffusionClassifier.predict_proba` with the noise of file names, not of contents. Photographs
    that cannot be read are left out.

    Raises:
        ImageError: If none can be read.
        RunError: If the directory belongs to other settings or photographs, is damaged, or the disk refuses.
    """
    job = recipe.job()

    def told(state: runner.Progress) -> None:
        if progress is not None:
            progress("photographs labelled", state.images, state.total, state.calls)

    runner.evaluate(job, out, batch_size=batch_size, progress=told)
    table = Run.load(out).read("predictions", ["id", "probabilities"])
    if not table.num_rows:
        raise ImageError(f"None of {len(job.source)} photographs can be read. They are listed in {out}/failures.")
    places = {id: position for position, id in enumerate(job.source.ids)}
    chosen = job.source.select([places[id] for id in table["id"].to_pylist()])
    probabilities = np.array(table["probabilities"].to_pylist())
    return TrainingSet(source=chosen, class_names=recipe.classes.names, targets=probabilities)


def distil(
    recipe: Recipe,
    out: Path | str,
    *,
    export: Path | None = None,
    batch_size: int = 64,
    device: str | None = None,
    notes: tuple[str, ...] = (),
    progress: Report | None = None,
) -> dict[str, Any]:
    """Generate, label, train and export, continuing whatever is there.

    Args:
        recipe: From what, and how.
        out: The directory.
        export: An ONNX file for the first seed's network, or None.
        batch_size: Rows of the denoiser in one call; does not decide what comes out.
        device: Where the network is trained; by default CUDA where there is one.
        notes: Sentences for the card of the generated set.
        progress: Called with (what is done, how many, of how many, denoiser calls so far).

    Returns:
        The summary of the training, with ``"sources"``: how many images of which kind; and ``"export"``.

    Raises:
        DiffsightError: As `synthesize`, `label`, `train` and `export_onnx`.
    """
    out = Path(out)
    if export is not None:
        check_export(export)
    sets: list[TrainingSet] = []
    sources: dict[str, Any] = {"generated": 0, "photographs": 0, "unreadable": 0}
    if recipe.synthesis is not None:
        total = len(recipe.classes) * recipe.synthesis.per_class
        made = synthesize(
            recipe.backbone,
            recipe.classes,
            out / SYNTHETIC,
            settings=recipe.synthesis,
            batch_size=batch_size,
            notes=notes,
            progress=lambda done, calls: progress("images drawn", done, total, calls) if progress else None,
        )
        sets.append(of_synthetic(made))
        sources["generated"] = len(made)
    if recipe.photographs is not None:
        sets.append(label(recipe, out / LABELS, batch_size=batch_size, progress=progress))
        sources["photographs"] = len(sets[-1].source)
        sources["unreadable"] = len(recipe.photographs) - len(sets[-1].source)
    trained = trainer.train(
        sets,
        out / NETWORK,
        settings=recipe.training,
        protocol=recipe.protocol,
        seeds=recipe.seeds,
        device=device,
        progress=lambda state: progress(state.what, state.done, state.total, 0) if progress else None,
    )
    written = None if export is None else export_onnx(trained.classifiers[0], export)
    return trained.summary | {"sources": sources, "export": None if written is None else str(written.path)}


def cost(recipe: Recipe, *, batch_size: int = 64, device: str | None = None) -> dict[str, Any]:
    """What `distil` takes, from a few images that are drawn, labelled and learnt from; nothing is written.

    Returns:
        Images, denoiser calls and seconds of each step, as JSON values. Training is timed on black images.
    """
    steps: dict[str, Any] = {}
    count, size = 0, recipe.backbone.transform.size
    if recipe.synthesis is not None:
        plan = make_plan(recipe.backbone, recipe.classes, recipe.synthesis)
        drawn = estimating.estimate(plan, batch_size)
        steps["synthesize"] = {"images": drawn.images, "calls": drawn.calls, "seconds": drawn.seconds}
        count, size = drawn.images, recipe.synthesis.size or size
    if recipe.photographs is not None:
        found = runner.estimate(recipe.job(), batch_size=batch_size)
        steps["label"] = {"images": found.images, "calls": round(found.calls), "seconds": found.seconds}
        count += found.images
    few = max(4 * len(recipe.classes), 4 * recipe.training.batch_size)
    black = Image.new("RGB", (size, size))
    source = Source(name="black images", ids=tuple(map(str, range(few))), read=lambda id: black)
    targets = np.arange(few) % len(recipe.classes)
    pilot = trainer.estimate(
        TrainingSet(source=source, class_names=recipe.classes.names, targets=targets, synthetic=True),
        settings=recipe.training,
        device=device,
    )
    learnt = ceil(count * (1 - recipe.training.validation_share))
    total = recipe.seeds * recipe.training.epochs * recipe.training.steps(max(learnt, 2))
    steps["train"] = {"images": learnt, "steps": total, "seconds": pilot.seconds / pilot.steps * total}
    return {
        "protocol": recipe.protocol,
        "steps": steps,
        "calls": sum(step.get("calls", 0) for step in steps.values()),
        "seconds": sum(step["seconds"] for step in steps.values()),
    }
