"""One training with one seed, committed between epochs and continued from there."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffsight.errors import RunError
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run
from diffsight.synthesis.batches import Readers
from diffsight.synthesis.learner import Learner, Measured
from diffsight.synthesis.material import Material
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.placement import Placement
from diffsight.synthesis.trained import CARD, TrainedClassifier

_LONGER = 10  # Between two commits it trains this much longer than a commit takes: a large network on few images.


def fit(
    material: Material,
    folder: Path,
    *,
    seed: int,
    placement: Placement,
    readers: Readers,
    progress: Callable[[int, int, str], None],
) -> TrainedClassifier:
    """Train a network, or go on with its training, or give it if it is done.

    Args:
        material: Data and settings.
        folder: For the network, and in ``run`` for the training. Only the first process writes.
        seed: Of all that is random.
        placement: Where.
        readers: What prepares the images.
        progress: Called with steps done, all steps and what is known of the epochs.

    Raises:
        NumericsError: If it diverged.
        RunError: As for `Run.open`, or if the network of a finished training is gone.
    """
    run = Run.open(folder / "run", _manifest(material, seed, placement)) if placement.leads else None
    placement.wait()
    try:
        stored = run or Run.load(folder / "run")
        if not stored.progress.get("finished"):
            learner = Learner(material.plan, material.settings, material.preprocessing, placement, seed)
            best = _epochs(material, learner, run, stored, readers, progress)
            if run is not None:
                _finish(material, learner, run, folder, best)
    finally:
        if run is not None:
            run.close()
    placement.wait()
    if not (folder / CARD).exists():
        raise RunError(
            f"The training in {folder / 'run'} is finished, but its network {folder / CARD} is gone. Restore it from a "
            "copy, or delete the folder to train again."
        )
    return TrainedClassifier.load(folder, device=placement.device)


def _epochs(
    material: Material,
    learner: Learner,
    run: Run | None,
    stored: Run,
    readers: Readers,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any] | None:
    """Train to the end. Afterwards the learner's network has the weights to keep.

    Returns:
        The epoch that was best on the held-out images, with its results, if there are any.
    """
    settings = material.settings
    part, held = material.parts(learner.seed)
    best: dict[str, Any] | None = None
    kept: dict[str, np.ndarray] = {}
    start = 0
    rows: list[pa.Table] = []
    committed, took = time.perf_counter(), 0.0
    if state := stored.state():
        learner.restore(state)
        start, best = stored.progress["epochs"], stored.progress["best"]
        kept = {key.removeprefix("best."): value for key, value in state.items() if key.startswith("best.")}
    for epoch in range(start, settings.epochs):
        if _is_over(settings, best, epoch):
            break
        began = time.perf_counter()
        note = f"epoch {epoch + 1} of {settings.epochs}" + (f", best so far {best['accuracy']:.1%}" if best else "")

        def step(done: int, steps: int, epoch: int = epoch, note: str = note) -> None:
            progress(epoch * steps + done, settings.epochs * steps, note)

        loss = learner.epoch(part, epoch, readers, step)
        found = None
        if held is not None:
            found = learner.placement.agree(lambda: learner.measure(held, readers))
            if found.beats(Measured(best["accuracy"], best["loss"]) if best else None):
                best = {"epoch": epoch, "accuracy": found.accuracy, "loss": found.loss, "images": len(held)}
                kept = _arrays(learner) if settings.select == "best" else {}
        rows.append(_row(epoch, loss, found, time.perf_counter() - began))
        last = epoch + 1 == settings.epochs or _is_over(settings, best, epoch + 1)
        if run is not None and (last or time.perf_counter() - committed >= _LONGER * took):
            started = time.perf_counter()
            state = learner.state() | {f"best.{key}": value for key, value in kept.items()}
            reached = {"epochs": epoch + 1, "best": best, "images": len(part)}
            run.commit({"epochs": pa.concat_tables(rows)}, state=state, progress=reached)
            rows, committed = [], time.perf_counter()
            took = committed - started
    weights = kept or _arrays(learner)
    learner.network.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    return best


def _is_over(settings: TrainSettings, best: dict[str, Any] | None, epoch: int) -> bool:
    """Whether the held-out images were recognised no better for ``patience`` epochs before this one."""
    return settings.patience is not None and best is not None and epoch - best["epoch"] > settings.patience


def _arrays(learner: Learner) -> dict[str, np.ndarray]:
    return {key: value.cpu().numpy().copy() for key, value in learner.weights().items()}


def _row(epoch: int, loss: float, found: Measured | None, seconds: float) -> pa.Table:
    return pa.table(
        {
            "epoch": pa.array([epoch], pa.int32()),
            "loss": pa.array([loss], pa.float64()),
            "validation_accuracy": pa.array([found.accuracy if found else None], pa.float64()),
            "validation_loss": pa.array([found.loss if found else None], pa.float64()),
            "seconds": pa.array([seconds], pa.float64()),
        }
    )


def _manifest(material: Material, seed: int, placement: Placement) -> Manifest:
    fields = {
        **material.facts,
        "settings": material.settings.to_dict() | {"amp": placement.amp},
        "network": material.plan.to_dict(),
        "preprocessing": material.preprocessing.to_dict(),
        "seed": seed,
        "processes": placement.processes,
    }
    return Manifest(fields, session(("torchvision",), device=str(placement.device)))


def _finish(material: Material, learner: Learner, run: Run, folder: Path, best: dict[str, Any] | None) -> None:
    """Write the network with its card, and give up what was needed to go on."""
    epochs = run.read("epochs")
    row = best["epoch"] if best is not None and material.settings.select == "best" else epochs.num_rows - 1
    accuracy = epochs["validation_accuracy"][row].as_py()
    metrics = {
        "epochs": epochs.num_rows,
        "kept_epoch": row + 1,
        "loss": epochs["loss"][row].as_py(),
        "validation": None
        if best is None
        else {
            "of": material.decides,
            "images": best["images"],
            "accuracy": accuracy,
            "loss": epochs["validation_loss"][row].as_py(),
        },
        "images": run.progress["images"],
        "failed": len(material.failures),
        "parameters": sum(parameter.numel() for parameter in learner.network.parameters()),
        "seconds": sum(epochs["seconds"].to_pylist()),
    }
    TrainedClassifier(
        plan=material.plan,
        network=learner.network,
        preprocessing=material.preprocessing,
        class_names=material.training.class_names,
        protocol=material.protocol,
        notes={
            "metrics": metrics,
            "settings": material.settings.to_dict() | {"amp": learner.placement.amp},
            "seed": learner.seed,
            "data": {key: material.facts[key] for key in ("training", "validation")},
            "failed": [{"id": failure.id, "reason": failure.reason} for failure in material.failures],
        },
    ).save(folder)
    run.commit({}, progress=run.progress | {"finished": True})
    run.finish(metrics)
