"""``diffsight distil``: class names, and maybe photographs without labels, to a small network and its ONNX file."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsight.cli import options, output, train_options
from diffsight.cli import synthesis_options as given
from diffsight.errors import InputError


def distil(
    *,
    classes: given.ClassNames = None,
    classes_file: given.ClassesFile = None,
    task: given.ClassesOfTask = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Real photographs without labels, which the model labels: another protocol, 'distilled' "
            "(default: none).",
        ),
    ] = None,
    model: options.Model = "tiny-fashion",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where all goes (no default; not needed with --dry-run).")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first seed's network as ONNX (default: do not).")
    ] = None,
    per_class: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Generated images of each class (default: 100, with --images none)."),
    ] = None,
    trick: given.TrickName = "merged",
    sampler: given.SamplerName = None,
    steps: given.Steps = None,
    draws: options.Draws = None,
    network: Annotated[
        str | None, typer.Option(metavar="NAME", help="A name of 'diffsight ls networks' (default: resnet-18).")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the images (default: 30).")
    ] = None,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Never mirror an image: for digits and text (default: every second).")
    ] = False,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How many networks are trained.")] = 1,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost, after a few images (default: do it).")
    ] = False,
) -> int:
    """Make a small network from class names alone: generate images, train, export, in one command.

    With --images it also learns from photographs that the model labels, which is no zero-shot protocol any more, and
    is said beside every number. The same command continues after an interruption.
    """
    if out is None and not dry_run:
        raise InputError("Where should it all go? Give --out DIR, or --dry-run to see what it would cost.")
    with output.interruptible("The same command continues each step from its last commit."):
        from diffsight.evaluation import distilling
        from diffsight.synthesis.bag import TrickOptions, make_trick
        from diffsight.synthesis.export import check_export
        from diffsight.zero_shot.settings import Settings

        named = given.read_class_names(classes, classes_file, task)
        changes = {"epochs": epochs, "flip": False if no_flip else None}
        training = train_options.make_settings(
            None, network, {key: value for key, value in changes.items() if value is not None}, None
        )
        if export is not None:
            check_export(export)
        count = (100 if images is None else 0) if per_class is None else per_class
        synthesis = None
        if count:
            settings, usual, _ = given.make_settings(
                preset=None, sampler=sampler, steps=steps, size=None, antialias=True, per_class=count
            )
            synthesis = replace(settings, trick=make_trick(trick, usual), seed=seed)
        photographs = None if images is None else distilling.open_photographs(images)
        backbone = options.load_model(model, device, dtype)
        note, said = options.honesty(backbone.name), list[str]()
        if synthesis is not None:
            fitting, said = given.make_fitting_trick(trick, TrickOptions(), backbone, named.names)
            synthesis = replace(synthesis, trick=fitting)
        recipe = distilling.Recipe(
            backbone=backbone,
            classes=named,
            synthesis=synthesis,
            photographs=photographs,
            scoring=replace(Settings(), policy=options.make_policy(None, draws), seed=seed),
            training=training,
            seeds=seeds,
        )
        rows = min(options.batch_rows(backbone, batch_size), 64 if backbone.device.type == "cpu" else 256)
        if out is None or dry_run:
            _show_cost(distilling.cost(recipe, batch_size=rows, device=device), as_json=as_json)
            return 0
        with output.stages() as told:
            found = distilling.distil(
                recipe,
                out,
                export=export,
                batch_size=rows,
                device=device,
                notes=(*((note,) if note else ()), *said),
                progress=told,
            )
    failed = found["sources"]["unreadable"] + len(found["failed"])
    if as_json:
        output.show_json({**found, "out": str(out), "note": note})
    else:
        _show(found, out, note)
    return 3 if failed else 0


def _show(found: Mapping[str, Any], out: Path, note: str | None) -> None:
    sources, network = found["sources"], found["network"]
    unread = f", {sources['unreadable']:,} cannot be read" if sources["unreadable"] else ""
    output.show(
        f"{network['name']} for {len(found['classes'])} classes, from {sources['generated']:,} generated images and "
        f"{sources['photographs']:,} photographs labelled by the model{unread}"
    )
    if (validation := found["validation"]) is not None:
        output.show(f"{validation['mean']:.1%} on {validation['of']}; for labelled ones use 'diffsight evaluate'.")
    output.show(f"Network: {out / 'network'}")
    if found["export"] is not None:
        output.show(f"ONNX: {found['export']}")
    output.show(f"Protocol: {found['label']}.")
    if note is not None and note.rstrip(".") not in found["label"]:
        output.show(note)


def _show_cost(found: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        output.show_json({"dry_run": True, **found})
        return
    rows = [["step", "images", "calls", "time"]]
    for name, step in found["steps"].items():
        rows.append([name, f"{step['images']:,}", f"{step.get('calls', 0):,}", output.duration(step["seconds"])])
    rows.append(["all", "", f"{found['calls']:,}", output.duration(found["seconds"])])
    output.show(output.table(rows, align="<>>>"))
    output.show(f"Protocol: {found['protocol']}. Extrapolated from a few images and steps. Nothing was written.")
