"""``diffsight synthesize``: class names to a training set, with the tricks of Shipard et al. (2302.03298)."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options, output
from diffsight.cli import synthesis_options as given
from diffsight.cli.label_scorers import make_scorer
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.synthesis.dataset import SyntheticSet
    from diffsight.synthesis.plan import Plan

ON_CPU = 64  # Images in a batch there: more are no quicker, and reports and commits come at every batch.


def synthesize(
    *,
    classes: given.ClassNames = None,
    classes_file: given.ClassesFile = None,
    task: given.ClassesOfTask = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The set's directory (no default; not needed with --dry-run).")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What draws: as for other commands (default: tiny-fashion, or the preset's)."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="shipard2023, or shipard2023/cifar10, /cifar100 or /eurosat (default: none)."
        ),
    ] = None,
    trick: given.TrickName = "merged",
    per_class: given.PerClass = None,
    domain: given.Domains = None,
    form: given.Form = None,
    template: given.OwnTemplates = None,
    aliases: given.AliasFile = None,
    superclass: given.Superclass = None,
    bank: given.BankFile = None,
    sampler: given.SamplerName = None,
    steps: given.Steps = None,
    guidance_scale: given.GuidanceScale = None,
    whole_scales: given.WholeScales = None,
    size: given.Size = None,
    no_antialias: Annotated[
        bool, typer.Option("--no-antialias", help="Resize without filtering (default: filter, as in the paper's 32A).")
    ] = False,
    format_: given.Format = "folder",
    flat: given.Flat = 2.0,
    keep_repeated: Annotated[
        bool, typer.Option("--keep-repeated", help="Keep a picture that comes twice (default: drop it).")
    ] = False,
    near_duplicates: given.NearDuplicates = None,
    reject: given.Unwanted = None,
    label_check: given.LabelCheck = None,
    max_attempts: given.MaxAttempts = 5,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compile: options.Compile = None,
    as_json: options.Json = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print what it would cost, after drawing up to 8 images (default: do it)."),
    ] = False,
) -> int:
    """Draw a training set from class names alone.

    The same command continues after an interruption; with other settings it refuses and says which. Images that are
    dropped are drawn again with other noise.
    """
    if out is None and not dry_run:
        raise InputError("Where should the images go? Give --out DIR, or --dry-run to see what it would cost.")
    with output.interruptible("The same command continues from the last commit."):
        from diffsight.synthesis.bag import make_trick
        from diffsight.synthesis.filters import SAME, Filters, read_unwanted
        from diffsight.synthesis.plan import make_plan

        named = given.read_class_names(classes, classes_file, task)
        settings, usual, paper_model = given.make_settings(
            preset=preset, sampler=sampler, steps=steps, size=size, antialias=not no_antialias, per_class=per_class
        )
        trick_options = given.make_trick_options(
            usual,
            named.names,
            guidance=guidance_scale,
            whole=whole_scales,
            domains=domain,
            form=form,
            templates=template,
            aliases=aliases,
            superclass=superclass,
            bank=bank,
        )
        filters = Filters(
            flat=flat,
            repeated=not keep_repeated,
            near_duplicates=SAME if near_duplicates is None else near_duplicates,
            unwanted=read_unwanted(reject) if reject is not None else (),
            max_attempts=max_attempts,
        )
        # Refuses what cannot be before a model is loaded.
        settings = replace(settings, trick=make_trick(trick, trick_options), seed=seed, filters=filters, format=format_)
        backbone = options.load_model(model or paper_model, device, dtype, compile=compile)
        said: list[str] = []
        if preset is None:
            fitting, said = given.make_fitting_trick(trick, trick_options, backbone, named.names)
            settings = replace(settings, trick=fitting)
        make_plan(backbone, named, settings)  # Refuses what cannot be drawn before a second model is loaded.
        scorer = make_scorer(label_check, backbone, named, device=device, dtype=dtype)
        settings = replace(settings, filters=replace(filters, scorer=scorer.name if scorer else None))
        plan = make_plan(backbone, named, settings)
        rows = batch_size or min(options.batch_rows(backbone, None), ON_CPU if backbone.device.type == "cpu" else 256)
        if out is None or dry_run:
            return _show_cost(plan, rows, checked=scorer is not None, as_json=as_json)
        from diffsight.synthesis.generator import synthesize as draw

        note, started, calls = options.honesty(backbone.name), time.monotonic(), 0
        notes = [*([note] if note else []), *said]
        with output.progress(len(plan)) as report:

            def told(images: int, so_far: int) -> None:
                nonlocal calls
                calls = so_far
                report(images, so_far)

            found = draw(
                backbone,
                named,
                out,
                settings=settings,
                scorer=scorer,
                batch_size=rows,
                notes=notes,
                progress=told,
            )
    return _show(found, out, calls, time.monotonic() - started, as_json=as_json)


def _show(found: "SyntheticSet", out: Path, calls: int, seconds: float, *, as_json: bool) -> int:
    card = found.card
    sheets = sorted(path.name for path in out.glob("contact-*.png"))
    if as_json:
        keys = ("images", "missing", "drawn", "dropped", "classes", "tricks", "format")
        values: dict[str, Any] = {key: card[key] for key in keys}
        output.show_json({"out": str(out), **values, "calls": calls, "seconds": seconds, "contact_sheets": sheets})
        return 3 if card["missing"] else 0
    header = ["class", "folder", "images", "missing"]
    rows = [[e["name"], e["folder"], f"{e['images']:,}", f"{e['missing']:,}"] for e in card["classes"]]
    output.show(output.table([header, *rows], align="<<>>"))
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in card["dropped"].items()) or "none"
    output.show(f"{card['images']:,} images kept of {card['drawn']:,} drawn; dropped: {dropped}.")
    if calls:
        output.show(f"{calls:,} calls in {output.duration(seconds)}, {calls / max(seconds, 1e-9):,.0f} calls/s")
    output.show(f"Set: {out}. Pictures of it: {', '.join(sheets)}")
    return 3 if card["missing"] else 0


def _show_cost(plan: "Plan", rows: int, *, checked: bool, as_json: bool) -> int:
    from diffsight.synthesis.estimating import estimate

    cost = estimate(plan, rows)
    if as_json:
        output.show_json(
            {
                "dry_run": True,
                "images": cost.images,
                "calls": cost.calls,
                "calls_per_image": cost.calls / cost.images,
                "calls_per_second": cost.calls_per_second,
                "seconds": cost.seconds,
                "bytes": round(cost.bytes),
                "pilot_images": cost.pilot_images,
            }
        )
        return 0
    lines = [
        ("images", f"{cost.images:,}"),
        ("calls", f"{cost.calls:,} ({cost.calls / cost.images:,.1f} per image)"),
        ("time", f"{output.duration(cost.seconds)} ({cost.calls_per_second:,.0f} calls/s, loading not counted)"),
        ("disk", f"about {cost.bytes / 1e6:,.1f} MB"),
    ]
    output.show(output.table(lines))
    more = "drawn again, and the label check, come" if checked else "drawn again come"
    output.show(
        f"Extrapolated from {cost.pilot_images} images that were really drawn; images that are {more} on top. "
        "Nothing was written."
    )
    return 0
