"""What methods are compared on: images to test on, images to draw labels from, and class names."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from diffsight.data.corruptions import split_change
from diffsight.data.readers import image_digest
from diffsight.data.sources import Source, open_source
from diffsight.data.splits import few_shot, hold_out, random_order
from diffsight.errors import ImageError, InputError, PromptError, SourceError
from diffsight.evaluation.task import Task

log = logging.getLogger(__name__)

USUAL = (0, 1, 10, 100)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Question:
    """A task with its images, divided.

    Attributes:
        task: What is asked.
        test: What all methods answer.
        train: What labels are drawn from; None if there is nothing.
        why: Why there is nothing.
        classes: Class names in the order of the labels.
        twice: Images left out of ``train`` because they are among ``test`` as well.
    """

    task: Task
    test: Source
    train: Source | None
    why: str
    classes: tuple[str, ...]
    twice: int = 0

    @property
    def labelled(self) -> bool:
        """Whether accuracy can be known."""
        return self.test.labels is not None

    @property
    def fewest(self) -> int:
        """Images of the class with the fewest to draw labels from."""
        if self.train is None or self.train.labels is None:
            return 0
        counts = np.bincount(np.array(self.train.labels, dtype=np.int64), minlength=len(self.classes))
        return int(counts.min())

    def fields(self) -> dict[str, Any]:
        """What answers to it depend on, as runs of 'diffsight evaluate' have it."""
        return {
            "task": {"name": self.task.name, "version": self.task.version, "metric": self.task.metric},
            "data": {"source": self.test.name, "images": len(self.test), "ids": self.test.fingerprint()},
            "classes": list(self.classes),
        }

    def draw(self, per_class: int, seed: int) -> Int[np.ndarray, " n"]:
        """Positions of so many training images of each class; more contain fewer.

        Raises:
            InputError: If a class has fewer.
        """
        if self.train is None or self.train.labels is None:
            raise InputError(f"There are no labels to draw: {self.why}")
        return few_shot(self.train.labels, per_class=per_class, seed=seed, class_names=self.classes)


def open_question(
    task: Task,
    *,
    class_names: Sequence[str] | None = None,
    divided: bool = True,
    limit: int | None = None,
    seed: int = 0,
    test_share: float = 0.5,
    root: Path | None = None,
) -> Question:
    """Open a task's images, or divide a folder's.

    Args:
        task: From `load_task` or `folder_task`.
        class_names: What can be seen, for a folder without labels; otherwise the task's own are taken.
        divided: Whether a folder with labels is divided; else all of it is tested on.
        limit: Only so many test images, drawn by the seed.
        seed: Divides a folder, and draws test images.
        test_share: Of the images of each class of a folder, which are tested on; the others may give labels.
        root: Where the data lies, if not in a standard place.

    Raises:
        SourceError: If the data are not there.
        PromptError: If the classes have no names, or names do not fit.
        InputError: If the limit or the share makes no sense.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}; it is a number of images, at least 1.")
    if class_names is not None:
        task = replace(task, class_names=tuple(class_names))
    test = open_source(task.source, root=root, split=task.split)
    if task.class_names is None and test.class_names is None:
        raise PromptError(
            f"The images of {task.name} are in no folders of classes, so say what they can show: --classes cat,dog,… "
            "(or class_names in a task's file)."
        )
    classes = task.names(test.class_names)
    train, why, twice = None, "", 0
    if test.labels is None:
        why = f"the images of {task.name} have none. Put some into one sub-folder for each class."
    elif task.source.startswith("folder:") and not divided:
        why = "all images are tested on."
    elif task.source.startswith("folder:"):
        test, train, twice = _divided(test, task, root=root, share=test_share, seed=seed)
    else:
        train, why = _training_part(task, root)
    if limit is not None and limit < len(test):
        order = random_order(len(test), f"compare {seed}")[:limit]
        test = test.select(np.sort(order).tolist())
    return Question(task=task, test=test, train=train, why=why, classes=classes, twice=twice)


