"""``diffsight features search``: which layer, which grid, which timestep."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsight.cli import feature_options as given
from diffsight.cli import options, output
from diffsight.cli.features import show_cost

if TYPE_CHECKING:
    from diffsight.features.search import SearchResult


def search(
    *,
    task: given.TaskName,
    model: options.Model = "tiny-fashion",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep all trials there as JSON (default: do not).")
    ] = None,
    figure: given.Figure = None,
    per_class: Annotated[
        int, typer.Option(min=2, metavar="N", help="Training images of each class, of which a quarter is held out.")
    ] = 100,
    layers: given.Layers = None,
    timesteps: given.Timesteps = None,
    test_share: given.TestShare = 0.25,
    root: given.Root = None,
    seed: options.Seed = 0,
    cache: given.Cache = None,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Find the best layer, grid and timestep for a task on training images that are held out.

    Test images are not looked at: measure what was found with 'diffsight features probe'.
    """
    with output.interruptible("The features so far are kept; the same command goes on from there."):
        import numpy as np

        from diffsight.data.splits import few_shot
        from diffsight.evaluation.probing import open_parts
        from diffsight.evaluation.task import load_task
        from diffsight.features import figures
        from diffsight.features import search as searching
        from diffsight.features.cache import bytes_per_image
        from diffsight.features.extraction import plan

        if figure is not None:
            figures.check_plotting()
            figures.check_figure_path(figure)
        parts = open_parts(load_task(task), root=root, test_share=test_share, seed=seed)
        labels = np.array(parts.train.labels)
        per_class = min(per_class, int(np.bincount(labels).min()))
        source = parts.train.select(few_shot(labels, per_class=per_class, seed=seed).tolist())
        backbone = options.load_model(model, device, dtype)
        levels = given.numbers(timesteps)
        rows = options.batch_rows(backbone, batch_size)
        if dry_run:
            first = plan(backbone, layers=given.names(layers), timesteps=levels or searching.coarse_timesteps(backbone))
            room = len(source) * bytes_per_image(first)
            calls = searching.estimate_calls(len(source), len(first.levels))
            show_cost(first, source, images=len(source), calls=calls, room=room, batch_size=rows, as_json=as_json)
            return 0
        with output.stages() as report:
            found = searching.search(
                backbone,
                source,
                np.array(source.labels),
                layers=given.names(layers),
                timesteps=levels,
                seed=seed,
                root=cache,
                batch_size=rows,
                progress=lambda stage, images, total, calls: report(f"images ({stage})", images, total, calls),
            )
    values = {"task": task, "model": model, "per_class": per_class, **found.to_dict()}
    if out is not None:
        output.write_json(out, values)
    if figure is not None:
        title = f"{task}: accuracy of a linear head on held-out training images"
        columns = [str(level) for level in found.timesteps]
        drawn = figures.heatmap(
            found.heatmap(), found.layers, columns, title=title, across="timestep", down="layer", colour="top-1"
        )
        figures.save_figure(drawn, figure)
    if as_json:
        output.show_json(values)
    else:
        _show_search(found, task, model)
    return 0


def _show_search(found: "SearchResult", task: str, model: str) -> None:
    header = ["layer", *(f"t={level}" for level in found.timesteps)]
    rows = [
        [layer, *(f"{value:.1%}" for value in row)] for layer, row in zip(found.layers, found.heatmap(), strict=True)
    ]
    output.show(output.table([header, *rows], align="<" + ">" * len(found.timesteps)))
    later = [trial for trial in found.trials if trial.stage != "layer"]
    if later:
        output.show("")
        lines = [[t.layer, str(t.timestep), f"{t.size}×{t.size}", f"{t.accuracy:.1%}"] for t in later]
        output.show(output.table([["layer", "timestep", "grid", "accuracy"], *lines], align="<>>>"))
    best = found.best
    output.show(
        f"\nBest: {best.layer} at timestep {best.timestep}, grid {best.size}: {best.accuracy:.1%} of {found.images[1]} "
        f"images held out; it is the best of {len(found.trials)}, and so too good. {found.calls:,} calls, "
        f"{found.heads} heads, {output.duration(found.seconds)}. To measure it:"
    )
    output.show(
        f"diffsight features probe --task {task} --model {model} --layers {best.layer} --timesteps {best.timestep} "
        f"--grid {best.size}"
    )
