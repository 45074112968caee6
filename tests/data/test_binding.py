"""Scenes are what their captions say, and the false caption is false."""

from collections import Counter

import numpy as np
import pytest

from diffsight.data.binding import ATTRIBUTES, CONTROLS, TASKS, binding_examples
from diffsight.data.scenes import COLOURS, HELD_OUT, VALUES, Scene, caption, draw, random_scene
from diffsight.errors import InputError


def holds(text, scene):
    """Whether a caption is true of a scene: its words, read one after another."""
    words = text.lower().replace(" and ", ";").split(";")
    things = list(scene.things)
    told = []
    for part in words:
        values = {name: next((v for v in VALUES[name] if v in part.split()), None) for name in VALUES}
        told.append({name: value for name, value in values.items() if value is not None})
    fits = [[all(getattr(thing, k) == v for k, v in one.items()) for thing in things] for one in told]
    if len(told) == 1:
        return any(fits[0])
    # A caption without places says nothing of the order.
    return (fits[0][0] and fits[1][1]) or (fits[0][1] and fits[1][0])


def test_there_are_the_papers_20_tests():
    assert len(TASKS) == len(set(TASKS)) == 2 + 6 + 12
    assert set(CONTROLS) < set(TASKS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("held_out", [False, True])
def test_the_true_caption_is_true_and_the_false_one_is_not(task, held_out):
    for example in binding_examples(task, 40, seed=3, held_out=held_out):
        assert holds(example.true, example.scene)
        assert not holds(example.false, example.scene)
        assert holds(example.false, example.changed)
        assert not holds(example.true, example.changed)
        unseen = [any(thing.held_out for thing in scene.things) for scene in (example.scene, example.changed)]
        if not held_out:
            assert unseen == [False, False]
        elif task in CONTROLS or set(task.replace("|", ",").split(",")) == {"shape", "colour"}:
            assert any(unseen)
        else:
            assert unseen == [True, True]
        left, right = example.changed.things
        assert left.position == "left"
        assert right.position == "right"
        for thing in (*example.scene.things, *example.changed.things):
            x, y = thing.centre
            low = 0.0 if thing.position == "left" else 0.5
            assert low - 1e-9 <= x - thing.radius
            assert x + thing.radius <= low + 0.5 + 1e-9
            assert thing.radius - 1e-9 <= y <= 1 - thing.radius + 1e-9


@pytest.mark.parametrize("task", ["colour|shape", "shape|colour", "shape,colour"])
def test_one_caption_of_a_held_out_scene_names_what_is_held_out_and_as_often_as_not_it_is_the_true_one(task):
    def unheard(text):
        parts = [part.split() for part in text.lower().split(" and ")]
        return any((shape, colour) in HELD_OUT for _, colour, shape in parts)

    examples = list(binding_examples(task, 400, held_out=True))
    assert all(unheard(example.true) != unheard(example.false) for example in examples)
    assert 160 < sum(unheard(example.true) for example in examples) < 240  # 400 coins: 4 standard deviations
    examples = list(binding_examples(task, 200))
    assert not any(unheard(text) for example in examples for text in (example.true, example.false))


@pytest.mark.parametrize("task", ["shape", "colour", "shape,colour", "colour|shape", "shape|colour", "colour|size"])
@pytest.mark.parametrize("held_out", [False, True])
def test_who_knows_how_often_each_caption_is_true_cannot_tell_which_one_is(task, held_out):
    examples = list(binding_examples(task, 400, held_out=held_out))
    true, false = (Counter(getattr(example, side) for example in examples[:200]) for side in ("true", "false"))

    def share(text):
        return (true[text] + 1) / (true[text] + false[text] + 2)

    right = [np.sign(share(one.true) - share(one.false)) / 2 + 0.5 for one in examples[200:]]
    assert abs(np.mean(right) - 0.5) < 4 * 0.5 / np.sqrt(200)


def test_examples_are_the_same_for_the_same_arguments():
    one, two, other = (list(binding_examples("size,position", 5, seed=seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other
    assert list(binding_examples("size,position", 3, seed=1)) == one[:3]
    with pytest.raises(InputError, match="colour"):
        next(binding_examples("color", 1))


def test_training_scenes_hold_nothing_that_is_held_out():
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng, count=count) for count in (1, 2) for _ in range(200)]
    assert not any(thing.held_out for scene in scenes for thing in scene.things)
    # Every word is seen all the same.
    for name, values in VALUES.items():
        assert {getattr(thing, name) for scene in scenes for thing in scene.things} == set(values)


@pytest.mark.parametrize("side", [32, 96])
def test_a_scene_is_painted_where_and_in_the_colour_that_it_says(side):
    rng = np.random.default_rng(1)
    for _ in range(30):
        scene = random_scene(rng)
        pixels = np.asarray(draw(scene, side)).astype(int)
        assert pixels.shape == (side, side, 3)
        for thing in scene.things:
            if thing.texture == "solid":
                x, y = (int(value * side) for value in thing.centre)
                assert np.abs(pixels[y, x] - COLOURS[thing.colour]).max() <= 2
        corners = pixels[[0, 0], [0, -1]]
        assert np.abs(corners - scene.background).min() <= 2


def test_captions_have_the_papers_grammar():
    rng = np.random.default_rng(2)
    scene = random_scene(rng)
    left, right = scene.things
    pair = caption(scene.things, ATTRIBUTES)
    assert pair == (
        f"On the left is a {left.size} {left.colour} {left.shape} and "
        f"on the right is a {right.size} {right.colour} {right.shape}"
    )
    assert caption([left], ["size"]) == f"A {left.size} object"
    assert isinstance(scene, Scene)
