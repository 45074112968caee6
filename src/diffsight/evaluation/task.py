"""Tasks as data: which images, which classes, which prompts, which number is reported.

A task is a YAML file, one of those beside this module or your own::

    name: cifar10
    version: 1                      # raised with every change that changes numbers
    source: torchvision:cifar10
    split: test
    class_names: [airplane, ...]    # in the order of the labels; left out: the names that the source has
    templates: [a photo of a {}.]
    metric: top1                    # or mean_per_class
    presets:                        # the templates of each paper preset that has a result on this task
      clark2023: [a photo of a {}.]
    licence: MIT
    citation: Who made the data

The images of any task can be corrupted, or have their resolution lowered: ``cifar10@fog:3``, ``cifar10@resolution:16``,
as the name of a task or at the end of a source.

Prompts and class names decide results as much as the model does, so they are part of the task and of its version.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

import yaml

from diffsight.data.corruptions import split_change
from diffsight.data.prompts import PromptSet
from diffsight.errors import InputError, PromptError, SourceError, nearest
from diffsight.evaluation.metrics import Metric

METRICS = ("top1", "mean_per_class")
DEFAULT_TEMPLATES = ("a photo of a {}.",)
_REQUIRED = ("name", "version", "source", "templates", "licence", "citation")
_OPTIONAL = ("split", "class_names", "metric", "presets")
_LARGEST = 1_000_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A question to a model: these images, these classes, these prompts.

    Attributes:
        name: What it is called.
        version: Raised with every change that changes numbers.
        source: Where the images are and what is done to them, for `open_source`.
        split: Which part of them.
        class_names: In the order of the data's labels; None for the names that the source has.
        templates: Prompt templates, each with one ``{}`` for the class name.
        metric: The number to report: "top1" or "mean_per_class".
        presets: For each paper preset with a result on this task, the paper's templates.
        licence: Of the images.
        citation: Of the images.

    Raises:
        InputError: If a value makes no sense.
    """

    name: str
    source: str
    templates: tuple[str, ...] = DEFAULT_TEMPLATES
    class_names: tuple[str, ...] | None = None
    split: str = "test"
    metric: Metric = "top1"
    version: int = 1
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    licence: str = "not stated"
    citation: str = ""

    def __post_init__(self) -> None:
        for key in (*_REQUIRED, *_OPTIONAL):
            try:
                _check(key, getattr(self, key))
            except InputError as error:
                raise InputError(f"Task {self.name!r}, {key}: {error}") from error

    def names(self, of_source: Sequence[str] | None) -> tuple[str, ...]:
        """The class names to prompt with, checked against the data.

        Args:
            of_source: The class names that the opened source has, if it has any.

        Raises:
            PromptError: If neither has names, or theirs cannot be the same classes in the same order.
        """
        if self.class_names is None:
            if of_source is None:
                raise PromptError(f"{self.source} has no class names. Add class_names to task {self.name!r}.")
            return tuple(of_source)
        if of_source is None:
            return self.class_names
        if len(of_source) != len(self.class_names):
            raise PromptError(
                f"Task {self.name!r} names {len(self.class_names)} classes but {self.source} has {len(of_source)}. "
                "Give one name for each label, in the order of the labels."
            )
        places = {_plain(name): index for index, name in enumerate(of_source)}
        for index, name in enumerate(self.class_names):
            if places.get(_plain(name), index) != index:
                raise PromptError(
                    f"Task {self.name!r} has {name!r} at place {index}, but {self.source} has it at place "
                    f"{places[_plain(name)]}. Give the names in the order of the labels."
                )
        return self.class_names


def _builtin() -> Traversable:
    return files("diffsight.evaluation").joinpath("tasks")


