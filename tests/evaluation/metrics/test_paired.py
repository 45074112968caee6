import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.errors import InputError, RunError
from diffsight.evaluation.metrics.paired import Answers, compare_answers, differences, mcnemar, newcombe, read_answers
from diffsight.store.run import Manifest, Run

NAMES = ("cat", "dog", "cow")
ASKED = {
    "task": "pets",
    "task version": 1,
    "data": {"images": 8, "ids and labels": "ab12"},
    "class names": NAMES,
}


def answers(correct, *, labels=None, name="A", failed=(), metric="top1", **asked):
    ids = [f"{index}.png" for index in range(len(correct))]
    known = [id for id, right in zip(ids, correct, strict=True) if right is not None]
    labels = dict(zip(ids, labels or [0] * len(ids), strict=True))
    return Answers(
        name=name,
        asked=ASKED | asked,
        metric=metric,
        labels={id: labels[id] for id in known},
        correct={id: bool(right) for id, right in zip(ids, correct, strict=True) if right is not None},
        failed=frozenset(failed),
    )


def from_table(both, first, second, neither, **options):
    a = [1] * both + [1] * first + [0] * second + [0] * neither
    b = [1] * both + [0] * first + [1] * second + [0] * neither
    return compare_answers(answers(a), answers(b, name="B"), **options)


# Bentur et al. 2009 in Fagerland, Lydersen & Laake, Statistics in Medicine 33 (2014); and Cavo et al. 2012, as the R
# package contingencytables prints it (Newcombe_square_and_add_CI_paired_2x2).
@pytest.mark.parametrize(
    ("table", "value", "low", "high", "digits"),
    [((1, 1, 7, 12), -0.286, -0.507, -0.026, 3), ((59, 6, 16, 80), -0.0621, -0.1186, -0.0046, 4)],
)
def test_newcombes_interval_as_published(table, value, low, high, digits):
    found = newcombe(table)
    assert [round(found.value, digits), round(found.low, digits), round(found.high, digits)] == [value, low, high]


def test_mcnemars_test_by_hand():
    # One and seven disagreements: 2 (1 + 8) / 2^8.
    assert mcnemar(1, 7) == mcnemar(7, 1) == pytest.approx(18 / 256)
    assert mcnemar(0, 0) == mcnemar(4, 4) == 1


def test_bootstrap_is_near_the_interval_in_a_textbook():
    # Agresti, Categorical Data Analysis, §10.1: approval in two surveys, 944 and 880 of 1600, -0.04 ± 1.96 * 0.0095.
    found = from_table(794, 150, 86, 570)
    assert found.difference.value == pytest.approx(0.04)
    assert [found.bootstrap.low, found.bootstrap.high] == pytest.approx([0.04 - 0.0187, 0.04 + 0.0187], abs=0.001)
    assert [found.difference.low, found.difference.high] == pytest.approx([0.0213, 0.0587], abs=0.001)
    assert found.p_value < 1e-4


def test_the_shape_of_a_comparison():
    found = from_table(3, 4, 1, 2)
    assert (found.images, found.both, found.first_only, found.second_only, found.neither) == (10, 3, 4, 1, 2)
    assert (found.first, found.second) == (0.7, 0.4)
    assert found.p_value == mcnemar(4, 1)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["names"] == ["A", "B"]


@given(st.tuples(*[st.integers(0, 12)] * 4).filter(any), st.sampled_from(["top1", "mean_per_class"]))
def test_swapping_the_runs_turns_the_difference(table, metric):
    both, first, second, neither = table
    there = from_table(*table, metric=metric, resamples=400)
    back = from_table(both, second, first, neither, metric=metric, resamples=400)
    assert back.difference.value == pytest.approx(-there.difference.value)
    assert there.difference.low <= there.difference.value <= there.difference.high
    assert there.difference.low >= -1
    assert there.difference.high <= 1
    assert 0 < there.p_value <= 1
    if metric == "top1":
        assert back.difference.low == pytest.approx(-there.difference.high)
        assert back.p_value == there.p_value


def test_runs_that_never_disagree_still_have_an_interval():
    found = from_table(20, 0, 0, 5)
    assert found.difference.value == 0
    assert found.bootstrap.low == found.bootstrap.high == 0
    assert found.difference.low < 0 < found.difference.high
    assert found.p_value == 1


