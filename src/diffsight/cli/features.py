"""``diffsight features extract`` and ``diffsight features cka``: activations, and how alike they are."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsight.cli import feature_options as given
from diffsight.cli import options, output
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.data.sources import Source
    from diffsight.features.extraction import Extraction

PILOT = 16


def extract(
    *,
    task: given.TaskName,
    model: options.Model = "tiny-fashion",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The features' directory (no default; not needed with --dry-run)."),
    ] = None,
    root: given.Root = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of the data (default: the task's own).")
    ] = None,
    limit: options.Limit = None,
    layers: given.Layers = None,
    timesteps: given.Timesteps = None,
    pool: given.PoolKind = "avg",
    grid: given.Grid = 1,
    noise: given.NoiseKind = "fixed",
    draws: given.Draws = 1,
    independent_noise: given.Independent = False,
    views: given.Views = 1,
    no_flip: given.NoFlip = False,
    prompt: given.Prompt = "",
    seed: options.Seed = 0,
    storage: given.Storage = "fp32",
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Write the features of images to a directory, in shards of safetensors.

    The same command continues after an interruption; with other settings it refuses and says which.
    """
    if out is None and not dry_run:
        raise InputError("Where should the features go? Give --out DIR, or --dry-run to see what it would cost.")
    with output.interruptible("The same command continues from the last shard."):
        from diffsight.features import cache

        source = open_images(task, root=root, split=split, limit=limit)
        extraction = given.make_plan(
            options.load_model(model, device, dtype),
            layers=layers,
            timesteps=timesteps,
            pool=pool,
            grid=grid,
            noise=noise,
            draws=draws,
            independent=independent_noise,
            views=views,
            no_flip=no_flip,
            prompt=prompt,
            seed=seed,
        )
        rows = options.batch_rows(extraction.backbone, batch_size)
        kept_as = cache.find_storage(storage)
        if out is None or dry_run:
            images = len(source)
            room = images * cache.bytes_per_image(extraction, kept_as)
            calls = images * extraction.calls_per_image
            show_cost(extraction, source, images=images, calls=calls, room=room, batch_size=rows, as_json=as_json)
            return 0
        with output.progress(len(source)) as report:
            found = cache.extract(extraction, source, out=out, batch_size=rows, storage=storage, progress=report)
    if as_json:
        output.show_json(
            {
                "features": str(out),
                "images": len(found),
                "failed": [{"image": source.ids[one.position], "reason": one.reason} for one in found.failures],
                "columns": [{"name": name, "shape": list(shape)} for name, shape in found.shapes.items()],
            }
        )
        return 3 if found.failures else 0
    header = ["column", "views × channels × height × width"]
    output.show(output.table([header, *([name, " × ".join(map(str, s))] for name, s in found.shapes.items())]))
    output.show(f"{len(found):,} images, {len(found.failures)} failed. Features: {out}")
    for one in found.failures:
        output.show(f"failed: {source.ids[one.position]}: {one.reason}")
    return 3 if found.failures else 0


