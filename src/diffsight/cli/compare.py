"""``diffsight compare``: methods on one's own folder or a task, with few and many labels, in one table and page."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options, output
from diffsight.errors import InputError, RunError

if TYPE_CHECKING:
    from diffsight.evaluation.comparing.forecast import Expected

METHOD_NAMES = (
    "diffusion, zero-shot, pretrained, synthetic, gdc (0 labels); features, pixels, pixels-knn, probe, knn (from 1); "
    "network (from 100)"
)


def compare(
    *,
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK|FOLDER",
            help="A task of 'diffsight ls tasks', a YAML file, or a folder: with one sub-folder per class, or without "
            "labels (then give --classes).",
        ),
    ],
    model: options.Model = "tiny-fashion",
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="CLIP, SigLIP or DINOv2 (a card, hf:ORG/REPO or a folder) or timm:NAME|FOLDER; may be repeated "
            "(default: none).",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,…", help="Labels of each class (default: those of 0,1,10,100 for which there are images)."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The comparison's directory (no default; not needed with --dry-run)."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Only this: {METHOD_NAMES}; may be repeated (default: all that apply)."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME,NAME,…",
            help="What a folder without labels can show (default: names of sub-folders, or task).",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only N test images, drawn by the seed (default: all).")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often labels are drawn and networks trained.")
    ] = 3,
    per_class: Annotated[
        int, typer.Option(min=2, metavar="N", help="Generated images of each class, for synthetic and gdc.")
    ] = 50,
    network: Annotated[
        str, typer.Option(metavar="NAME", help="What synthetic and network train, see 'diffsight train'.")
    ] = "mobilenetv3-small",
    epochs: Annotated[int, typer.Option(min=1, metavar="N", help="Of each training.")] = 20,
    test_share: Annotated[
        float,
        typer.Option(metavar="X", help="Of each class of a labelled folder that is tested on, the rest gives labels."),
    ] = 0.5,
    policy: options.PolicyName = None,
    draws: options.Draws = None,
    templates: options.Templates = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the data lies (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
    ] = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only print what each row would cost, after a few images (default: do it)."),
    ] = False,
) -> int:
    """Compare methods on a task or a folder: accuracy, cost, and which to take with how many labels.

    Without labels there are the zero-shot diffusion model, zero-shot baselines, and a network and Gaussians learnt from
    generated images; with labels, heads on frozen features and on pixels, and from 100 of each class a network. What
    fails is a row with its reason. The same command continues a comparison that was interrupted, and other methods,
    baselines and numbers of labels can be added to it. The result is comparison.json, and comparison.html as a page.
    """
    if out is None and not dry_run:
        raise InputError("Where should the comparison go? Give --out DIR, or --dry-run to see what it would cost.")
    with output.interruptible("The same command continues from the last commit."):
        from diffsight.evaluation.comparing.forecast import forecast
        from diffsight.evaluation.comparing.question import choose_labels, open_question
        from diffsight.evaluation.comparing.rows import CompareSettings, entries
        from diffsight.evaluation.comparing.running import compare as run
        from diffsight.evaluation.comparing.work import Work
        from diffsight.evaluation.task import load_task
        from diffsight.synthesis.options import TrainSettings

        wanted = _numbers(labels)
        settings = CompareSettings(
            baselines=tuple(baseline or ()),
            methods=tuple(methods) if methods else None,
            seeds=seeds,
            per_class=per_class,
            seed=seed,
            scoring=options.make_settings(
                preset=None, policy=policy, draws=draws, loss=None, weighting=None, ensemble=None, seed=seed
            ),
            training=TrainSettings(network=network, epochs=epochs),
        )
        chosen = load_task(task)
        if templates:
            chosen = replace(chosen, templates=tuple(templates))
        question = open_question(
            chosen,
            class_names=options.read_classes(classes, None),
            divided=wanted is None or max(wanted, default=0) > 0,
            limit=limit,
            seed=seed,
            test_share=test_share,
            root=root,
        )
        numbers = choose_labels(question, wanted)
        needed = any(entry.method.on == "model" for entry in entries(settings, numbers))
        backbone = options.load_model(model, device, dtype) if needed else None
        rows = 64 if backbone is None else options.batch_rows(backbone, batch_size)
        if out is None or dry_run:
            work = Work(
                question=question,
                labels=numbers,
                settings=settings,
                backbone=backbone,
                out=Path("."),
                batch_size=rows,
                dtype=dtype,
            )
            _show_forecast(forecast(work), as_json=as_json)
            return 0
        with output.stages() as report:
            result = run(
                question,
                out,
                labels=numbers,
                backbone=backbone,
                settings=settings,
                device=device,
                dtype=dtype,
                batch_size=rows,
                progress=report,
            )
        page = _write_page(result, out)
    failed = [row for row in result["rows"] if row["failure"] is not None]
    if as_json:
        output.show_json({**result, "directory": str(out), "page": None if page is None else str(page)})
    else:
        _show(result)
        output.show(f"Comparison: {out}" + (f"\nPage: {page}" if page is not None else ""))
    return 3 if failed or any(row["failed"] for row in result["rows"]) else 0


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--labels takes whole numbers separated by commas, such as 0,1,10; got {text!r}.") from None


def _write_page(result: Mapping[str, Any], out: Path) -> Path | None:
    """Write the page; without the packages for it, say so and go on."""
    from diffsight.report.compared import PAGE, comparison_page
    from diffsight.store.disk import put, writing

    try:
        html = comparison_page(result, out)
    except (InputError, RunError) as error:
        output.log.warning("There is no page: %s", error)
        return None
    with writing(out):
        put(out / PAGE, html.encode())
    return out / PAGE


def _show(result: Mapping[str, Any]) -> None:
    from diffsight.evaluation.comparing.rows import labels_of

    seeds, rows = len(result["seeds"]), result["rows"]
    lines = [["labels", "method", "accuracy", "interval", "coverage", "calls", "ms/image", "GFLOPs", "GB", "protocol"]]
    for row in rows:
        name = f"{row['method']} · {row['model']}" if row["model"] else row["method"]
        if row["failure"] is not None:
            lines.append([str(row["labels"]), name, f"failed: {row['failure']}"])
            continue
        known = row["value"] is not None
        spread = f" ± {row['sd']:.1%}" if row["sd"] is not None else ""
        lines.append(
            [
                str(row["labels"]),
                name,
                f"{row['value']:.1%}{spread}" if known else "not known",
                f"[{row['low']:.1%}, {row['high']:.1%}]" if known else "–",
                f"{row['coverage']:.1%}",
                f"{row['calls']:,.1f}",
                _scaled(row["seconds"], 1e3),
                _scaled(row["flops"], 1e-9),
                _scaled(row["memory"], 1e-9),
                row["protocol"],
            ]
        )
    output.show(f"{result['task']['name']}: {result['data']['images']:,} test images of {result['data']['source']}")
    output.show(output.table(lines, align="><<<>>>>><"))
    spread = f", ±: deviation over {seeds} seeds" if any(row["sd"] is not None for row in rows) else ""
    output.show(f"In brackets: 95 % intervals{spread}. Calls, time and GFLOPs: of an image on {result['device']}.")
    for one in result["recommendations"]:
        output.show(f"With {labels_of(one['labels'])} take {one['method']}: {one['reason']}")
    for note in result["notes"]:
        output.show(note)


def _scaled(value: float | None, factor: float) -> str:
    return "–" if value is None else f"{value * factor:,.3g}"


def _show_forecast(rows: "Sequence[Expected]", *, as_json: bool) -> None:
    calls, seconds = sum(row.calls for row in rows), sum(row.seconds for row in rows)
    if as_json:
        kept = ("key", "method", "model", "labels", "calls", "seconds", "failure")
        each = [{name: getattr(row, name) for name in kept} for row in rows]
        output.show_json({"dry_run": True, "calls": calls, "seconds": seconds, "rows": each})
        return
    lines = [["labels", "method", "calls", "time"]]
    for row in rows:
        name = f"{row.method} · {row.model}" if row.model else row.method
        told = [f"failed: {row.failure}"] if row.failure else [f"{row.calls:,.0f}", output.duration(row.seconds)]
        lines.append([str(row.labels), name, *told])
    lines.append(["", "all", f"{calls:,.0f}", output.duration(seconds)])
    output.show(output.table(lines, align="><>>"))
    output.show("Extrapolated from a few images and training steps. Nothing was written.")
