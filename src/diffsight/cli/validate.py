"""``diffsight validate``: what is wrong with a task, before anything is run."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsight.cli import options, output

if TYPE_CHECKING:
    from diffsight.evaluation.validation import Validation


def validate(
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A YAML file, a folder with a task.yaml or with one sub-folder for each class, or a task of "
            "'diffsight ls tasks'.",
        ),
    ],
    *,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the data lies (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of the data (default: the task's own, mostly 'test').")
    ] = None,
    images: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="How many images to open, evenly spread over the data; 0: none."),
    ] = 1000,
    as_json: options.Json = False,
) -> int:
    """Check a task: its file, its class names against the data, and its images; and say what a run of it would be.

    A task of your own is a folder with one sub-folder of images for each class, or a YAML file such as

    \b
      name: animals
      version: 1
      source: folder:photos
      class_names: [cat, dog]
      templates: ["a photo of a {}."]
      licence: mine
      citation: taken by me

    Further keys: split, metric (top1 or mean_per_class), protocol, presets. A folder is meant from where the file lies;
    under the name task.yaml the file makes a task of the folder that it lies in. Exit codes: 0 it can be run, 2 it
    cannot. Data of a known set that are not here are no mistake.
    """  # noqa: D301 (Typer keeps the lines of a paragraph that begins with a backspace.)
    with output.interruptible("Nothing was written."):
        from diffsight.evaluation.validation import validate_task

        with output.stages() as report:
            found = validate_task(
                task,
                root=root,
                split=split,
                images=images,
                progress=lambda done, total: report("images opened", done, total, 0),
            )
    if as_json:
        output.show_json(found.to_dict())
    else:
        _show(found)
    return 2 if found.mistakes else 0


def _show(found: "Validation") -> None:
    for mistake in found.mistakes:
        output.show(mistake.message)
    rows: list[tuple[str, str]] = []
    if found.task is not None:
        rows += [("task", f"{found.task.name}, version {found.task.version}"), ("licence", found.task.licence)]
    if found.data is not None:
        rows += _data_rows(found)
    if found.run is not None:
        run = found.run
        rows += [
            ("classes", f"{run['classes']:,} (chance {run['chance']:.1%})"),
            ("prompts", f"{run['prompts']:,}, the first is {run['first_prompt']!r}"),
            ("metric", str(run["metric"])),
            ("protocol", f"{run['protocol']}; split {run['split']}"),
            ("transform", str(run["transform"])),
            ("calls", f"at most {run['most_calls_per_image']:,} per image with the usual settings"),
            *((name, f"at most {paper['most_calls_per_image']:,} per image") for name, paper in run["presets"].items()),
            ("to run it", str(run["command"])),
        ]
    if rows:
        output.show(output.table(rows))
    for note in found.notes:
        output.show(f"Note: {note}")
    count = len(found.mistakes)
    output.show(f"{count} mistake{'s' * (count != 1)}: it cannot be run." if count else "No mistakes.")


def _data_rows(found: "Validation") -> list[tuple[str, str]]:
    data = found.data or {}
    per_class, sides = data["per_class"], data["sides"]
    each = (
        f", {per_class['least']:,} to {per_class['most']:,} of each of {data['classes']:,} classes" if per_class else ""
    )
    seen = f"{data['opened']:,}, of which {data['unreadable']:,} cannot be read"
    rows = [("images", f"{data['images']:,}{each}"), ("opened", seen)]
    if sides:
        rows.append(("sides", f"{sides['least']:,} to {sides['most']:,} pixels"))
    return [*rows, *(("", reason) for reason in data["reasons"])]
