"""``diffsight robustness``: a model on clean and on corrupted images, and what it bears."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import networks, options, output
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.evaluation.metrics.accuracy import Estimate
    from diffsight.evaluation.metrics.corruption import CorruptionMetrics
    from diffsight.evaluation.robustness import Sweep
    from diffsight.evaluation.task import Task


def robustness(
    *,
    task: Annotated[
        str, typer.Option(metavar="TASK", help="A task of 'diffsight ls tasks', a YAML file, or a folder of images.")
    ],
    model: options.Model = "tiny-fashion",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the runs go (no default; not needed with --dry-run).")
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="NAME", help="Only this corruption; may be repeated (default: all 15)."),
    ] = None,
    severities: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="Which severities (default: 1,2,3,4,5).")
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Such a directory of another model: also give errors as a share of its own (default: none).",
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the data lies (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
    ] = None,
    limit: options.Limit = None,
    policy: options.PolicyName = None,
    draws: options.Draws = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compile: options.Compile = None,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Measure what a model bears: noise, blur, weather and digital faults, in five severities.

    The directory gets a run of the clean images and one for each corruption (1903.12261); the same command continues
    what was interrupted, and adds other types and severities to it. Any model of 'diffsight evaluate' will do: a
    diffusion model, the directory of 'diffsight train', an ONNX file, CLIP, SigLIP, or a network of timm.
    """
    if out is None and not dry_run:
        raise InputError("Where should the runs go? Give --out DIR, or --dry-run to see what they would cost.")
    with output.interruptible("The same command continues from the last commit."):
        from diffsight.evaluation import robustness as sweeps
        from diffsight.evaluation.task import load_task

        asked, chosen = sweeps.parse_sweep(types, severities), load_task(task)
        given = {"policy": policy, "draws": draws, "batch-size": batch_size, "compile": compile}
        if networks.is_network(model) or networks.is_baseline(model):
            networks.refuse_scoring([name for name, value in given.items() if value is not None], what=model)
            where = {"limit": limit, "root": root, "device": device}
            job, evaluate, cost = _of_network(chosen, model, dtype, **where)
        else:
            backbone = options.load_model(model, device, dtype, compile=compile)
            rows = options.batch_rows(backbone, batch_size)
            job, evaluate, cost = _of_diffusion(chosen, backbone, rows, policy, draws, seed, limit=limit, root=root)
        runs = 1 + len(asked.corruptions)
        if reference is not None and (out is None or reference.resolve() != out.resolve()):
            sweeps.read_sweep(reference, asked)  # What is wrong with it is said now, not after hours.
        if out is None or dry_run:
            cost(runs, as_json=as_json)
            return 0
        with output.stages() as report:
            found: dict[str, Any] = {}

            def go(each: Any, path: Path) -> None:  # noqa: ANN401 - either kind of job
                found[path.name] = evaluate(
                    each, path, lambda done, calls: report(f"images of {path.name}", done, len(each.source), calls)
                )
                if reference is not None and path.name == sweeps.CLEAN:
                    sweeps.check_reference(path.parent, reference)

            sweeps.sweep(job, out, go, asked, root=root)
        metrics = sweeps.summarize_sweep(out, asked, reference=reference, seed=seed)
    clean = found[sweeps.CLEAN]
    note = networks.note_of(clean) if "learnt" in clean else options.honesty(model)
    failed = {name: one["failed"] for name, one in found.items() if one["failed"]}
    code = 3 if failed else 0
    if as_json:
        facts = {"task": chosen.name, "model": model, "severities": list(asked.severities), "failed": failed}
        output.show_json({"out": str(out), **facts, "metrics": metrics.to_dict(), "note": note})
        return code
    output.show(f"{chosen.name} with {model}, {metrics.images} images, {runs} runs")
    _show(metrics, asked, reference)
    if left := failed.pop(sweeps.CLEAN, 0):
        output.show(f"Left out: {left} of {clean['images']} images, without an answer to the clean one.")
    if more := [f"{number - left} of {name}" for name, number in failed.items() if number > left]:
        output.show(f"Without an answer, counted as wrong: {', '.join(more)}.")
    output.show(f"Runs: {out}" + (f"\n{note}" if note else ""))
    return code


def _of_diffusion(
    task: "Task",
    backbone: Any,  # noqa: ANN401 - a Backbone, which is not imported here
    rows: int,
    policy: str | None,
    draws: int | None,
    seed: int,
    *,
    limit: int | None,
    root: Path | None,
) -> tuple[Any, Callable[..., dict[str, Any]], Callable[..., None]]:
    """The job of a diffusion model, what makes a run of one, and what tells the cost of several."""
    from diffsight.evaluation import runner

    settings = options.make_settings(
        preset=None, policy=policy, draws=draws, loss=None, weighting=None, ensemble=None, seed=seed
    )
    job = runner.make_job(task, backbone, settings=settings, limit=limit, root=root)

    def evaluate(each: runner.Job, path: Path, report: Callable[[int, int], None]) -> dict[str, Any]:
        return runner.evaluate(each, path, batch_size=rows, progress=lambda state: report(state.images, state.calls))

    def cost(runs: int, *, as_json: bool) -> None:
        one = runner.estimate(job, batch_size=rows)
        every = replace(one, images=runs * one.images)
        output.show_estimate(every, disk=f"about {every.megabytes:,.1f} MB", as_json=as_json)

    return job, evaluate, cost


def _of_network(
    task: "Task", model: str, dtype: str | None, *, limit: int | None, root: Path | None, device: str | None
) -> tuple[Any, Callable[..., dict[str, Any]], Callable[..., None]]:
    """The same of a trained network, the first of several seeds, or of a baseline."""
    from diffsight.evaluation.trained import evaluate_trained

    job = networks.open_job(task, model, dtype=dtype, limit=limit, root=root, device=device)

    def evaluate(each: Any, path: Path, report: Callable[[int, int], None]) -> Any:  # noqa: ANN401 - see above
        return evaluate_trained(each, path, progress=lambda done, _: report(done, 0))

    def cost(runs: int, *, as_json: bool) -> None:
        networks.show_cost([job] * runs, as_json=as_json)

    return job, evaluate, cost


def _show(metrics: "CorruptionMetrics", asked: "Sweep", reference: Path | None) -> None:
    errors = metrics.corruption_errors or {}
    rows = [("corruption", "accuracy", *(["error / reference's"] if errors else []))]
    for name, value in metrics.by_type.items():
        rows.append((name, _share(value), *([_ratio(errors[name])] if errors else [])))
    output.show(output.table(rows))
    summary = [("clean", _share(metrics.clean)), ("all corruptions", _share(metrics.mean))]
    pairs = zip(asked.severities, metrics.by_severity, strict=True)
    summary += [(f"severity {severity}", _share(value)) for severity, value in pairs]
    if metrics.mce is not None:
        summary.append((f"mCE against {reference}", _ratio(metrics.mce)))
    if metrics.relative_mce is not None:
        summary.append(("relative mCE", _ratio(metrics.relative_mce)))
    output.show(output.table(summary))
    if metrics.undefined:
        output.show(
            f"The relative mCE leaves out {', '.join(metrics.undefined)}: nothing is lost by {reference} there."
            if metrics.relative_mce is not None
            else f"No relative mCE: {reference} loses nothing under these corruptions."
        )


def _share(value: "Estimate") -> str:
    return f"{value.value:.1%} [{value.low:.1%}, {value.high:.1%}]"


def _ratio(value: "Estimate") -> str:
    return f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"
