"""``diffsight features probe`` and ``diffsight features predict``: heads on features, trained, measured and used."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsight.cli import feature_options as given
from diffsight.cli import options, output
from diffsight.cli.features import show_cost
from diffsight.errors import InputError

PerClass = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Train on N images of each class (default: all).")
]


def probe(
    *,
    task: given.TaskName,
    model: options.Model = "tiny-fashion",
    preset: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A paper's features and head, from 'diffsight ls probes' (default: none)."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="logistic, knn, linear, mlp, cnn, attention or difformer (default: logistic).",
        ),
    ] = None,
    head_options: Annotated[
        str | None,
        typer.Option(metavar="JSON", help="The head's options, such as '{\"pool\": 2}' (default: the head's own)."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="NAME", help="How a network is trained (default: the best we can show).")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the probe there, with its metrics (default: do not).")
    ] = None,
    per_class: PerClass = None,
    share: Annotated[
        float | None, typer.Option(metavar="X", help="Train on this share of each class: 0.01 is 1 % (default: all).")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, metavar="N", help="How often, with other training images and initial weights.")
    ] = 1,
    test_share: given.TestShare = 0.25,
    root: given.Root = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N test images (default: all).")
    ] = None,
    layers: given.Layers = None,
    timesteps: given.Timesteps = None,
    pool: given.PoolKind = "avg",
    grid: given.Grid = 1,
    noise: given.NoiseKind = "fixed",
    draws: given.Draws = 1,
    views: given.Views = 1,
    no_flip: given.NoFlip = False,
    seed: options.Seed = 0,
    cache: given.Cache = None,
    storage: given.Storage = "fp32",
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Train a head on the features of a task's training images, and measure it on its test images.

    Features are kept in the cache, so that the next head on the same features needs no pass through the model.
    """
    with output.interruptible("The features so far are kept; the same command goes on from there."):
        from diffsight.evaluation import probing
        from diffsight.evaluation.task import load_task
        from diffsight.features.cache import bytes_per_image, find_storage
        from diffsight.features.presets import find_preset
        from diffsight.features.probe import save_probe

        if preset is not None:
            paper = find_preset(preset)
            fixed = {"head": head, "head-options": head_options, "recipe": recipe, "layers": layers}
            fixed |= {"timesteps": timesteps, "grid": grid != 1, "pool": pool != "avg", "views": views != 1}
            fixed |= {"noise": noise != "fixed", "draws": draws != 1}
            if surplus := [f"--{name}" for name, value in fixed.items() if value]:
                raise InputError(f"--preset {preset} fixes that already: leave out {' and '.join(surplus)}.")
            spec, recipe = paper.head, paper.recipe
            layers, timesteps = list(paper.layers), [str(level) for level in paper.timesteps]
            grid, views = paper.size, paper.views
        else:
            spec = given.make_head(head or "logistic", head_options)
        chosen = load_task(task)
        parts = probing.limited(probing.open_parts(chosen, root=root, test_share=test_share, seed=seed), limit)
        extraction = given.make_plan(
            options.load_model(model, device, dtype),
            layers=layers,
            timesteps=timesteps,
            pool=pool,
            grid=grid,
            noise=noise,
            draws=draws,
            views=views,
            no_flip=no_flip,
            seed=seed,
        )
        rows = options.batch_rows(extraction.backbone, batch_size)
        kept_as = find_storage(storage)
        if dry_run:
            train, test, calls = probing.cost(parts, extraction, per_class=per_class, share=share, seeds=seeds)
            bytes_each = bytes_per_image(extraction, kept_as)
            room = train * bytes_each + test * bytes_each / views
            show_cost(
                extraction, parts.test, images=train + test, calls=calls, room=room, batch_size=rows, as_json=as_json
            )
            return 0
        with output.stages() as report:
            measured = probing.probe_task(
                parts,
                extraction,
                spec,
                recipe=recipe,
                per_class=per_class,
                share=share,
                seeds=seeds,
                metric=chosen.metric,
                cache=cache,
                storage=storage,
                batch_size=rows,
                progress=report,
            )
        metrics = {**measured.metrics, "task": chosen.name, "model": model, "preset": preset}
        if out is not None:
            save_probe(measured.head, extraction, out)
            output.write_json(out / "metrics.json", metrics)
    note = _honesty(model, chosen.name)
    if as_json:
        output.show_json({**metrics, "probe": None if out is None else str(out), "note": note})
        return 3 if metrics["failed"] else 0
    _show_probe(metrics)
    if preset is not None:
        output.show(f"{preset} on ImageNet-1k: {paper.published} % ({paper.source})")
    for line in (f"Probe: {out}" if out is not None else None, note):
        if line is not None:
            output.show(line)
    return 3 if metrics["failed"] else 0


