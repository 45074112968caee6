import json

import numpy as np
import pytest

from diffsight.errors import InputError
from diffsight.evaluation.metrics.summary import summary

NAMES = ("cat", "dog", "cow", "pig", "hen", "fox")


def report(**changes):
    probabilities = np.full((5, 6), 0.02)
    probabilities[range(5), [0, 1, 1, 2, 3]] = 0.9
    values = {
        "labels": [0, 1, 0, 2, 3],
        "predictions": [0, 1, 1, 2, 3],
        "probabilities": probabilities,
        "ties": [False] * 5,
        "calls": [10, 10, 10, 10, 60],
        "failures": 0,
        "class_names": NAMES,
    } | changes
    result = summary(**values)
    json.dumps(result, allow_nan=False)
    return result


def test_summary():
    result = report()
    assert result["value"] == result["top1"]["value"] == 0.8
    assert result["mean_per_class"]["value"] == pytest.approx(3.5 / 4)
    assert result["top5"]["value"] == 0.8  # the label of the wrong image ties with four others for the second place
    assert result["coverage"] == 1
    assert result["calls"]["total"] == 100
    assert result["calls"]["median"] == 10
    assert result["per_class"][0] == {"name": "cat", "images": 2, "correct": 1}
    assert result["calibration"]["mean_confidence"] == pytest.approx(0.9)
    assert result["calibration"]["ece"] == pytest.approx(0.1)
    assert report(metric="mean_per_class")["value"] == result["mean_per_class"]["value"]


def test_failures_lower_coverage_and_not_accuracy():
    result = report(failures=15)
    assert result["top1"] == report()["top1"]
    assert (result["images"], result["scored"], result["failed"], result["coverage"]) == (20, 5, 15, 0.25)


def test_tie_is_wrong_whatever_was_predicted():
    result = report(ties=[True, False, False, False, False])
    assert result["ties"] == 1
    assert result["top1"]["value"] == 0.6
    assert result["per_class"][0]["correct"] == 0


def test_missing_prediction_is_wrong():
    assert report(predictions=[None, 1, 1, 2, 3])["top1"]["value"] == 0.6


def test_images_without_label_have_no_part_in_accuracy():
    result = report(labels=[None, 1, 0, 2, None])
    assert result["labelled"] == 3
    assert result["top1"]["value"] == pytest.approx(2 / 3)
    assert result["coverage"] == 1
    nothing = report(labels=[None] * 5)
    assert nothing["value"] is nothing["top1"] is nothing["calibration"] is None
    assert nothing["calls"]["total"] == 100


def test_all_images_failed():
    result = report(labels=[], predictions=[], probabilities=np.zeros((0, 6)), ties=[], calls=[], failures=3)
    assert result["value"] is None
    assert result["coverage"] == 0


def test_few_classes_have_no_top5():
    assert report(class_names=NAMES[:5], probabilities=None)["top5"] is None
    assert report(probabilities=None)["calibration"] is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"predictions": [0, 1]}, "5 labels but 2 predictions"),
        ({"labels": [0, 1, 0, 2, 6]}, "label of image 4 is 6"),
        ({"predictions": [0, 1, -3, 2, 3]}, "prediction of image 2 is -3"),
        ({"probabilities": np.full((5, 4), 0.25)}, "6 classes"),
        ({"probabilities": np.full((5, 6), 0.1)}, "probabilities of image 0"),
        ({"probabilities": np.full((5, 6), np.nan)}, "probabilities of image 0"),
    ],
)
def test_impossible_tables_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        report(**changes)