def choose_labels(question: Question, asked: Sequence[int] | None) -> tuple[int, ...]:
    """How many labels of each class are tried: those asked for, or the usual ones that there are.

    Raises:
        InputError: If there are fewer than asked for, or a number makes no sense.
    """
    if asked is None:
        return tuple(number for number in USUAL if number <= question.fewest)
    chosen = tuple(sorted(set(asked)))
    if not chosen or chosen[0] < 0:
        raise InputError(f"Labels of each class are numbers from 0; got {', '.join(map(str, asked)) or 'none'}.")
    if chosen[-1] > 0 and question.train is None:
        raise InputError(f"No labels can be drawn: {question.why} Or ask for --labels 0.")
    if chosen[-1] > question.fewest:
        train = question.train
        counts = np.bincount(np.array(train.labels if train else []), minlength=len(question.classes))
        scarce = question.classes[int(counts.argmin())]
        raise InputError(
            f"{chosen[-1]} labels of each class were asked for, and {scarce!r} has {question.fewest} images to draw "
            f"them from. Ask for at most {question.fewest}, or add images."
        )
    return chosen


def readable(question: Question, per_class: int, seeds: Sequence[int]) -> Question:
    """The same where no image that will be drawn is broken: others of the class take their places.

    Args:
        question: From `open_question`.
        per_class: The most labels that will be drawn.
        seeds: Of the draws.

    Raises:
        InputError: If a class has too few images that can be read.
    """
    broken: dict[str, str] = {}
    seen: set[str] = set()
    while per_class > 0 and question.train is not None:
        if question.fewest < per_class:
            raise InputError(
                f"{len(broken)} of the images to draw labels from cannot be read, and of those that can a class has "
                f"{question.fewest}: ask for fewer labels, or mend them. {next(iter(broken.values()), '')}"
            )
        train, before = question.train, len(broken)
        drawn = {train.ids[place] for seed in seeds for place in question.draw(per_class, seed).tolist()}
        for id in sorted(drawn - seen):
            try:
                train.read(id)
            except ImageError as error:
                broken[id] = str(error)
        seen |= drawn
        if len(broken) == before:
            break
        kept = [place for place, id in enumerate(train.ids) if id not in broken]
        question = replace(question, train=train.select(kept))
    if broken:
        log.warning("Images that cannot be read, and give no label: %d. %s", len(broken), "; ".join(broken.values()))
    return question


def _training_part(task: Task, root: Path | None) -> tuple[Source | None, str]:
    if task.split == "train":
        return None, f"{task.name} tests on its train split, and what is tested on may not be learnt from."
    clean, _ = split_change(task.source)
    try:
        train = open_source(clean, root=root, split="train")
    except SourceError as error:
        return None, f"{task.name} has no train split to draw them from ({error})"
    return (train, "") if train.labels is not None else (None, f"the train split of {task.name} has no labels.")


def _divided(
    whole: Source, task: Task, *, root: Path | None, share: float, seed: int
) -> tuple[Source, Source | None, int]:
    """A folder's images for testing and for learning: no picture is in both, under whatever name."""
    labels = whole.labels or ()
    if max(Counter(labels).values()) < 2:
        raise InputError(
            f"No class of {task.name} has two images, so that one could be tested on and another give a label. Add "
            "images, or ask for --labels 0: then all are tested on."
        )
    kept, held = hold_out(labels, share=share, seed=seed)
    clean, change = split_change(task.source)
    learnt = whole if change is None else open_source(clean, root=root, split=task.split)

    def digest(id: str) -> bytes:
        return learnt.digest(id) if learnt.digest is not None else image_digest(learnt.read, id)

    tested = {digest(whole.ids[position]) for position in held.tolist()}
    fresh = [position for position in kept.tolist() if digest(learnt.ids[position]) not in tested]
    return whole.select(held.tolist()), learnt.select(fresh) if fresh else None, len(kept) - len(fresh)