def cka(
    *,
    task: given.TaskName,
    model: options.Model = "tiny-fashion",
    other: Annotated[
        str | None, typer.Option("--with", metavar="NAME", help="A second model to compare with (default: itself).")
    ] = None,
    root: given.Root = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of the data (default: the task's own).")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many images, drawn at random.")] = 1024,
    layers: given.Layers = None,
    timesteps: given.Timesteps = None,
    other_layers: Annotated[
        list[str] | None, typer.Option(metavar="NAMES", help="Layers of the second model (default: all blocks).")
    ] = None,
    other_timesteps: Annotated[
        list[str] | None, typer.Option(metavar="NUMBERS", help="Timesteps of the second model (default: as above).")
    ] = None,
    pool: given.PoolKind = "avg",
    grid: given.Grid = 2,
    noise: given.NoiseKind = "fixed",
    draws: given.Draws = 1,
    independent_noise: given.Independent = False,
    seed: options.Seed = 0,
    estimator: Annotated[str, typer.Option(metavar="NAME", help="unbiased or biased.")] = "unbiased",
    kernel: Annotated[str, typer.Option(metavar="NAME", help="linear or rbf.")] = "linear",
    images_per_batch: Annotated[
        int, typer.Option(min=4, metavar="N", help="Images over which HSIC is taken before it is averaged.")
    ] = 256,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    figure: given.Figure = None,
    as_json: options.Json = False,
) -> int:
    """Compare layers, timesteps and models by centered kernel alignment (CKA): 1 is alike, 0 unrelated.

    Without --layers all blocks are compared.
    """
    with output.interruptible("Nothing was kept."):
        import numpy as np

        from diffsight.features import figures
        from diffsight.features.similarity import compare

        if figure is not None:
            figures.check_plotting()
            figures.check_figure_path(figure)
        source = open_images(task, root=root, split=split)
        source = source.select(np.random.default_rng(seed).permutation(len(source))[:limit].tolist())
        common = {"pool": pool, "grid": grid, "noise": noise, "draws": draws, "seed": seed}
        sides = []
        for name, own_layers, own_timesteps in (
            (model, layers, timesteps),
            (other, other_layers, other_timesteps or timesteps),
        ):
            if name is not None:
                backbone = options.load_model(name, device, dtype)
                chosen = own_layers or [layer.name for layer in backbone.layers]
                sides.append(
                    given.make_plan(
                        backbone, layers=chosen, timesteps=own_timesteps, independent=independent_noise, **common
                    )
                )
        with output.progress(len(source)) as report:
            matrix = compare(
                sides[0],
                source,
                sides[1] if other is not None else None,
                estimator=estimator,
                kernel=kernel,
                images_per_batch=images_per_batch,
                batch_size=options.batch_rows(sides[0].backbone, batch_size),
                seed=seed,
                progress=report,
            )
    if figure is not None:
        title = f"CKA of {model}" + (f" and {other}" if other is not None else "")
        drawn = figures.heatmap(matrix.values, matrix.names_x, matrix.names_y, title=title, colour="CKA")
        figures.save_figure(drawn, figure)
    if as_json:
        output.show_json({"model": model, "with": other, "task": task, **matrix.to_dict()})
    else:
        output.show(str(matrix) + (f"\nPicture: {figure}" if figure is not None else ""))
    return 0


def open_images(task: str, *, root: Path | None, split: str | None = None, limit: int | None = None) -> "Source":
    """The images of a task, with or without labels.

    Raises:
        InputError: If there is no such task.
        SourceError: If its data are not there.
    """
    from diffsight.data.sources import open_source
    from diffsight.evaluation.task import load_task

    chosen = load_task(task)
    chosen = chosen if split is None else replace(chosen, split=split)
    source = open_source(chosen.source, root=root, split=chosen.split)
    return source if limit is None else source.select(range(min(limit, len(source))))


def show_cost(
    extraction: "Extraction", source: "Source", *, images: int, calls: int, room: float, batch_size: int, as_json: bool
) -> None:
    """Extract from a few images, and print what all would cost.

    Args:
        extraction: What is extracted.
        source: Where the few images are from.
        images: How many images there are in all.
        calls: Denoiser calls for all.
        room: Bytes on the disk for all.
        batch_size: Rows of the denoiser in one call.
        as_json: Print JSON.
    """
    from diffsight.data.images import images_from
    from diffsight.evaluation.runner import Estimate

    pilot = min(PILOT, len(source))
    started = time.perf_counter()
    for _ in extraction.run(images_from(source.select(range(pilot))), batch_size=batch_size):
        pass
    rate = pilot * extraction.calls_per_image / max(time.perf_counter() - started, 1e-9)
    estimate = Estimate(images=images, pilot_images=pilot, calls_per_image=calls / images, calls_per_second=rate)
    output.show_estimate(estimate, disk=f"about {room / 1e6:,.1f} MB", as_json=as_json)
