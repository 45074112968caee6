"""Checking a task before it costs anything: its file, its data if they are here, and what a run of it would be."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from diffsight.data.corruptions import split_change
from diffsight.data.prompts import PromptSet
from diffsight.data.sources import Source, open_source
from diffsight.errors import DiffsightError, ImageError, InputError, PromptError, SourceError
from diffsight.evaluation.task import OWN, Task, list_tasks, load_task
from diffsight.evaluation.task_file import Mistake, lines_of, read_task

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What was found about a task.

    Attributes:
        name: What was asked for.
        task: None if its file is wrong.
        mistakes: Why it cannot be run; none if it can, wherever its data are.
        notes: What is worth knowing and no mistake.
        data: What lies here: images, counts, sizes; None if the data are not here.
        run: What would be run; None if nothing can be.
    """

    name: str
    task: Task | None = None
    mistakes: tuple[Mistake, ...] = ()
    notes: tuple[str, ...] = ()
    data: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON-compatible values."""
        return {
            "task": self.name,
            "valid": not self.mistakes,
            "mistakes": [{"line": each.line, "key": each.key, "message": each.message} for each in self.mistakes],
            "notes": list(self.notes),
            "data": None if self.data is None else dict(self.data),
            "run": None if self.run is None else dict(self.run),
        }


@dataclass(slots=True)
class _Found:
    """What is found on the way."""

    where: str
    lines: Mapping[str, int]
    mistakes: list[Mistake] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, key: str, message: object) -> None:
        line = self.lines.get(key)
        place = f"{self.where}, line {line}, {key}" if line else f"{self.where}, {key}"
        self.mistakes.append(Mistake(message=f"{place}: {message}", line=line, key=key))


def validate_task(
    name_or_path: str | Path,
    *,
    root: str | Path | None = None,
    split: str | None = None,
    images: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> Validation:
    """Check a task.

    Args:
        name_or_path: As for `load_task`.
        root: Where the data lie, as for `open_source`.
        split: Instead of the task's own.
        images: How many images to open, evenly spread over the data; 0 opens none.
        progress: Called after each with (images opened, images to open).

    Raises:
        InputError: If there is no such task or file.
        SourceError: If there is no such folder.
    """
    name = os.fspath(name_or_path)
    path = Path(split_change(name)[0]).expanduser()
    file = path / OWN if (path / OWN).is_file() else path
    found = _Found(str(name), {})
    if file.suffix in (".yaml", ".yml") and file.is_file() and name not in list_tasks():
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            mistake = Mistake(message=f"The task file {file} cannot be read: {error}")
            return Validation(name=name, mistakes=(mistake,))
        _, mistakes = read_task(text, origin=str(file))
        if mistakes:
            return Validation(name=name, mistakes=tuple(mistakes))
        found = _Found(str(file), lines_of(text))
    task = load_task(name_or_path)
    source = _open(task, root, split, found)
    data = None if source is None else _look(task, source, images, progress, found)
    names = _names(task, source, found)
    run = None if names is None or found.mistakes else _plan(task, name, names, source, found)
    return Validation(
        name=name, task=task, mistakes=tuple(found.mistakes), notes=tuple(found.notes), data=data, run=run
    )


def _open(task: Task, root: str | Path | None, split: str | None, found: _Found) -> Source | None:
    part = split or task.split
    try:
        return open_source(task.source, root=root, split=part)
    except DiffsightError as error:
        # Known data that lie elsewhere leave a task as right as it is; all readers say it in these words.
        if isinstance(error, SourceError) and " is not here" in str(error):
            found.notes.append(f"The data are not here, so they were not checked. {error}")
        else:
            found.wrong("split" if "split" in str(error) else "source", error)
        return None


def _names(task: Task, source: Source | None, found: _Found) -> tuple[str, ...] | None:
    """The class names, checked against the data; None if they are not known or do not fit."""
    if source is None and task.class_names is None:
        return None
    try:
        names = task.names(None if source is None else source.class_names)
    except PromptError as error:
        found.wrong("class_names", error)
        return None
    if source is not None and source.labels and max(source.labels) >= len(names):
        found.wrong(
            "class_names",
            f"there are {len(names)} names, and the data have the label {max(source.labels)} "
            f"({source.ids[int(np.argmax(source.labels))]}). Give one name for each label, in their order.",
        )
        return None
    return names


def _look(
    task: Task, source: Source, images: int, progress: Callable[[int, int], None] | None, found: _Found
) -> dict[str, Any]:
    """Count the images of each class, and open some."""
    facts: dict[str, Any] = {"source": source.name, "images": len(source), "classes": None, "per_class": None}
    if source.labels is None:
        found.notes.append("The images have no labels: they can be classified, and no accuracy can be measured.")
    else:
        known = task.class_names or source.class_names or ()
        counts = Counter(source.labels)
        facts["classes"], facts["per_class"] = (
            len(counts),
            {"least": min(counts.values()), "most": max(counts.values())},
        )
        if without := [called for label, called in enumerate(known) if label not in counts]:
            found.notes.append(f"{len(without)} of {len(known)} classes have no image: {_list(without)}.")
        if max(counts.values()) > 1.5 * min(counts.values()) and task.metric == "top1":
            found.notes.append(
                f"Classes have from {min(counts.values()):,} to {max(counts.values()):,} images; mean_per_class counts "
                "all classes alike, top1 does not."
            )
    return facts | _open_images(source, images, progress, found)


def _open_images(
    source: Source, images: int, progress: Callable[[int, int], None] | None, found: _Found
) -> dict[str, Any]:
    count = min(images, len(source))
    chosen = np.linspace(0, len(source) - 1, count).round().astype(int).tolist()
    sizes: list[tuple[int, int]] = []
    reasons: list[str] = []
    owners: dict[bytes, list[int]] = {}
    for number, index in enumerate(chosen, start=1):
        sample = source[index]
        try:
            sizes.append(sample.load().size)
            if source.digest is not None:
                owners.setdefault(source.digest(sample.id), []).append(index)
        except ImageError as error:
            reasons.append(str(error))
        if progress is not None:
            progress(number, count)
    groups = [group for group in owners.values() if len(group) > 1]
    labels = source.labels
    mixed = [] if labels is None else [group for group in groups if len({labels[index] for index in group}) > 1]
    if reasons:
        found.notes.append(f"{len(reasons):,} of {count:,} images cannot be read; a run counts them as failed.")
        if len(reasons) == count:
            found.wrong("source", f"none of {count:,} images can be read, the first for this reason: {reasons[0]}")
    if groups:
        first = " and ".join(source.ids[index] for index in groups[0][:2])
        found.notes.append(f"{len(groups):,} images are there more than once, such as {first}.")
    if mixed:
        first = " and ".join(source.ids[index] for index in mixed[0][:2])
        found.notes.append(f"{len(mixed):,} images are in several classes at once, such as {first}.")
    sides = [side for size in sizes for side in size]
    return {
        "opened": count,
        "unreadable": len(reasons),
        "reasons": reasons[:_SHOWN],
        "duplicates": len(groups),
        "in_several_classes": len(mixed),
        "sides": {"least": min(sides), "most": max(sides)} if sides else None,
    }


def _plan(task: Task, name: str, names: tuple[str, ...], source: Source | None, found: _Found) -> dict[str, Any] | None:
    """What a run is, and what it costs at most with the settings that are usual."""
    from diffsight.zero_shot.settings import Settings, preset

    try:
        prompts = PromptSet.from_templates(names, task.templates)
    except PromptError as error:
        found.wrong("templates", error)
        return None
    change = split_change(task.source)[1]
    policies = {paper: preset(paper).settings.policy for paper in task.presets if _is_preset(paper, found)}
    return {
        "classes": len(names),
        "templates": list(task.templates),
        "prompts": len(prompts.prompts),
        "first_prompt": prompts.prompts[0],
        "metric": task.metric,
        "chance": 1 / len(names),
        "protocol": task.protocol or "zero-shot: no image is learnt from",
        "split": task.split,
        "transform": "none but the model's own resizing" if change is None else f"{change.spec}, then the model's own",
        "images": None if source is None else len(source),
        "most_calls_per_image": Settings().policy.max_calls(len(prompts.prompts)),
        "presets": {
            paper: {
                "templates": list(task.presets[paper]),
                "most_calls_per_image": policy.max_calls(len(names) * len(task.presets[paper])),
            }
            for paper, policy in policies.items()
        },
        "command": f"diffsight evaluate --task {name} --model MODEL --out DIR",
    }


def _is_preset(name: str, found: _Found) -> bool:
    from diffsight.zero_shot.settings import preset

    try:
        preset(name)
    except InputError as error:
        found.wrong("presets", error)
        return False
    return True


def _list(items: list[str]) -> str:
    return ", ".join(map(repr, items[:_SHOWN])) + (", …" if len(items) > _SHOWN else "")
