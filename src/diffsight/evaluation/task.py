"""Tasks as data: which images, which classes, which prompts, which number is reported.

A task is a YAML file, one of those beside this module or your own::

    name: cifar10
    version: 1                      # raised with every change that changes numbers
    source: torchvision:cifar10
    split: test
    class_names: [airplane, ...]    # in the order of the labels; left out: the names that the source has
    templates: [a photo of a {}.]
    metric: top1                    # or mean_per_class
    protocol: all of the test set   # which images, and what may be learnt from; left out: nothing is learnt
    presets:                        # the templates of each paper preset that has a result on this task
      clark2023: [a photo of a {}.]
    licence: MIT
    citation: Who made the data

The images of any task can be corrupted, or have their resolution lowered: ``cifar10@fog:3``, ``cifar10@resolution:16``,
as the name of a task or at the end of a source.

Prompts and class names decide results as much as the model does, so they are part of the task and of its version.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING

from diffsight.data.corruptions import split_change
from diffsight.data.folder_sets import known_names
from diffsight.errors import InputError, PromptError, SourceError, nearest
from diffsight.evaluation.metrics.accuracy import Metric
from diffsight.evaluation.task_file import OPTIONAL, REQUIRED, check_value, read_task

if TYPE_CHECKING:
    from diffsight.data.sources import Source

log = logging.getLogger(__name__)

DEFAULT_TEMPLATES = ("a photo of a {}.",)
OWN = "task.yaml"  # what describes the task of a folder


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
        protocol: Which images, and what may be learnt from, in words.
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
    protocol: str = ""
    presets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    licence: str = "not stated"
    citation: str = ""

    def __post_init__(self) -> None:
        for key in (*REQUIRED, *OPTIONAL):
            try:
                check_value(key, getattr(self, key))
            except InputError as error:
                raise InputError(f"Task {self.name!r}, {key}: {error}") from error

    def open(self, *, limit: int | None = None, root: Path | None = None) -> "Source":
        """Its images.

        Args:
            limit: As of `first_images`.
            root: Where the data set lies, if not in a standard place.

        Raises:
            SourceError: If the data is not there.
            InputError: If the limit is not positive.
        """
        from diffsight.data.sources import open_source  # It needs torch, and names of tasks do not.

        return first_images(open_source(self.source, root=root, split=self.split), limit)

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


def first_images(source: "Source", limit: int | None) -> "Source":
    """So many images of a source, from the first; all by default.

    Those of a folder lie class by class: a warning tells if classes are missing.

    Raises:
        InputError: If the limit is not positive.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it is a number of images, at least 1.")
    if limit is None or limit >= len(source):
        return source
    part = source.select(range(limit))
    there, of = len(set(part.labels or ())), len(set(source.labels or ()))
    if there < of:
        log.warning(
            "The first %d of the %d images of %s show %d of its %d classes: numbers are about these alone.",
            *(limit, len(source), source.name, there, of),
        )
    return part


def _builtin() -> Traversable:
    return files("diffsight.evaluation").joinpath("tasks")


def list_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with diffsight, for `load_task`."""
    names = (file.name for file in _builtin().iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_task(name_or_path: str | Path) -> Task:
    """Load a task.

    Args:
        name_or_path: A name from `list_tasks`, a YAML file, a folder that has a ``task.yaml``, or a folder of images
            (also as ``folder:DIR``). A ``folder:`` source in a YAML file is relative to that file. With
            ``@TYPE:SEVERITY``, ``@TYPE:SEVERITY:SEED`` or ``@resolution:PIXELS`` at its end: the same with this done to
            its images, see `corruptions.py`.

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
        if path.is_dir():
            log.warning("%s is a task of diffsight. For the folder write ./%s or folder:%s.", text, text, text)
        return parse_task(_builtin().joinpath(f"{text}.yaml").read_text("utf-8"), origin=f"{text}.yaml")
    if not text.startswith("folder:") and (path / OWN).is_file():
        return _load_file(path / OWN)
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
    values, mistakes = read_task(text, origin=origin)
    if mistakes:
        raise InputError(mistakes[0].message)
    task = Task(**values)
    return task if task.class_names else replace(task, class_names=known_names(task.source))


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


def _plain(name: str) -> str:
    """A class name without what data sets and prompts spell differently."""
    return " ".join(name.casefold().replace("_", " ").replace("-", " ").split())
