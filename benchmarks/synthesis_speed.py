"""How quick it is: drawing beside a plain diffusers pipeline, and a trained network beside the zero-shot classifier."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from synthesis_sets import Bench, backbone_of, settings_of, task_of

from diffsight.backbones.cards import assets
from diffsight.data.sources import open_source
from diffsight.errors import ModelError
from diffsight.synthesis.export import export_onnx, load_onnx
from diffsight.synthesis.generator import synthesize
from diffsight.synthesis.networks import build_network, plan_network
from diffsight.synthesis.painting import Order, Painter
from diffsight.synthesis.plan import make_plan
from diffsight.synthesis.preprocessing import Normalised, Preprocessing
from diffsight.synthesis.trained import BATCH, TrainedClassifier
from diffsight.zero_shot.classifier import DiffusionClassifier

_SECONDS = 1.0  # Of each measurement of a network.


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    started = perf_counter()
    work()
    _wait(device)
    return perf_counter() - started


def draw_speed(bench: Bench) -> dict[str, Any]:
    """Images per second of a full batch: the whole of `synthesize`, its drawing alone, and diffusers' pipeline.

    In turns, and by medians, with the same prompts, guidance scale, steps, batch and precision. `synthesize` also
    filters, writes and describes what it has drawn; the pipeline gives arrays.
    """
    backbone, classes = backbone_of(bench), task_of()[1]
    count = bench.rows
    settings = settings_of(bench, "base", None)
    plan = make_plan(backbone, classes, settings)
    keys = [(number % len(classes), number // len(classes)) for number in range(count)]
    orders = [
        Order(label=label, name=classes.names[label], index=index % bench.per_class, attempt=0, prescription=what)
        for label, index in keys
        for what in [plan.prescription(label, index % bench.per_class)]
    ]
    pipeline = _pipeline(bench, backbone.dtype).to(backbone.device)
    prompts = [order.prescription.prompt for order in orders]
    scale = orders[0].prescription.guidance_scale
    size = backbone.transform.output_size

    def plain() -> None:
        pipeline(
            prompts,
            guidance_scale=scale,
            num_inference_steps=bench.steps,
            height=size,
            width=size,
            output_type="np",
            generator=torch.Generator().manual_seed(0),
        )

    def paint() -> None:
        list(Painter(backbone=backbone, sampler=settings.sampler, seed=0).paint(orders))

    whole = max(1, -(-count // len(classes)))
    out, full = bench.work / "speed", settings_of(replace(bench, per_class=whole), "base", None)

    def everything() -> None:
        shutil.rmtree(out, ignore_errors=True)
        synthesize(backbone, classes, out, settings=full, batch_size=count)

    ways = {"diffusers": (plain, count), "drawing alone": (paint, count)}
    ways |= {"synthesize": (everything, whole * len(classes))}
    for work, _ in ways.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(bench.repeats):
        for name, (work, _) in ways.items():
            seconds[name].append(_timed(work, backbone.device))
    shutil.rmtree(out, ignore_errors=True)
    rates = {name: images / median(seconds[name]) for name, (_, images) in ways.items()}
    facts = {"batch": count, "steps": bench.steps, "guidance_scale": scale, "repeats": bench.repeats}
    facts |= {"device": _named(backbone.device), "dtype": str(backbone.dtype).removeprefix("torch.")}
    return {**facts, "seconds": seconds, "images_per_second": rates}


def _pipeline(bench: Bench, dtype: torch.dtype) -> StableDiffusionPipeline:
    folder = Path(bench.model) if Path(bench.model).is_dir() else assets() / bench.model
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False, local_files_only=True
    )
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def use_speed(bench: Bench) -> dict[str, Any]:
    """Images per second of networks, of torch and as ONNX, and of the zero-shot classifier on the same device.

    Speed does not depend on what a network has learnt, so that new ones are measured: with images in memory, and with
    what it takes to prepare them.
    """
    backbone, (task, classes) = backbone_of(bench), task_of()
    source = open_source(task.source, split=task.split).select(range(max(BATCH, bench.speed_images)))
    pictures = [sample.load() for sample in source]
    rows: list[dict[str, Any]] = []
    for name in bench.networks:
        plan = plan_network(name, len(classes), pictures[0].width)
        preprocessing = Preprocessing(size=plan.size, scale=plan.size)
        network = Normalised(build_network(plan), preprocessing.mean, preprocessing.std).to(backbone.device)
        model = TrainedClassifier(
            plan=plan,
            network=network,
            preprocessing=preprocessing,
            class_names=tuple(classes.names),
            protocol="zero-shot",
        )
        rows.append({"what": name, "device": _named(model.device), **_rates(model, pictures)})
        try:
            path = export_onnx(model, bench.work / "speed" / f"{name}.onnx").path
            rows.append({"what": f"{name}, ONNX", "device": "cpu", **_rates(load_onnx(path), pictures)})
        except ModelError as error:
            rows.append({"what": f"{name}, ONNX", "failed": str(error)})
    judge = DiffusionClassifier(backbone, list(classes.names), batch_size=bench.calls).fit()
    judge.classify(source.select(range(2)))
    some = source.select(range(bench.speed_images))
    seconds, calls = [], 0
    for _ in range(bench.repeats):
        started = perf_counter()
        calls = sum(verdict.calls for verdict in judge.classify(some))
        seconds.append(perf_counter() - started)
    rate = len(some) / median(seconds)
    rows.append({"what": "zero-shot", "device": _named(backbone.device), "prepared": rate, "images": len(some)})
    rows[-1] |= {"calls": calls / len(some)}
    return {"rows": rows, "batch": BATCH, "threads": torch.get_num_threads()}


def _rates(model: Any, pictures: list[Any]) -> dict[str, float]:  # noqa: ANN401 - of torch or as ONNX
    """Images per second: prepared ones in full batches, one at a time, and all with preparing them."""
    batch = torch.stack([model.preprocessing(picture) for picture in pictures[:BATCH]])
    given = pictures[:BATCH]
    ways = {
        "prepared": (lambda: model.run(batch), BATCH),
        "single": (lambda: model.run(batch[:1]), 1),
        "with_preparing": (lambda: model.run(torch.stack([model.preprocessing(each) for each in given])), BATCH),
    }
    found = {}
    for name, (work, images) in ways.items():
        work()
        started, done = perf_counter(), 0
        while done < 2 or perf_counter() - started < _SECONDS:  # `run` gives logits on the CPU, and so has waited
            work()
            done += 1
        found[name] = images * done / (perf_counter() - started)
    return found


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
