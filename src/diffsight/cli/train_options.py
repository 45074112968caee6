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


def open_images(
    name: str, *, root: Path | None, split: str, synthetic: bool = False, classes: str | None = None
) -> "TrainingSet":
    """Images to learn from: of a folder, a data set, or a task with its class names.

    Args:
        name: Which.
        root: Where data sets lie.
        split: Of a data set.
        synthetic: Whether the user says of a plain folder that its images are generated.
        classes: A task whose classes they are, spelt maybe as the folders of its data are.

    Raises:
        SourceError: If they are not there.
        InputError: If they have no labels, are no generated images, or are of no class of the task.
    """
    from diffsight.data.sources import open_source
    from diffsight.evaluation.task import list_tasks, load_task
    from diffsight.synthesis.training_set import open_training_set

    if classes is not None:
        from diffsight.synthesis.plain_folders import as_classes, folders_of

        of = load_task(classes)
        if of.class_names is None:
            raise InputError(f"The task {classes!r} has no class names of its own. Leave out --task.")
        found = open_images(name, root=root, split=split, synthetic=synthetic)
        return as_classes(found, of.class_names, folders=folders_of(of.source), of=f"the task {of.name!r}")
    if name not in list_tasks() or Path(name).is_dir():
        return open_training_set(name, root=root if ":" in name else None, split=split, synthetic=synthetic)
    task = load_task(name)
    names = task.names(open_source(task.source, root=root, split=split).class_names)
    return open_training_set(task.source, root=root, split=split, class_names=names, synthetic=synthetic)
