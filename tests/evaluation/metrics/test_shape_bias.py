import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.evaluation.metrics.shape_bias import cue_conflict

NAMES = ("cat", "elephant", "clock")


def count(predictions, shapes, textures, **options):
    return cue_conflict(predictions=predictions, shapes=shapes, textures=textures, class_names=NAMES, **options)


def test_bias_and_accuracy_by_hand():
    # Geirhos et al. 2019 (1811.12231): of the images with the shape's or the texture's class, the share of the shape's.
    found = count([0, 0, 1, 2, 1, None, 0], [0, 0, 0, 0, 2, 2, 1], [1, 1, 1, 1, 1, 0, 1])
    # The last image has the same cue twice. Shape: 2, texture: 2 (a cat and a clock with the skin of an elephant).
    assert (found.images, found.same_cue, found.shape, found.texture, found.other) == (6, 1, 2, 2, 2)
    assert found.shape_bias == wilson(2, 4)
    assert found.shape_accuracy == wilson(2, 6)
    assert found.texture_accuracy == wilson(2, 6)


def test_a_model_may_have_a_bias_of_one_and_hardly_any_accuracy():
    found = count([0] + [2] * 9, [0] * 10, [1] * 10)
    assert found.shape_bias.value == 1
    assert found.shape_accuracy.value == 0.1


def test_classes_are_those_of_the_shape():
    found = count([0, 0, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0])
    assert set(found.by_class) == {"cat", "elephant"}
    assert found.by_class["cat"].shape_bias.value == 1
    assert found.by_class["elephant"].shape_bias.value == 0.5
    assert found.mean_class_bias == 0.75
    shown = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert shown["shape_bias"]["value"] == 0.75
    assert shown["by_class"]["cat"]["images"] == 2


def test_ties_decide_for_nothing():
    assert count([0, 0], [0, 0], [1, 1], ties=[True, False]).shape == 1


def test_nothing_decided_has_no_bias():
    found = count([2, None], [0, 0], [1, 1])
    assert found.shape_bias is found.mean_class_bias is None
    assert found.shape_accuracy.value == 0
    assert count([], [], []).to_dict()["shape_accuracy"] is None


cues = st.integers(0, 2)


@given(st.lists(st.tuples(st.none() | cues, cues, cues), max_size=20))
def test_every_image_is_counted_once_and_swapping_the_cues_swaps_the_bias(images):
    predictions, shapes, textures = (list(column) for column in zip(*images, strict=True)) if images else ([], [], [])
    found, swapped = count(predictions, shapes, textures), count(predictions, textures, shapes)
    assert found.shape + found.texture + found.other + found.same_cue == len(images)
    assert (found.shape, found.texture) == (swapped.texture, swapped.shape)
    assert sum(part.shape for part in found.by_class.values()) == found.shape
    if found.shape_bias is not None:
        assert found.shape_bias.value == pytest.approx(1 - swapped.shape_bias.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0], [0, 1], [1, 0]), "one of each"),
        (([0], [3], [1]), "shape of image 0 is 3"),
        (([0], [0], [-1]), "texture of image 0 is -1"),
        (([5], [0], [1]), "Predictions"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        count(*arguments)
