"""``diffsight match``: which caption fits an image, which image fits a caption; one query, or a task in a run."""

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from diffsight.cli import match_options, options, output
from diffsight.cli.match_options import load_matcher, make_settings
from diffsight.errors import InputError

log = logging.getLogger(__name__)


def query(
    *,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="One image, or several for one text.")],
    texts: Annotated[
        list[str], typer.Option("--text", metavar="TEXT", help="A caption; repeat it for each candidate.")
    ],
    model: match_options.MatchModel,
    score: match_options.ScoreName = None,
    preset: match_options.MatchPreset = None,
    draws: match_options.MatchDraws = None,
    timesteps: match_options.Timesteps = None,
    layers: match_options.AttentionLayers = None,
    adapter: match_options.AdapterFile = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> int:
    """Rank captions for an image, or images for a caption.

    With several of both, every image is scored with every caption. Scores say which fits better; they are no
    probabilities.
    """
    with output.interruptible("Nothing was kept."):
        settings = make_settings(score=score, preset=preset, draws=draws, timesteps=timesteps, layers=layers, seed=seed)
        matcher = load_matcher(model, score, settings, adapter, batch_size, device, dtype)
        if len(images) > 1 and len(texts) > 1:
            scores = matcher.score(list(images), texts)
            if not matcher.compares_images:
                log.warning("Compare the numbers of a row only: %s cannot compare images.", matcher.settings.score)
            return _show_matrix(images, texts, scores.tolist(), matcher.calls, as_json=as_json)
        match = matcher.rank(list(images), texts)
    candidates = texts if len(images) == 1 else [str(image) for image in images]
    ranked = [(candidates[place], float(match.scores.ravel()[place])) for place in match.order]
    if as_json:
        output.show_json(
            {
                "ranking": [{"candidate": name, "score": value} for name, value in ranked],
                "best": None if match.best is None else candidates[match.best],
                "tied": [candidates[place] for place in match.tied],
                "calls": matcher.calls,
            }
        )
        return 0
    output.show(output.table([(f"{value:+.5f}", name) for name, value in ranked], align=">"))
    if match.tied:
        output.show(f"A tie: {len(match.tied)} candidates have exactly the same score.")
    output.show(f"{matcher.calls:,} calls of {model}")
    return 0