def predict(
    folder: Annotated[Path, typer.Argument(metavar="PROBE", help="A directory that 'features probe --out' wrote.")],
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES", help="Image files, and folders with all that is in them.")
    ],
    *,
    device: options.Device = None,
    dtype: options.Dtype = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model, if it is elsewhere now (default: as recorded).")
    ] = None,
    batch_size: options.BatchSize = None,
    as_json: options.Json = False,
) -> int:
    """Say which class each image shows, by a probe that was trained before."""
    with output.interruptible("Nothing was kept."):
        from diffsight.cli.classify import find_pictures
        from diffsight.data.images import images_from
        from diffsight.features.heads.columns import ArrayColumns
        from diffsight.features.probe import FeatureProbe, recorded_model

        pictures = find_pictures(images)
        name = model or recorded_model(folder)
        probe = FeatureProbe.load(folder, options.load_model(name, device, dtype))
        extraction = probe.extractor_.plan_
        answers: dict[int, list[tuple[str, float]]] = {}
        failures: dict[int, str] = {}
        started = time.perf_counter()
        with output.progress(len(pictures)) as report:
            items = images_from([picture.path for picture in pictures])
            for chunk in extraction.run(items, batch_size=options.batch_rows(extraction.backbone, batch_size)):
                failures |= {one.position: one.reason for one in chunk.failures}
                if chunk.positions:
                    logits = probe.head_.logits(ArrayColumns(chunk.features))
                    for position, row in zip(chunk.positions, logits.softmax(dim=1), strict=True):
                        best = row.argsort(descending=True, stable=True)[:2].tolist()
                        answers[position] = [(str(probe.classes_[index]), float(row[index])) for index in best]
                report(chunk.stop, chunk.stop * extraction.calls_per_image)
        seconds = time.perf_counter() - started
    if as_json:
        entries = [
            {
                "image": str(picture.path),
                "top": [{"label": label, "probability": p} for label, p in answers.get(number, [])],
                "failure": failures.get(number),
            }
            for number, picture in enumerate(pictures)
        ]
        output.show_json({"probe": str(folder), "images": entries, "seconds": seconds})
        return 3 if failures else 0
    rows = [["image", "label", "p", "runner-up", "p"]]
    for number, picture in enumerate(pictures):
        cells = [cell for label, p in answers.get(number, []) for cell in (label, f"{p:.3f}")]
        rows.append([picture.name, *(cells or [f"failed: {failures[number]}"])])
    output.show(output.table(rows, align="<<><>"))
    output.show(f"{len(pictures)} images, {len(failures)} failed, {output.duration(seconds)}")
    return 3 if failures else 0


def _honesty(model: str, task: str) -> str | None:
    """What has to be said beside the numbers of an embedded model, or None for other models."""
    if options.honesty(model, task) is None:
        return None
    return f"{model} was trained on photographs of these classes, and its features know them: no claim of transfer."


def _show_probe(metrics: Mapping[str, Any]) -> None:
    head, train, seconds = metrics["head"], metrics["train"], metrics["seconds"]
    output.show(
        f"{metrics['task']} with {metrics['model']}: {', '.join(metrics['features']['columns'])} "
        f"({metrics['features']['length']:,} numbers), head {head['name']} ({head['parameters']:,} parameters)"
    )
    output.show_metrics(metrics)
    if metrics["sd"] is not None:
        output.show(f"{len(metrics['seeds'])} seeds: {metrics['mean']:.1%} ± {metrics['sd']:.1%} (above: the first)")
    output.show(
        f"Trained on {train['images']:,} images. {metrics['denoiser_calls']:,} calls now, the rest was kept; "
        f"features {output.duration(seconds['features'])}, heads {output.duration(seconds['heads'])}"
    )
