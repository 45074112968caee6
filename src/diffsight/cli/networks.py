"""What ``diffsight evaluate`` does with trained networks and baselines, and ``diffsight export``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options, output
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.evaluation.task import Task
    from diffsight.evaluation.trained import TrainedJob
    from diffsight.synthesis.export import Exported

PILOT = 64


def export(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A directory of 'diffsight train', or of one of its seeds.")
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file.")],
    as_json: options.Json = False,
) -> int:
    """Write a trained network as ONNX, if onnxruntime computes from it what torch does.

    Class names and preprocessing are in the file's metadata, the normalisation is in the graph. Of several seeds the
    first is taken: to take the best on real images would be a choice by them.
    """
    with output.interruptible("Nothing was written."):
        from diffsight.synthesis.export import export_onnx
        from diffsight.synthesis.trainer import load_trained

        written = export_onnx(load_trained(model, device="cpu")[0], out)
    if as_json:
        facts = {"bytes": written.bytes, "opset": written.opset, "difference": written.difference}
        output.show_json({"model": str(model), "file": str(written.path), **facts})
    else:
        output.show(exported(written))
    return 0


def exported(written: "Exported") -> str:
    """A line on an ONNX file."""
    return (
        f"ONNX: {written.path} ({written.bytes / 1e6:,.1f} MB, opset {written.opset}); onnxruntime's logits differ "
        f"from torch's by {written.difference:.1e} of the largest"
    )


def is_network(model: str) -> bool:
    """Whether a name on the command line is a trained network; looks at files, and imports nothing for a model's."""
    path = Path(model)
    if path.suffix.lower() != ".onnx" and not path.is_dir():
        return False
    from diffsight.evaluation.recognisers import is_trained

    return is_trained(path)


def is_baseline(model: str) -> bool:
    """Whether a name is CLIP, SigLIP, DINOv2 or a network of timm; of a Hub repository its config.json is fetched."""
    from diffsight.evaluation.baselines import baseline_kind

    return baseline_kind(model) is not None


def refuse_scoring(given: Sequence[str], what: str = "A trained network") -> None:
    """Refuse options that say how a diffusion model scores.

    Raises:
        InputError: If one was given.
    """
    if given:
        raise InputError(f"{what} has no denoising errors: leave out {' and '.join(f'--{name}' for name in given)}.")


def measure(
    task: str,
    model: str,
    out: Path | None,
    *,
    root: Path | None,
    split: str | None,
    limit: int | None,
    device: str | None,
    adapt: bool,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Measure a trained network on a task; each seed of a training in a run of its own."""

    def open_jobs(chosen: "Task") -> list["TrainedJob"]:
        from diffsight.evaluation.recognisers import load_recognisers
        from diffsight.evaluation.trained import make_trained_job

        models = load_recognisers(model, device=device)
        return [make_trained_job(chosen, each, limit=limit, root=root) for each in models]

    return _measure(task, model, out, open_jobs, split=split, adapt=adapt, as_json=as_json, dry_run=dry_run)


def measure_baseline(
    task: str,
    model: str,
    out: Path | None,
    *,
    root: Path | None,
    split: str | None,
    limit: int | None,
    templates: Sequence[str] | None,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    dry_run: bool,
) -> int:
    """Measure CLIP, SigLIP or a network of timm on a task."""

    def open_jobs(chosen: "Task") -> list["TrainedJob"]:
        from diffsight.evaluation.baselines import make_baseline_job

        given = {"templates": templates, "limit": limit, "root": root, "device": device, "dtype": dtype}
        return [make_baseline_job(chosen, model, **given)]

    return _measure(task, model, out, open_jobs, split=split, adapt=False, as_json=as_json, dry_run=dry_run)


def _measure(
    task: str,
    model: str,
    out: Path | None,
    open_jobs: Callable[["Task"], list["TrainedJob"]],
    *,
    split: str | None,
    adapt: bool,
    as_json: bool,
    dry_run: bool,
) -> int:
    with output.interruptible("The same command continues from the last commit."):
        from diffsight.evaluation import trained
        from diffsight.evaluation.task import load_task

        chosen = load_task(task)
        if split is not None:
            chosen = replace(chosen, split=split)
        jobs = open_jobs(chosen)
        if out is None or dry_run:
            show_cost(jobs, as_json=as_json)
            return 0
        if adapt:
            jobs = [trained.adapted(job) for job in jobs]
        results = []
        with output.stages() as report:
            for number, job in enumerate(jobs):
                what = "images" if len(jobs) == 1 else f"images of network {number + 1}"
                where = out if len(jobs) == 1 else out / f"network-{number + 1}"
                results.append(
                    trained.evaluate_trained(
                        job, where, progress=lambda done, total, what=what: report(what, done, total, 0)
                    )
                )
        metrics = trained.over_seeds(results)
        if len(jobs) > 1:
            output.write_json(out / "metrics.json", metrics)
    if as_json:
        note = note_of(metrics)
        output.show_json({"run": str(out), "task": chosen.name, "model": model, "metrics": metrics, "note": note})
    else:
        output.show(f"{chosen.name} with {model}, {chosen.source} ({chosen.split})")
        output.show_metrics(metrics)
        _show_extra(metrics)
        output.show(f"Run: {out}\n{note_of(metrics)}")
    return 3 if metrics["failed"] else 0


def _show_extra(metrics: Mapping[str, Any]) -> None:
    if metrics["sd"] is not None:
        count = len(metrics["seeds"])
        output.show(f"{count} networks: {metrics['mean']:.1%} ± {metrics['sd']:.1%} (above: the first)")
    speed = metrics["speed"]
    output.show(f"The network alone: {speed['images_per_second']:,.0f} images/s")


def note_of(metrics: Mapping[str, Any]) -> str:
    """What has to be said beside the numbers."""
    if not metrics["learnt"]:
        return f"Protocol: {metrics['label']}."
    return f"Protocol: {metrics['label']}. THE NETWORK LEARNT FROM THESE VERY IMAGES: this is no test."


def open_job(
    task: "Task", model: str, *, dtype: str | None, limit: int | None, root: Path | None, device: str | None
) -> "TrainedJob":
    """A task with a trained network, the first of several seeds, or with a baseline.

    Raises:
        DiffsightError: If one of them cannot be had, or they have other classes.
    """
    if is_network(model):
        from diffsight.evaluation.recognisers import load_recognisers
        from diffsight.evaluation.trained import make_trained_job

        refuse_scoring(["dtype"] if dtype is not None else [])
        return make_trained_job(task, load_recognisers(model, device=device)[0], limit=limit, root=root)
    from diffsight.evaluation.baselines import make_baseline_job

    return make_baseline_job(task, model, limit=limit, root=root, device=device, dtype=dtype)


def show_cost(jobs: Sequence["TrainedJob"], *, as_json: bool) -> None:
    """Recognise a few images, and say what all would cost."""
    from diffsight.evaluation.trained import pace

    pilot = min(PILOT, len(jobs[0].source))
    rate = pace(jobs[0], images=pilot)
    images = len(jobs) * len(jobs[0].source)
    seconds = images / rate
    if as_json:
        facts = {"images": images, "seconds": seconds, "images_per_second": rate, "pilot_images": pilot}
        output.show_json({"dry_run": True, "calls": 0, **facts})
        return
    output.show(
        output.table([("images", f"{images:,}"), ("time", f"{output.duration(seconds)} ({rate:,.0f} images/s)")])
    )
    output.show(f"Extrapolated from {pilot} images that were really recognised. Nothing was written.")
