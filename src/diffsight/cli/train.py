"""``diffsight train``: an ordinary network from generated images, in a directory that the same command continues."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import networks, options, output, train_options
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.synthesis.trainer import Cost, Progress


log = logging.getLogger(__name__)


def train(
    *,
    data: Annotated[
        list[str],
        typer.Option(
            metavar="DIR",
            help="Images to learn from, as 'diffsight synthesize' wrote them; may be repeated. With another --protocol "
            "also a folder with one sub-folder per class, torchvision:NAME, or a task.",
        ),
    ],
    synthetic: Annotated[
        bool,
        typer.Option(
            "--synthetic",
            help="You say that each --data that is a plain folder holds generated images; noted as your word "
            "(default: it counts as real).",
        ),
    ] = False,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The classes are this task's; folders are matched to them (default: named by folders)."
        ),
    ] = None,
    network: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A name of 'diffsight ls networks', or any of timm's (default: resnet-18)."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The training's directory (no default; not with --dry-run).")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A paper's recipe: shipard2023 or shipard2023/eurosat (default: ours)."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="How often, for a mean and its deviation.")] = 1,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="The first of the seeds.")] = 0,
    protocol: Annotated[
        str,
        typer.Option(metavar="NAME", help="What is learnt from: zero-shot (generated images), oracle or supervised."),
    ] = "zero-shot",
    validation: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="Generated images that choose the epoch (default: a share held out)."),
    ] = None,
    validation_share: Annotated[
        float | None, typer.Option(metavar="X", help="Of each class, held out; 0 keeps the last epoch (default: 0.1).")
    ] = None,
    size: Annotated[
        int | None, typer.Option(metavar="N", help="Side of the network's images (default: theirs, at most 224).")
    ] = None,
    stem: Annotated[
        str | None, typer.Option(metavar="NAME", help="small, standard or auto: small up to 64 pixels (default: auto).")
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained", help="Start from timm's weights, of real images (default: from scratch)."),
    ] = False,
    epochs: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Passes over the images (default: 30).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=2, metavar="N", help="Images per step (default: 64).")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Of AdamW, at its highest (default: 0.001).")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(metavar="X", help="Of AdamW (default: 0.05).")] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(metavar="X", help="Share of the target for all classes (default: 0.1).")
    ] = None,
    mixup: Annotated[float | None, typer.Option(metavar="X", help="Mix images in pairs (default: 0, never).")] = None,
    ema_decay: Annotated[
        float | None, typer.Option(metavar="X", help="Of the average of the weights; 0 is none (default: 0.998).")
    ] = None,
    augment: Annotated[
        str | None, typer.Option(metavar="KIND", help="shift, crop, rotate, none or auto (default: auto).")
    ] = None,
    no_flip: Annotated[
        bool, typer.Option("--no-flip", help="Never mirror an image: for digits and text (default: every second).")
    ] = False,
    patience: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Stop after N epochs without gain (default: 10).")
    ] = None,
    amp: Annotated[
        str | None, typer.Option(metavar="NAME", help="no, bf16, fp16 or auto: bf16 on a GPU (default: auto).")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where data sets lie (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Part of a data set that has parts.")] = "train",
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the first seed's network as ONNX, too (default: do not).")
    ] = None,
    device: options.Device = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads that prepare images (default: by the images).")
    ] = None,
    as_json: options.Json = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would cost, after a few steps (default: do it).")
    ] = False,
) -> int:
    """Train an ordinary network on generated images, so that class names alone give a classifier.

    No real image is learnt from, or chooses anything: such data is refused unless another --protocol is named. The same
    command continues after an interruption. Several GPUs: 'accelerate launch -m diffsight train …'.
    """
    if out is None and not dry_run:
        raise InputError("Where should the network go? Give --out DIR, or --dry-run to see what it would cost.")
    changes: dict[str, Any] = {
        "size": size,
        "stem": stem,
        "pretrained": pretrained or None,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "mixup": mixup,
        "ema_decay": ema_decay,
        "augment": augment,
        "flip": False if no_flip else None,
        "validation_share": validation_share,
        "patience": patience,
    }
    with output.interruptible("The same command continues after the last epoch that was finished."):
        from diffsight.synthesis.export import check_export, export_onnx
        from diffsight.synthesis.trainer import estimate
        from diffsight.synthesis.trainer import train as learn

        settings = train_options.make_settings(
            preset, network, {k: v for k, v in changes.items() if v is not None}, amp
        )
        if export is not None:
            check_export(export)
        where: dict[str, Any] = {"root": root, "split": split, "classes": task}
        sets = [train_options.open_images(name, synthetic=synthetic, **where) for name in data]
        held = None if validation is None else train_options.open_images(validation, **where)
        if out is None or dry_run:
            cost = estimate(
                sets,
                settings=settings,
                validation=held,
                protocol=protocol,
                seeds=seeds,
                device=device,
                workers=workers,
            )
            _show_cost(cost, as_json=as_json)
            return 0
        with _progress() as report:
            trained = learn(
                sets,
                out,
                settings=settings,
                validation=held,
                protocol=protocol,
                seeds=seeds,
                seed=seed,
                device=device,
                workers=workers,
                progress=report,
            )
        if not trained.leads:
            return 0
        written = None if export is None else export_onnx(trained.classifiers[0], export)
    summary, failed = trained.summary, trained.summary["failed"]
    if as_json:
        output.show_json({**summary, "folder": str(out), "export": None if written is None else str(written.path)})
        return 3 if failed else 0
    _show(summary)
    if written is not None:
        output.show(networks.exported(written))
    output.show(f"Network: {out}\nProtocol: {trained.classifiers[0].label}.")
    for one in failed:
        output.show(f"failed: {one['id']}: {one['reason']}")
    return 3 if failed else 0


@contextmanager
def _progress() -> Iterator[Callable[["Progress"], None]]:
    """Report on stderr: a bar on a terminal, elsewhere a line about every ten seconds."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(leave=False, file=sys.stderr, bar_format="{n}/{total} {desc} |{bar}| {remaining} left") as bar:

            def draw(state: "Progress") -> None:
                if (bar.total, state.done) != (state.total, bar.n + 1):  # other work than before
                    bar.reset(state.total)
                bar.set_description_str(f"{state.what} {state.note}".rstrip(), refresh=False)
                bar.update(state.done - bar.n)

            yield draw
        return
    last, what, pace = time.monotonic(), "", output.Pace(0)

    def write(state: "Progress") -> None:
        nonlocal last, what, pace
        if state.what != what:
            what, pace = state.what, output.Pace(state.total)
        speed = pace.update(state.done)
        if time.monotonic() - last >= output.SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            notes = "".join(f", {note}" for note in (state.note, speed) if note)
            log.info("%s of %s %s%s", f"{state.done:,}", f"{state.total:,}", state.what, notes)

    yield write