def test_mean_per_class_counts_classes_alike():
    labels = [0] * 6 + [1] * 2
    a = answers([1, 1, 1, 1, 1, 1, 0, 0], labels=labels)
    b = answers([1, 1, 1, 0, 0, 0, 1, 1], labels=labels, name="B")
    assert compare_answers(a, b).difference.value == pytest.approx(1 / 8)
    found = compare_answers(a, b, metric="mean_per_class")
    assert found.difference.value == pytest.approx((3 / 6 - 2 / 2) / 2)
    # All five disagreements may swap: 2^5 outcomes.
    outcomes = [
        abs((sum(s[:3]) / 6 + sum(s[3:]) / 2) / 2) >= 0.25 - 1e-12
        for s in np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    ]
    assert found.p_value == pytest.approx(np.mean(outcomes), abs=0.02)


def test_failures_are_left_out_or_wrong():
    a = answers([1, 1, 0, None, None], failed=["3.png", "4.png"])
    b = answers([1, 0, 0, 1, None], name="B", failed=["4.png"])
    out = compare_answers(a, b)
    assert (out.images, out.first_only, out.second_only) == (3, 1, 0)
    assert out.coverage == {"images": 5, "first": 3, "second": 4, "both": 3, "neither": 1}
    wrong = compare_answers(a, b, failures="wrong")
    assert (wrong.images, wrong.first_only, wrong.second_only) == (4, 1, 1)


def test_images_that_were_left_out_on_purpose_are_no_failures():
    a = answers([1, 1, None, None])
    b = answers([1, 0, 0, 1], name="B")
    assert compare_answers(a, b, failures="wrong").images == 2


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="no labelled image in common"):
        compare_answers(answers([1, None]), answers([None, 1], name="B"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"task": "cars"}, "task: 'pets' in the first, 'cars' in the second"),
        ({"task version": 2}, "task version: 1 in the first, 2 in the second"),
        ({"data": {"images": 9, "ids and labels": "x"}}, "images: 8 in the first, 9 in the second"),
        ({"data": {"images": 8, "ids and labels": "x"}}, "images: other ids or labels"),
        ({"class names": ("cat", "hen", "cow")}, "class 1 is 'dog' in the first, 'hen' in the second"),
        ({"class names": ("cat",)}, "class names: 3 in the first, 1 in the second"),
    ],
)
def test_what_must_not_be_compared_is_refused_with_what_differs(change, says):
    a, b = answers([1, 0]), answers([1, 0], name="B", **change)
    with pytest.raises(InputError, match="A and B must not be compared") as refused:
        compare_answers(a, b)
    assert says in str(refused.value)
    assert differences(a, a) == []


def test_other_labels_are_refused():
    with pytest.raises(InputError, match=r"1 images have others, '1\.png' for one"):
        compare_answers(answers([1, 1], labels=[0, 1]), answers([1, 1], labels=[0, 2], name="B"))


def make_run(path, *, images, scored, fields=None, tables=True):
    known = {
        "task": {"name": "pets", "version": 1, "metric": "top1"},
        "data": {"source": "folder:x", "images": images, "ids": "ab12"},
        "classes": list(NAMES),
    }
    with Run.open(path, Manifest(known if fields is None else fields, {})) as run:
        table = pa.table(
            {
                "id": pa.array([f"{index}.png" for index in range(scored)], pa.string()),
                "label": pa.array([index % 3 if index else None for index in range(scored)], pa.int32()),
                "prediction": pa.array([1] * scored, pa.int32()),
                "tie": pa.array([index == 4 for index in range(scored)]),
            }
        )
        run.commit({"predictions": table} if tables else {}, failures=[{"id": "bad.png", "reason": "text"}])
    return path


def test_reading_a_run(tmp_path):
    found = read_answers(make_run(tmp_path / "run", images=8, scored=7))
    assert found.failed == {"bad.png"}
    assert found.correct == {
        "1.png": True,
        "2.png": False,
        "3.png": False,
        "4.png": False,
        "5.png": False,
        "6.png": False,
    }
    assert found.labels["4.png"] == 1  # right, but a tie
    assert found.asked["class names"] == NAMES
    assert found.name == str(tmp_path / "run")


def test_unfinished_runs_are_refused(tmp_path):
    with pytest.raises(InputError, match="not finished: 6 of 9 images"):
        read_answers(make_run(tmp_path / "run", images=9, scored=5))


def test_runs_of_something_else_are_refused(tmp_path):
    with pytest.raises(InputError, match="no predictions of classes"):
        read_answers(make_run(tmp_path / "a", images=1, scored=0, fields={"task": {"name": "x"}}))
    with pytest.raises(InputError, match="no predictions of classes"):
        read_answers(make_run(tmp_path / "b", images=1, scored=0, tables=False))
    with pytest.raises(RunError, match="not a run"):
        read_answers(tmp_path)