def list_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with diffsight, for `load_task`."""
    names = (file.name for file in _builtin().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_task(name_or_path: str | Path) -> Task:
    """Load a task.

    Args:
        name_or_path: A name from `list_tasks`, a YAML file, or a folder of images (also as ``folder:DIR``). A
            ``folder:`` source in a YAML file is relative to that file. With ``@TYPE:SEVERITY``, ``@TYPE:SEVERITY:SEED``
            or ``@resolution:PIXELS`` at its end: the same with this done to its images, see `corruptions.py`.

    Raises:
        InputError: If there is no such task or change, or its file is wrong; the message names the line.
        SourceError: If the folder does not exist.
    """
    text, change = split_change(os.fspath(name_or_path))
    if change is not None:
        task = load_task(text)
        return replace(task, name=f"{task.name}@{change.spec}", source=f"{task.source}@{change.spec}")
    path = Path(text.removeprefix("folder:")).expanduser()
    if text in list_tasks():
        return parse_task(_builtin().joinpath(f"{text}.yaml").read_text("utf-8"), origin=f"{text}.yaml")
    if text.startswith("folder:") or path.is_dir():
        return folder_task(path)
    if path.suffix in (".yaml", ".yml"):
        return _load_file(path)
    raise InputError(
        f"There is no task {text!r}. {nearest(text, list_tasks())} A task is also any folder of images, and any .yaml "
        "file that describes one."
    )


def folder_task(path: Path | str, *, templates: Sequence[str] = DEFAULT_TEMPLATES, metric: Metric = "top1") -> Task:
    """Make a task of a folder with one sub-folder for each class.

    Args:
        path: The folder; its sub-folders' names are the class names.
        templates: Prompt templates.
        metric: The number to report.

    Raises:
        SourceError: If there is no such folder.
        InputError: If a template or the metric makes no sense.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise SourceError(f"There is no folder {path}. Give a folder of images, with one sub-folder for each class.")
    return Task(
        name=path.resolve().name or "folder", source=f"folder:{path}", templates=tuple(templates), metric=metric
    )


def parse_task(text: str, *, origin: str = "task") -> Task:
    """Read a task from YAML.

    Args:
        text: The YAML.
        origin: Where it is from, for errors.

    Raises:
        InputError: If a key is unknown, missing, repeated, or has a wrong value; the message names the line.
    """
    if len(text) > _LARGEST:
        raise InputError(f"{origin} has {len(text)} characters; a task file has at most {_LARGEST}.")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        values = cast(dict[str, Any], yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{origin} is not YAML: {error}") from error
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{origin} must be a list of keys and values: {', '.join(_REQUIRED)}.")
    lines = _key_lines(root, origin)
    if missing := [key for key in _REQUIRED if key not in lines]:
        raise InputError(f"{origin} has no {missing[0]!r}. A task needs: {', '.join(_REQUIRED)}.")
    for key, value in values.items():
        values[key] = _tuples(value)
        try:
            _check(key, values[key])
        except InputError as error:
            raise InputError(f"{origin}, line {lines[key]}, {key}: {error}") from error
    return Task(**values)


def _key_lines(root: yaml.MappingNode, origin: str) -> dict[str, int]:
    """The line of each key, refusing unknown and repeated keys, which YAML itself lets pass."""
    lines: dict[str, int] = {}
    for node, _ in root.value:
        line, key = node.start_mark.line + 1, str(node.value)
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise InputError(f"{origin}, line {line}: unknown key {key!r}. {nearest(key, (*_REQUIRED, *_OPTIONAL))}")
        if key in lines:
            raise InputError(f"{origin}, line {line}: {key!r} is there already, on line {lines[key]}.")
        lines[key] = line
    return lines


def _load_file(path: Path) -> Task:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The task file {path} cannot be read: {error}") from error
    task = parse_task(text, origin=str(path))
    if task.source.startswith("folder:"):
        folder = Path(task.source.removeprefix("folder:")).expanduser()
        task = replace(task, source=f"folder:{path.parent / folder}")
    return task


def _tuples(value: object) -> object:
    """Lists as tuples, also inside a mapping."""
    if isinstance(value, dict):
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _check(key: str, value: object) -> None:
    """Refuse a value of a task that makes no sense; the message says only what is wrong with the value."""
    match key:
        case "version":
            if type(value) is not int or value < 1:
                raise InputError("must be a whole number from 1.")
        case "metric":
            if value not in METRICS:
                raise InputError(f"must be a known metric. {nearest(str(value), METRICS)}")
        case "templates":
            PromptSet.from_templates(("one", "other"), _texts(value))
        case "class_names":
            if value is not None:
                PromptSet.from_templates(_texts(value), "{}")
        case "presets":
            if not isinstance(value, Mapping):
                raise InputError("must map names of presets to lists of templates.")
            for templates in value.values():
                PromptSet.from_templates(("one", "other"), _texts(templates))
        case "citation" | "licence":
            if not isinstance(value, str):
                raise InputError("must be text; put it in quotes.")
        case _:
            if not isinstance(value, str) or not value.strip() or len(value.splitlines()) != 1:
                raise InputError("must be one line of text; put it in quotes if it looks like a number or a date.")
            if key == "source":
                split_change(value)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not value:
        raise InputError("must be a list of texts.")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InputError(f"item {index + 1} is a {type(item).__name__}, not text; put it in quotes.")
    return value


def _plain(name: str) -> str:
    """A class name without what data sets and prompts spell differently."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
