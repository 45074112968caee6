"""``diffsight classify``: photographs from files and folders to a table of answers."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsight.cli import options, output
from diffsight.cli.answers import Answers, Picture, document, show, slug
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.backbones import Backbone
    from diffsight.data.prompts import PromptSet
    from diffsight.zero_shot.classifier import DiffusionClassifier

log = logging.getLogger(__name__)

PILOT = 8
SAMPLES = "they are test photographs of the classes that the model was trained on"


def classify(
    images: Annotated[
        list[Path] | None,
        typer.Argument(metavar="IMAGES", help="Image files, and folders with all that is in them."),
    ] = None,
    *,
    samples: Annotated[
        bool,
        typer.Option("--samples", help="The photographs that come with diffsight, instead of images (default: no)."),
    ] = False,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAMES",
            help="Class names, separated by commas; may be repeated (default: the model's own, if it has any).",
        ),
    ] = None,
    classes_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Class names, one per line (default: none).")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV with the columns prompt, classname, classidx, as Li et al. have it (default: none).",
        ),
    ] = None,
    templates: options.Templates = None,
    model: options.Model = "tiny-fashion",
    preset: options.Preset = None,
    policy: options.PolicyName = None,
    draws: options.Draws = None,
    loss: options.Loss = None,
    weighting: options.WeightingName = None,
    ensemble: options.EnsembleName = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compile: options.Compile = None,
    limit: options.Limit = None,
    top: Annotated[int, typer.Option(min=1, metavar="K", help="How many classes to name for each image.")] = 2,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Say which class each image shows, how sure that is, and what it cost.

    Where images lie in sub-folders that are named after the classes, right and wrong answers are marked and counted.
    """
    with output.interruptible("Nothing was kept; 'diffsight evaluate' can be continued."):
        pictures = _sample_pictures(images) if samples else find_pictures(images or [])
        pictures = pictures[:limit]
        settings = options.make_settings(
            preset=preset,
            policy=policy,
            draws=draws,
            loss=loss,
            weighting=weighting,
            ensemble=ensemble,
            seed=seed,
        )
        names = _names(model, classes, classes_file, prompts, templates, samples=samples)
        backbone = options.load_model(model, device, dtype, compile=compile)
        options.check_templates(backbone, templates)

        from diffsight.zero_shot.classifier import DEFAULT_TEMPLATE, DiffusionClassifier
        from diffsight.zero_shot.settings import preset as paper

        templates = templates or [paper(preset).template if preset else DEFAULT_TEMPLATE]

        classifier = DiffusionClassifier(
            backbone,
            _prompt_set(names, backbone, templates),
            policy=settings.policy,
            loss=settings.loss,
            weighting=settings.weighting,
            ensemble=settings.ensemble,
            seed=settings.seed,
            batch_size=options.batch_rows(backbone, batch_size),
        ).fit()
        if dry_run:
            _show_estimate(run(classifier, pictures[:PILOT]), len(pictures), as_json=as_json)
            return 0
        answers = run(classifier, pictures)
    note = options.honesty(model)
    if as_json:
        output.show_json(document(answers, classifier.setup_, top, note))
    else:
        show(answers, top, "by their folders" if note is None or not samples else SAMPLES)
    return 3 if answers.failed else 0


def find_pictures(paths: Sequence[Path]) -> list[Picture]:
    """Image files as given, and all those in folders and their sub-folders; hidden ones are left out.

    Raises:
        InputError: If there is nothing there, or no image in a folder.
    """
    from diffsight.data.decoding import SUFFIXES

    if not paths:
        raise InputError("Nothing to classify: give image files or folders, or --samples.")
    found: dict[Path, Picture] = {}
    for path in paths:
        if not path.exists():
            raise InputError(f"There is no file or folder {path}.")
        if not path.is_dir():
            found.setdefault(path, Picture(path, str(path)))
            continue
        inside = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES and file.is_file()]
        within = {file: file.relative_to(path).parts for file in inside}
        shown = {file: parts for file, parts in within.items() if not any(part.startswith(".") for part in parts)}
        if not shown:
            raise InputError(f"There is no image in the folder {path}. Known endings: {' '.join(sorted(SUFFIXES))}.")
        for file, parts in shown.items():
            found.setdefault(file, Picture(file, str(file), parts[0] if len(parts) > 1 else ""))
    return list(found.values())