def _show(summary: Mapping[str, Any]) -> None:
    first, found = summary["seeds"][0], summary["validation"]
    network = summary["network"]
    output.show(
        f"{network['name']} ({first['parameters']:,} parameters, {network['size']}×{network['size']} pixels, "
        f"{network['first_layers']}), {first['images']:,} images of {len(summary['classes'])} classes"
    )
    rows = [["seed", "epochs", "kept", "loss", "held-out accuracy", "time"]]
    for one in summary["seeds"]:
        accuracy = "" if one["validation"] is None else f"{one['validation']['accuracy']:.1%}"
        cells = [str(one["seed"]), str(one["epochs"]), str(one["kept_epoch"]), f"{one['loss']:.3f}", accuracy]
        rows.append([*cells, output.duration(one["seconds"])])
    output.show(output.table(rows, align=">>>>>>"))
    if found is not None:
        spread = "" if found["sd"] is None else f" ± {found['sd']:.1%}"
        output.show(f"{found['mean']:.1%}{spread} on {found['of']}; for real ones use 'diffsight evaluate'.")


def _show_cost(cost: "Cost", *, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        output.show_json({"dry_run": True, **asdict(cost)})
        return
    rows = [
        ("images", f"{cost.images:,} to learn from, {cost.held_out:,} held out, {cost.failed} cannot be read"),
        ("network", f"{cost.network['name']}, {cost.parameters:,} parameters, {cost.network['first_layers']}"),
        ("steps", f"{cost.steps:,} at most"),
        ("time", f"{output.duration(cost.seconds)} at most"),
        ("disk", f"about {cost.megabytes:,.0f} MB while a seed is trained"),
    ]
    output.show(output.table(rows))
    output.show("Extrapolated from a few steps. Nothing was written.")