def run(
    *,
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A file of queries (.jsonl, .json, .csv, .parquet), or a name of 'diffsight ls matching'.",
        ),
    ],
    model: match_options.MatchModel,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's directory (no default; not needed with --dry-run).")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="A benchmark's local copy (no default).")] = None,
    images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The images of a file of queries (default: the file's folder).")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N queries of each kind (default: all).")
    ] = None,
    score: match_options.ScoreName = None,
    preset: match_options.MatchPreset = None,
    draws: match_options.MatchDraws = None,
    timesteps: match_options.Timesteps = None,
    layers: match_options.AttentionLayers = None,
    adapter: match_options.AdapterFile = None,
    reproduce_batch_leak: match_options.BatchLeak = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Answer all queries of a task, in a run that the same command continues.

    Results stand beside chance, and beside what can be had from the captions alone. Ties count as one over the number
    of tied candidates.
    """
    if out is None and not dry_run:
        raise InputError("Where should the run go? Give --out DIR, or --dry-run to see what it would cost.")
    with output.interruptible("The same command continues from the last commit."):
        from diffsight.evaluation import matching
        from diffsight.evaluation.match_tasks import load_match_task

        settings = make_settings(
            score=score,
            preset=preset,
            draws=draws,
            timesteps=timesteps,
            layers=layers,
            seed=seed,
            batch_leak=reproduce_batch_leak,
        )
        chosen = load_match_task(task, data=data, images=images, limit=limit)
        matcher = load_matcher(model, score, settings, adapter, batch_size, device, dtype)
        job = matching.MatchJob(task=chosen, matcher=matcher)
        if out is None or dry_run:
            return _show_cost(job, as_json=as_json)
        with output.progress(len(chosen.queries), "queries") as report:
            metrics = matching.evaluate_matching(job, out, progress=report)
    if as_json:
        output.show_json({"run": str(out), "task": chosen.name, "model": model, "metrics": metrics})
    else:
        output.show(f"{chosen.name} with {model}, {len(chosen.queries):,} queries")
        if metrics["invalid"] is not None:
            output.show(f"These results are {metrics['invalid']}.")
        output.show(_metrics_table(metrics))
        output.show(f"Run: {out}")
    return 3 if metrics["failed"] or metrics["no_query"] else 0


def explain(
    *,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="An image.")],
    text: Annotated[
        list[str], typer.Option("--text", metavar="TEXT", help="A caption of it; give several to compare.")
    ],
    model: match_options.MatchModel,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a heat-map for each word (needs matplotlib).")
    ] = None,
    draws: match_options.MatchDraws = None,
    timesteps: match_options.Timesteps = None,
    layers: match_options.AttentionLayers = None,
    adapter: match_options.AdapterFile = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> int:
    """Show where each word of a caption looked, and at which noise levels the caption helped."""
    with output.interruptible("Nothing was kept."):
        settings = make_settings(score=None, preset=None, draws=draws, timesteps=timesteps, layers=layers, seed=seed)
        matcher = load_matcher(model, None, settings, adapter, None, device, dtype)
        found = [matcher.explain(image, one, draws=settings.draws) for one in text]
        if figure is not None:
            from diffsight.matching.figures import draw_explanations

            draw_explanations(found, image, figure)
    if as_json:
        output.show_json([_explained(caption, one) for caption, one in zip(text, found, strict=True)])
        return 0
    output.show("\n\n".join(str(one) for one in found))
    if figure is not None:
        output.show(f"Figure: {figure}")
    return 0


def _explained(text: str, found: Any) -> dict[str, Any]:  # noqa: ANN401 - Explanation
    return {
        "text": text,
        "words": list(found.words),
        "maps": found.maps.tolist(),
        "gain": found.gain.tolist(),
        "timesteps": found.timesteps.tolist(),
        "gain_by_timestep": found.gain_by_timestep.tolist(),
    }


def _show_matrix(images: list[Path], texts: list[str], scores: list[list[float]], calls: int, *, as_json: bool) -> int:
    if as_json:
        output.show_json({"images": [str(one) for one in images], "texts": texts, "scores": scores, "calls": calls})
        return 0
    header = ["", *(str(number + 1) for number in range(len(texts)))]
    rows = [[str(image), *(f"{value:+.5f}" for value in row)] for image, row in zip(images, scores, strict=True)]
    output.show(output.table([header, *rows], align="<" + ">" * len(texts)))
    output.show("\n".join(f"{number + 1}: {output.plain(text)}" for number, text in enumerate(texts)))
    output.show(f"{calls:,} calls")
    return 0


def _show_cost(job: Any, *, as_json: bool) -> int:  # noqa: ANN401 - MatchJob
    from diffsight.evaluation.matching import estimate_calls

    per_query, per_second = estimate_calls(job)
    calls = per_query * len(job.task.queries)
    seconds = calls / per_second if calls else 0.0
    if as_json:
        output.show_json({"dry_run": True, "queries": len(job.task.queries), "calls": round(calls), "seconds": seconds})
        return 0
    rows = [
        ("queries", f"{len(job.task.queries):,}"),
        ("calls", f"{calls:,.0f} ({per_query:,.1f} per query)"),
        ("time", f"{output.duration(seconds)} ({per_second:,.0f} calls/s, loading not counted)"),
    ]
    output.show(output.table(rows))
    output.show("Extrapolated from up to 8 queries that were really answered. Nothing was written.")
    return 0


def _metrics_table(metrics: dict[str, Any]) -> str:
    rows: list[list[str]] = []
    results = metrics["results"]
    kinds = {} if results is None else {"all": results, **results.get("by_tag", {})}
    names = {"accuracy": "accuracy", "recall_at_5": "recall at 5", "text": "text", "image": "image", "group": "group"}
    for kind, found in kinds.items():
        for key, name in names.items():
            if found[key] is not None:
                value = found[key]
                interval = f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
                rows.append([kind, name, interval, f"chance {value['chance']:.1%}", f"{value['queries']:,} queries"])
    if results is None:
        rows.append(["all", "accuracy", "not known: no query says which candidate is right", "", ""])
    blind = (metrics["blind"] or {}).get("texts")
    if blind is not None:
        rows.append(["blind", "accuracy", f"{blind['value']:.1%} [{blind['low']:.1%}, {blind['high']:.1%}]",
                     f"chance {blind['chance']:.1%}", "reading the captions alone"])  # fmt: skip
    text = output.table(rows)
    ties = 0 if results is None else results["ties"]
    tail = f"{ties} ties, {metrics['failed']} failed, {metrics['no_query']} rows that are no query, "
    seconds = metrics["speed"]["seconds_per_query"]
    spent = "" if seconds is None else f", {output.duration(seconds)} per query"
    return text + "\n" + tail + f"{metrics['calls']['per_query']:,.1f} calls per query" + spent