def run(classifier: "DiffusionClassifier", pictures: Sequence[Picture]) -> Answers:
    """Classify pictures, reporting progress on stderr."""
    started = time.perf_counter()
    with output.progress(len(pictures)) as report:
        verdicts = classifier.classify([picture.path for picture in pictures], progress=report)
    classes = tuple(str(name) for name in classifier.classes_)
    by_slug = {slug(name): name for name in classes}
    return Answers(
        pictures=pictures,
        verdicts=verdicts,
        classes=classes,
        truths=[by_slug.get(slug(picture.folder)) if picture.folder else None for picture in pictures],
        seconds=time.perf_counter() - started,
    )


def _sample_pictures(images: Sequence[Path] | None) -> list[Picture]:
    """The photographs of the package in the order of their file names, which mixes the classes."""
    from diffsight.backbones.cards import assets

    if images:
        raise InputError("Give images or --samples, not both.")
    folder = assets() / "samples"
    if not folder.is_dir():
        raise InputError(f"The sample photographs are not in this installation ({folder}).")
    found = sorted(find_pictures([folder]), key=lambda picture: picture.path.name)
    return [replace(picture, name=str(picture.path.relative_to(folder))) for picture in found]


def _names(
    model: str,
    classes: Sequence[str] | None,
    file: Path | None,
    prompts: Path | None,
    templates: Sequence[str] | None,
    *,
    samples: bool,
) -> "tuple[str, ...] | PromptSet | None":
    """What competes, as far as it can be told before the model is loaded; None for the model's own classes."""
    from diffsight.backbones import cards
    from diffsight.data.prompts import PromptSet

    names = options.read_classes(classes, file)
    if prompts is not None:
        if names or templates:
            raise InputError("--prompts says it all: leave out --classes, --classes-file and --template.")
        return PromptSet.from_csv(prompts, allow_duplicates=True)
    known = options.trained_on(model) or (options.trained_on("tiny-fashion") if samples else None)
    if names is None and known is not None:
        return known.class_names
    if names is None:
        card = cards().get(model)
        if card is not None and card.reads == "text":
            raise InputError(_needs_classes(model))
        return None
    PromptSet.from_templates(names, templates or "{}")  # Refused now rather than after a download.
    if known is not None and options.trained_on(model) is not None:
        learnt = {slug(name) for name in known.class_names or ()}
        if strange := [name for name in names if slug(name) not in learnt]:
            log.warning(
                "%s has only seen %s; of %s it may know nothing. For a model that knows the world: --model sd-1.5, or "
                "another of 'diffsight ls models'.",
                model,
                ", ".join(known.class_names or ()),
                ", ".join(strange[:3]) + (", ..." if strange[3:] else ""),
            )
    return names


def _prompt_set(
    names: "tuple[str, ...] | PromptSet | None", backbone: "Backbone", templates: Sequence[str]
) -> "PromptSet":
    from diffsight.backbones.models.classes import refuse_unconditional
    from diffsight.data.prompts import PromptSet

    refuse_unconditional(backbone)
    if isinstance(names, PromptSet):
        return names
    if backbone.class_names is not None:
        return PromptSet.from_templates(names or backbone.class_names, "{}")
    if names is None:
        raise InputError(_needs_classes(backbone.name))
    return PromptSet.from_templates(names, templates)


def _needs_classes(model: str) -> str:
    return f"{model} reads text, so say what to choose from: --classes 'cat, dog', --classes-file or --prompts."


def _show_estimate(pilot: Answers, images: int, *, as_json: bool) -> None:
    from diffsight.evaluation.runner import Estimate

    totals = pilot.totals()
    estimate = Estimate(
        images=images,
        pilot_images=len(pilot.pictures),
        calls_per_image=totals["calls"] / len(pilot.pictures),
        calls_per_second=totals["calls_per_second"],
    )
    output.show_estimate(estimate, disk="nothing is stored", as_json=as_json)
