"""``diffsight match fit``: learn from a few queries, and tell on others what it brought."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import match_options, options, output
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.data.queries import Query
    from diffsight.matching.matcher import ImageTextMatcher


def fit(
    *,
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="A file of queries, or a name of 'diffsight ls matching'.")
    ],
    model: match_options.MatchModel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the adapter goes (.safetensors).")],
    shots: Annotated[int, typer.Option(min=1, metavar="N", help="How many queries to learn from.")] = 16,
    test: Annotated[
        int, typer.Option(min=0, metavar="N", help="How many others to test on, none of whose images was learnt from.")
    ] = 0,
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="weights, prompt or lora; or discffusion, to train as the paper's code (give --preset, too).",
        ),
    ] = "weights",
    loss: Annotated[
        str | None, typer.Option(metavar="NAME", help="infonce or hinge (default: infonce; of discffusion hinge).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of training, for prompt and lora (default: 200).")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="A benchmark's local copy (no default).")] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The images of a file of queries (default: the file's folder).")
    ] = None,
    score: match_options.ScoreName = None,
    preset: match_options.MatchPreset = None,
    draws: match_options.MatchDraws = None,
    timesteps: match_options.Timesteps = None,
    layers: match_options.AttentionLayers = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> int:
    """Learn from a few queries whose answer is known.

    Weights of layers, heads and noise levels take seconds once the queries are measured; prompt tokens and low-rank
    matrices are trained through the network. The choice of queries follows the seed.
    """
    with output.interruptible("Nothing was kept."):
        from diffsight.data.splits import few_shot_queries
        from diffsight.evaluation.match_tasks import load_match_task
        from diffsight.matching.adapters import save_adapter
        from diffsight.matching.fitting import fit_adapter
        from diffsight.matching.options import fit_options

        settings = match_options.make_settings(
            score=score, preset=preset, draws=draws, timesteps=timesteps, layers=layers, seed=seed
        )
        values: dict[str, Any] = {"seed": seed, "loss": loss, "steps": steps}
        how = fit_options(kind, {name: value for name, value in values.items() if value is not None})
        if how.kind == "weights" and how.bands > settings.draws:
            how = replace(how, bands=settings.draws)  # A band of noise levels needs a draw.
        queries = load_match_task(task, data=data, images=images).queries
        learnt, rest = few_shot_queries(queries, count=shots, seed=seed)
        matcher = match_options.load_matcher(model, score, settings, None, batch_size, device, dtype)
        backbone: Any = matcher.model
        chosen = [queries[place] for place in learnt]
        with output.stages() as report:
            adapter = fit_adapter(
                backbone,
                chosen,
                options=how,
                settings=matcher.settings,
                batch_size=matcher.batch_size,
                progress=lambda done, total, _: report("steps", done, total, 0),
            )
        file = save_adapter(adapter, out)
        found: dict[str, Any] = {"adapter": str(file), "notes": dict(adapter.notes), "tested": min(test, len(rest))}
        if test:
            held = [queries[place] for place in rest[:test]]
            fitted = match_options.load_matcher(model, None, settings, file, batch_size, device, dtype)
            found |= {"zero_shot": _accuracy(matcher, held), "fitted": _accuracy(fitted, held)}
    if as_json:
        output.show_json(found)
        return 0
    output.show(f"Learnt from {adapter.notes['examples']} queries ({adapter.notes['failed']} could not be read).")
    if test:
        rows = [(name, _told(found[key])) for name, key in (("zero-shot", "zero_shot"), ("fitted", "fitted"))]
        output.show(output.table(rows))
        output.show(f"On {found['tested']} other queries, none with an image that was learnt from.")
    output.show(f"Adapter: {file}")
    return 0


def _accuracy(matcher: "ImageTextMatcher", queries: Sequence["Query"]) -> dict[str, Any]:
    from diffsight.evaluation.metrics.matching import judge, summarize

    outcomes = [
        judge(query, found.scores, failure=found.failure)
        for query, found in zip(queries, matcher.match(queries), strict=True)
    ]
    metrics = summarize(outcomes)
    measure = metrics.accuracy or metrics.group
    if measure is None:
        raise InputError(f"None of the {len(queries)} test queries can be read: {outcomes[0].failed}")
    return measure.to_dict()


def _told(measure: dict[str, Any]) -> str:
    return f"{measure['value']:.1%} [{measure['low']:.1%}, {measure['high']:.1%}]"
