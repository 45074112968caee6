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

    Which caption is true cannot be told without the picture: each pair of captions is as likely with the one true as
    with the other.

    Args:
        task: One of `TASKS`.
        count: How many.
        seed: Of the random numbers.
        held_out: False: neither ``scene`` nor ``changed`` has a combination of shape and colour that ``tiny-shapes``
            did not see in training. True: both have one. Where the task itself exchanges shapes or colours only one of
            the two can have it, in the thing that is told of; a coin decides whether that one is ``scene``.

    Raises:
        InputError: If there is no such task.
    """
    if task not in TASKS:
        raise InputError(f"Unknown attribute-binding task {task!r}. {nearest(task, TASKS)}")
    rng = np.random.default_rng([seed, TASKS.index(task), held_out])
    for _ in range(count):
        yield _held_out_example(task, rng) if held_out else _seen_example(task, rng)


def _seen_example(task: str, rng: np.random.Generator) -> BindingExample:
    while True:
        example = _example(task, random_scene(rng, differs=_differing(task)), int(rng.integers(2)), rng)
        # The false caption may not name what was never seen either: being unheard of would give it away.
        if not any(thing.held_out for thing in example.changed.things):
            return example


def _held_out_example(task: str, rng: np.random.Generator) -> BindingExample:
    scene = random_scene(rng, differs=_differing(task), held_out=True)
    if _exchanged(task) not in ("shape", "colour"):
        return _example(task, scene, int(rng.integers(2)), rng)
    unseen = [index for index, thing in enumerate(scene.things) if thing.held_out]
    example = _example(task, scene, unseen[rng.integers(len(unseen))], rng)
    if rng.random() < 0.5:
        return example
    return BindingExample(scene=example.changed, true=example.false, false=example.true, changed=example.scene)


def _attributes(task: str) -> tuple[str, ...]:
    return tuple(task.replace("|", ",").split(","))


def _differing(task: str) -> list[str]:
    return [name for name in _attributes(task) if name != "position"]


def _exchanged(task: str) -> str:
    """The attribute that differs between the two scenes: one that leaves shapes and colours together, if it can."""
    attributes = _attributes(task)
    return next((name for name in attributes if name in ("size", "position")), attributes[0])


def _example(task: str, scene: Scene, told: int, rng: np.random.Generator) -> BindingExample:
    """The example in which a caption of one thing tells of the thing ``told``."""
    attributes = _attributes(task)
    first = attributes[0]
    things = scene.things if "," in task else (scene.things[told],)
    values = [getattr(thing, first) for thing in scene.things]
    others = values[::-1]
    if task in CONTROLS:
        absent = [value for value in VALUES[task] if value not in values]
        chosen = absent[rng.integers(len(absent))]
        others = [chosen if index == told else value for index, value in enumerate(values)]
    swap = [{first: other} for other in others]
    # Captions exchange the first attribute. Exchanging the other one in the picture makes the same caption true.
    exchanged = _exchanged(task)
    if exchanged != first:
        others = [getattr(thing, exchanged) for thing in scene.things][::-1]
    return BindingExample(
        scene=scene,
        true=caption(things, attributes),
        false=caption(things, attributes, swap if "," in task else [swap[told]]),
        changed=with_values(scene, exchanged, others),
    )
