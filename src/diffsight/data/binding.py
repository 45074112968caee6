"""Attribute binding: which thing has which attribute, after Clark & Jaini (2303.15233, Table 3).

Each example is a scene of two things with a true caption and a false one:

``colour``          control: "A red object" against a colour that is not in the picture;
``shape,colour``    pair: "A red square and a blue circle" against "A blue square and a red circle";
``colour|shape``    single: "A red square" against "A blue square", blue being the other thing's colour.

A model that only knows which words fit the picture solves the controls and is at chance, 50 %, in all others.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from diffsight.data.scenes import VALUES, Scene, caption, random_scene, with_values
from diffsight.errors import InputError, nearest

ATTRIBUTES = ("shape", "colour", "size", "position")
CONTROLS = ("shape", "colour")
PAIRS = tuple(f"{a},{b}" for a, b in combinations(ATTRIBUTES, 2))
SINGLES = tuple(name for a, b in combinations(ATTRIBUTES, 2) for name in (f"{a}|{b}", f"{b}|{a}"))
TASKS = CONTROLS + PAIRS + SINGLES


@dataclass(frozen=True, slots=True, kw_only=True)
class BindingExample:
    """A scene with a caption that is true and one that is not.

    Attributes:
        scene: What is painted.
        true: The caption that fits.
        false: The caption that differs in one attribute, or in the order of two.
        changed: The scene at the same places in which the false caption is true and the true one is false.
    """

    scene: Scene
    true: str
    false: str
    changed: Scene


def binding_examples(task: str, count: int, *, seed: int = 0, held_out: bool = False) -> Iterator[BindingExample]:
    """Examples of one task, the same for the same arguments.

    Args:
        task: One of `TASKS`.
        count: How many.
        seed: Of the random numbers.
        held_out: False: only combinations of shape and colour that ``tiny-shapes`` saw in training; True: scenes with
            at least one of those that it did not see; the caption of a single tells of that one.

    Raises:
        InputError: If there is no such task.
    """
    if task not in TASKS:
        raise InputError(f"Unknown attribute-binding task {task!r}. {nearest(task, TASKS)}")
    rng = np.random.default_rng([seed, TASKS.index(task), held_out])
    for _ in range(count):
        yield _example(task, rng, held_out)


def _example(task: str, rng: np.random.Generator, held_out: bool) -> BindingExample:
    attributes = tuple(task.replace("|", ",").split(","))
    scene = random_scene(rng, differs=[name for name in attributes if name != "position"], held_out=held_out)
    first = attributes[0]
    values = [getattr(thing, first) for thing in scene.things]
    if "," in task:
        # Swapping the first attribute says the same as swapping the second.
        told, others = (0, 1), values[::-1]
    else:
        chosen = [index for index, thing in enumerate(scene.things) if thing.held_out] if held_out else [0, 1]
        told, others = (int(rng.choice(chosen)),), values[::-1]
    if task in CONTROLS:
        others[told[0]] = str(rng.choice([value for value in VALUES[task] if value not in values]))
        others[1 - told[0]] = values[1 - told[0]]
    swap = [{first: other} for other in others]
    return BindingExample(
        scene=scene,
        true=caption([scene.things[index] for index in told], attributes),
        false=caption([scene.things[index] for index in told], attributes, [swap[index] for index in told]),
        changed=with_values(scene, first, others),
    )
