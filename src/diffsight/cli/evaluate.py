"""``diffsight evaluate``: a task with a model, in a run directory that the same command continues."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from diffsight.cli import networks, options, output
from diffsight.errors import InputError


def evaluate(
    *,
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help="A task of 'diffsight ls tasks', a YAML file, or a folder with one sub-folder per class; TASK@fog:3: "
            "with corrupted images, TASK@resolution:16: with fewer pixels.",
        ),
    ],
    model: options.Model = "tiny-fashion",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's directory (no default; not needed with --dry-run).")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where the data lies (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Part of the data (default: the task's own, mostly 'test').")
    ] = None,
    limit: options.Limit = None,
    templates: options.Templates = None,
    preset: options.Preset = None,
    policy: options.PolicyName = None,
    draws: options.Draws = None,
    loss: options.Loss = None,
    weighting: options.WeightingName = None,
    ensemble: options.EnsembleName = None,
    seed: options.Seed = 0,
    batch_size: options.BatchSize = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    compile: options.Compile = None,
    adapt_bn: Annotated[
        bool,
        typer.Option(
            "--adapt-bn",
            help="Of a trained network: BatchNorm as of the task's unlabelled images, a transductive result "
            "(default: as trained).",
        ),
    ] = False,
    as_json: options.Json = False,
    dry_run: options.DryRun = False,
) -> int:
    """Measure a model on a task, in a run that can be continued.

    The same command continues a run that was interrupted. Every denoising error is kept in the run's directory, so
    that 'diffsight rescore' can ask for another loss, weighting or policy without the model. The model can also be a
    network: the directory of 'diffsight train', or an ONNX file of 'diffsight export'; or a baseline: CLIP or SigLIP
    (a card, hf:ORG/REPO or a folder), or a supervised network (timm:NAME or timm:FOLDER).
    """
    if out is None and not dry_run:
        raise InputError("Where should the run go? Give --out DIR, or --dry-run to see what it would cost.")
    given = {
        "templates": templates,
        "preset": preset,
        "policy": policy,
        "draws": draws,
        "loss": loss,
        "weighting": weighting,
        "ensemble": ensemble,
        "batch-size": batch_size,
        "dtype": dtype,
        "compile": compile,
    }
    if networks.is_network(model):
        networks.refuse_scoring([name for name, value in given.items() if value is not None])
        return networks.measure(
            task,
            model,
            out,
            root=root,
            split=split,
            limit=limit,
            device=device,
            adapt=adapt_bn,
            as_json=as_json,
            dry_run=dry_run,
        )
    if networks.is_baseline(model):
        reads = ("templates", "dtype")
        scoring = [name for name, value in given.items() if value is not None and name not in reads]
        networks.refuse_scoring([*scoring, *(["adapt-bn"] if adapt_bn else [])], what=model)
        return networks.measure_baseline(
            task,
            model,
            out,
            root=root,
            split=split,
            limit=limit,
            templates=templates,
            device=device,
            dtype=dtype,
            as_json=as_json,
            dry_run=dry_run,
        )
    if adapt_bn:
        raise InputError(f"--adapt-bn is for networks of 'diffsight train'; {model!r} is none.")
    with output.interruptible("The same command continues from the last commit."):
        from diffsight.evaluation import runner
        from diffsight.evaluation.task import load_task

        chosen = load_task(task)
        if split is not None:
            chosen = replace(chosen, split=split)
        preset = _for_task(preset, chosen.name.partition("@")[0])
        settings = options.make_settings(
            preset=preset,
            policy=policy,
            draws=draws,
            loss=loss,
            weighting=weighting,
            ensemble=ensemble,
            seed=seed,
        )
        prompts = templates or (chosen.presets.get(preset) if preset else None)
        backbone = options.load_model(model, device, dtype, compile=compile)
        options.check_templates(backbone, templates)
        job = runner.make_job(chosen, backbone, settings=settings, templates=prompts, limit=limit, root=root)
        rows = options.batch_rows(backbone, batch_size)
        if out is None or dry_run:
            cost = runner.estimate(job, batch_size=rows)
            output.show_estimate(cost, disk=f"about {cost.megabytes:,.1f} MB", as_json=as_json)
            return 0
        with output.progress(len(job.source)) as report:
            metrics = runner.evaluate(
                job, out, batch_size=rows, progress=lambda state: report(state.images, state.calls)
            )
    note = options.honesty(model)
    if as_json:
        output.show_json({"run": str(out), "task": chosen.name, "model": model, "metrics": metrics, "note": note})
    else:
        output.show(f"{chosen.name} with {model}, {chosen.source} ({chosen.split})")
        output.show_metrics(metrics)
        output.show(f"Run: {out}" + (f"\n{note}" if note else ""))
    return 3 if metrics["failed"] else 0


def _for_task(preset: str | None, task: str) -> str | None:
    """A paper's preset for this very task where it has one: ``li2023`` on ``pets`` is ``li2023/pets``."""
    from diffsight.zero_shot.settings import LI2023

    return f"{preset}/{task}" if preset == "li2023" and task in LI2023 else preset
