import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.errors import InputError
from diffsight.evaluation.metrics.corruption import (
    Corrupted,
    ErrorRates,
    corruption_errors,
    relative_corruption_errors,
    summarize_corruptions,
)

# Mean error rates of AlexNet over five severities, by which github.com/hendrycks/robustness normalises; top-1
# accuracies of torchvision's ResNet-50; and CE of a ResNet-50 in table 1 of 1903.12261.
PUBLISHED = {
    "gaussian noise": (0.886428, 29.29, 80),
    "impulse noise": (0.922640, 23.81, 83),
    "defocus blur": (0.819880, 38.75, 75),
    "glass blur": (0.826268, 26.79, 89),
    "frost": (0.826572, 38.14, 75),
    "fog": (0.819324, 45.83, 66),
    "brightness": (0.564592, 68.02, 57),
    "contrast": (0.853204, 39.06, 71),
    "elastic": (0.646056, 45.25, 85),
}


def rates(errors, clean=None, types=None):
    errors = np.array(errors, float)
    return ErrorRates(types=tuple(types or map(str, range(len(errors)))), errors=errors, clean=clean)


def test_corruption_errors_as_published():
    alexnet = rates([[row[0]] for row in PUBLISHED.values()], types=PUBLISHED)
    resnet = rates([[1 - row[1] / 100] for row in PUBLISHED.values()], types=PUBLISHED)
    found = corruption_errors(resnet, alexnet)
    assert {name: round(100 * value) for name, value in found.items()} == {k: row[2] for k, row in PUBLISHED.items()}


def test_equations_by_hand():
    # Eq. 1: (0.3 + 0.5) / (0.6 + 1.0). Eq. 2: (0.3 + 0.5 - 2 * 0.1) / (0.6 + 1.0 - 2 * 0.3).
    mine, theirs = rates([[0.3, 0.5]], 0.1), rates([[0.6, 1.0]], 0.3)
    assert corruption_errors(mine, theirs) == {"0": pytest.approx(0.5)}
    assert relative_corruption_errors(mine, theirs) == {"0": pytest.approx(0.6)}


def answers(seed, accuracy, types=("snow", "fog"), images=200, clean=0.9):
    rng = np.random.default_rng(seed)
    hardness = rng.random(images)  # of the images, the same under all corruptions
    correct = np.stack([[hardness < a for a in row] for row in accuracy])
    return Corrupted(types=types, correct=correct, clean=hardness < clean)


MINE = answers(0, [[0.8, 0.6], [0.7, 0.5]])
THEIRS = answers(0, [[0.5, 0.4], [0.6, 0.3]], clean=0.8)


def test_summary_by_hand():
    found = summarize_corruptions(MINE, reference=THEIRS)
    cells = MINE.correct.mean(axis=2)
    assert found.mean.value == pytest.approx(cells.mean())
    assert found.by_type["fog"].value == pytest.approx(cells[1].mean())
    assert [each.value for each in found.by_severity] == pytest.approx(cells.mean(axis=0))
    expected = corruption_errors(rates(1 - cells), rates(1 - THEIRS.correct.mean(axis=2)))
    assert [found.corruption_errors[name].value for name in MINE.types] == pytest.approx(list(expected.values()))
    assert found.mce.value == pytest.approx(np.mean(list(expected.values())))
    relative = relative_corruption_errors(
        rates(1 - cells, 1 - MINE.clean.mean()), rates(1 - THEIRS.correct.mean(axis=2), 1 - THEIRS.clean.mean())
    )
    assert found.relative_mce.value == pytest.approx(np.mean(list(relative.values())))
    assert found.undefined == ()
    assert found.mce.low < found.mce.value < found.mce.high
    json.dumps(found.to_dict(), allow_nan=False)


def test_interval_is_that_of_images_which_all_corruptions_share():
    # An image that is hard is hard under all corruptions here: their mean varies as one image does, not as four.
    found = summarize_corruptions(answers(1, [[0.6] * 2] * 2, images=400)).mean
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * (0.6 * 0.4 / 400) ** 0.5, rel=0.15)


def test_the_same_model_has_exactly_one():
    found = summarize_corruptions(MINE, reference=MINE)
    assert (found.mce.low, found.mce.value, found.mce.high) == pytest.approx((1, 1, 1))
    assert found.relative_mce.value == pytest.approx(1)


def test_published_rates_as_reference_may_be_means_in_another_order():
    reference = ErrorRates(types=("fog", "snow"), errors=np.array([[0.5], [0.8]]))
    found = summarize_corruptions(MINE, reference=reference)
    cells = 1 - MINE.correct.mean(axis=2)
    assert found.corruption_errors["snow"].value == pytest.approx(cells[0].mean() / 0.8)
    assert found.relative_mce is None
    assert summarize_corruptions(MINE).mce is None


def test_corruptions_that_do_not_hurt_the_reference_have_no_relative_error():
    reference = ErrorRates(types=("snow", "fog"), errors=np.array([[0.5], [0.2]]), clean=0.2)
    found = summarize_corruptions(MINE, reference=reference)
    assert found.undefined == ("fog",)
    assert found.relative_mce is not None
    # Rounding is no loss: 0.14, 0.14 and 0.02 wrong have the mean 0.1, and not quite in floating point.
    right = np.arange(50)
    correct = np.stack([[right >= wrong for wrong in (7, 7, 1)]])
    reference = Corrupted(types=("fog",), correct=correct, clean=right >= 5)
    found = summarize_corruptions(reference, reference=reference)
    assert found.relative_mce is None
    assert found.undefined == ("fog",)


@given(st.floats(0.05, 1), st.lists(st.floats(0.01, 1), min_size=2, max_size=4))
def test_scaling_all_errors_scales_every_ce(factor, errors):
    reference = rates([[e] for e in errors])
    scaled = rates([[e * factor] for e in errors])
    assert list(corruption_errors(scaled, reference).values()) == pytest.approx([factor] * len(errors))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(InputError, match="not in percent"):
        rates([[76.7]])
    with pytest.raises(InputError, match="shape"):
        ErrorRates(types=("snow",), errors=np.zeros((2, 5)))
    with pytest.raises(InputError, match="named twice"):
        rates([[0.1], [0.2]], types=("snow", "snow"))
    with pytest.raises(InputError, match="rain, snow"):
        corruption_errors(rates([[0.1]], types=("snow",)), rates([[0.1]], types=("rain",)))
    with pytest.raises(InputError, match="no error under '0'"):
        corruption_errors(rates([[0.1]]), rates([[0.0]]))
    with pytest.raises(InputError, match="clean"):
        relative_corruption_errors(rates([[0.1]], 0.1), rates([[0.2]]))
    with pytest.raises(InputError, match="same images"):
        Corrupted(types=("snow",), correct=np.ones((1, 2, 3), bool), clean=np.ones(4, bool))
    with pytest.raises(InputError, match="100 images and the model 200"):
        summarize_corruptions(MINE, reference=answers(0, [[0.5] * 2] * 2, images=100))
