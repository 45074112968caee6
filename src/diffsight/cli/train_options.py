"""What the options of ``diffsight train`` stand for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.synthesis.options import TrainSettings
    from diffsight.synthesis.training_set import TrainingSet


def make_settings(
    preset: str | None, network: str | None, changes: Mapping[str, Any], amp: str | None
) -> "TrainSettings":
    """All settings of the training, before anything is read.

    Raises:
        InputError: If one makes no sense, or a preset is given together with what it fixes.
    """
    from diffsight.synthesis.options import find_settings

    if preset is not None and changes:
        given = " and ".join(f"--{name.replace('_', '-')}" for name in changes).replace("--flip", "--no-flip")
        raise InputError(f"--preset {preset} fixes that already: leave out {given}, or --preset.")
    values = dict(changes)
    if values.get("ema_decay") == 0:
        values["ema_decay"] = None
    if values.get("validation_share") == 0:
        values |= {"select": "last", "patience": None}
    if values.get("pretrained"):
        values["normalize"] = "own"
    if amp is not None:
        values["amp"] = amp
    return replace(find_settings(preset, network=network), **values)


def open_images(name: str, *, root: Path | None, split: str) -> "TrainingSet":
    """Images to learn from: of a folder, a data set, or a task with its class names.

    Raises:
        SourceError: If they are not there.
        InputError: If they have no labels.
    """
    from diffsight.data.sources import open_source
    from diffsight.evaluation.task import list_tasks, load_task
    from diffsight.synthesis.training_set import open_training_set

    if name not in list_tasks() or Path(name).is_dir():
        return open_training_set(name, root=root if ":" in name else None, split=split)
    task = load_task(name)
    names = task.names(open_source(task.source, root=root, split=split).class_names)
    return open_training_set(task.source, root=root, split=split, class_names=names)
