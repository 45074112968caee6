import pytest

from diffsight.errors import InputError
from diffsight.evaluation.comparing.recommending import agreement, recommend, recommend_unlabelled
from diffsight.evaluation.comparing.rows import CompareSettings, Row, accuracy_of, entries, without_row
from diffsight.evaluation.metrics.accuracy import wilson


def row(key, value, *, labels=0, seconds=1.0, half=0.05, sd=None, failure=None):
    ends = {} if value is None else {"low": value - half, "high": value + half}
    return Row(
        key=key,
        method=key,
        model=None,
        labels=labels,
        protocol="zero-shot",
        value=value,
        sd=sd,
        seconds=seconds,
        failure=failure,
        **ends,
    )


def test_the_cheapest_within_the_interval_of_the_best():
    rows = [row("slow", 0.80, seconds=2.0), row("quick", 0.76, seconds=0.01), row("bad", 0.5, seconds=0.001)]
    (advice,) = recommend(rows, [0], classes=10)
    assert (advice["row"], advice["labels"]) == ("quick", 0)
    assert "76.0% [71.0%, 81.0%]" in advice["reason"]
    assert "slow with no labels: 80.0% [75.0%, 85.0%]" in advice["reason"]
    assert "10 ms" in advice["reason"]
    (alone,) = recommend([rows[0], rows[2]], [0], classes=10)
    assert (alone["row"], alone["reason"].split(" with ")[0]) == ("slow", "The most accurate")


def test_what_is_not_told_from_guessing_is_called_so():
    rows = [row("poor", 0.5, half=0.1)]
    assert "It is not told from guessing, which gives 50.0%." in recommend(rows, [0], classes=2)[0]["reason"]
    assert "guessing" not in recommend(rows, [0], classes=3)[0]["reason"]


def test_what_was_named_and_has_no_row_is_told():
    settings = CompareSettings(methods=("pixels", "network"), baselines=("tiny-shapes-clip",))
    assert without_row(settings, entries(settings, [0, 1])) == ["network", "tiny-shapes-clip"]
    settings = CompareSettings(methods=("pixels", "zero-shot"), baselines=("tiny-shapes-clip",))
    assert without_row(settings, entries(settings, [0, 1])) == []


def test_seeds_widen_what_counts_as_equal():
    rows = [row("best", 0.80, half=0.01, sd=0.06), row("other", 0.75, half=0.01, seconds=0.1)]
    assert recommend(rows, [0], classes=10)[0]["row"] == "other"


def test_fewer_labels_compete_and_failures_do_not():
    rows = [
        row("zero", 0.8, seconds=0.1),
        row("one", 0.5, labels=1, seconds=0.01),
        row("ten", 0.82, labels=10, seconds=0.2),
        row("broken", None, labels=10, seconds=None, failure="no memory"),
    ]
    advice = recommend(rows, [0, 1, 10], classes=10)
    assert [one["row"] for one in advice] == ["zero", "zero", "zero"]
    assert "it needs no labels" in advice[2]["reason"]
    assert recommend(rows[3:], [10], classes=10) == []


def test_agreement_with_the_others():
    answers = {
        "a": dict(enumerate([0, 1, 2, 0])),
        "b": dict(enumerate([0, 1, 2, 1])),
        "c": dict(enumerate([0, 1, 0, 1])),
    }
    named = {key: {str(id): label for id, label in each.items()} for key, each in answers.items()}
    found = agreement(named)
    assert found["pairs"] == [[1.0, 0.75, 0.5], [0.75, 1.0, 0.75], [0.5, 0.75, 1.0]]
    # b's and c's others differ on image 2 or 3 for a: a has no majority there but on 0, 1 and 3.
    assert found["others"]["a"]["images"] == 3
    assert found["others"]["a"]["value"] == pytest.approx(2 / 3)
    assert found["others"]["b"] == {
        "value": 1.0,
        "images": 2,
        **{k: getattr(wilson(2, 2), k) for k in ("low", "high")},
    }


def test_without_labels_nothing_is_said_of_accuracy():
    rows = [row("a", None, seconds=0.5), row("b", None, seconds=0.2), row("c", None, seconds=0.1)]
    agreed = agreement(
        {key: {str(i): 0 for i in range(50)} for key in ("a", "b")} | {"c": {str(i): 1 for i in range(50)}}
    )
    (advice,) = recommend_unlabelled(rows, agreed)
    assert "nothing is known about accuracy" in advice["reason"]
    assert "err alike" in advice["reason"]
    two = agreement({key: {str(i): i % 2 for i in range(4)} for key in ("a", "b")})
    (few,) = recommend_unlabelled(rows[:2], two)
    assert few["row"] == "b"
    assert "agree on 100.0%" in few["reason"]
    assert recommend_unlabelled([], agreement({})) == []


def test_accuracy_over_seeds():
    def metrics(value, images=10):
        ends = {"value": value, "low": value - 0.1, "high": value + 0.1}
        counts = {"images": images, "failed": 0, "coverage": 1.0, "labelled": images}
        return {"metric": "top1", "value": value, "top1": ends, "mean_per_class": ends, **counts}

    found = accuracy_of([metrics(0.4), metrics(0.6)])
    expected = wilson(5, 10)
    assert (found["value"], found["seeds"]) == (0.5, [0.4, 0.6])
    assert (found["low"], found["high"]) == (expected.low, expected.high)
    assert found["sd"] == pytest.approx(0.1414, abs=1e-4)
    moved = accuracy_of([metrics(0.4) | {"metric": "mean_per_class"}, metrics(0.6) | {"metric": "mean_per_class"}])
    assert (moved["low"], moved["high"]) == pytest.approx((0.4, 0.6))
    assert accuracy_of([metrics(None) if False else {**metrics(0.4), "value": None}]).get("value") is None


def test_which_rows_there_are():
    def keys(labels, **settings):
        return [entry.key for entry in entries(CompareSettings(**settings), labels)]

    assert keys([0]) == ["0000-diffusion", "0000-synthetic", "0000-gdc"]
    assert keys([1]) == ["0001-features", "0001-pixels", "0001-pixels-knn"]
    assert keys([100])[-1] == "0100-network"
    with_clip = keys([0, 1], baselines=("tiny-shapes-clip",), methods=("zero-shot", "probe", "knn"))
    assert [key.rpartition("-tiny")[0] for key in with_clip] == ["0000-zero-shot", "0001-probe", "0001-knn"]
    assert [entry.protocol for entry in entries(CompareSettings(methods=("features",)), [1, 99, 100])] == [
        "few-shot",
        "few-shot",
        "supervised",
    ]


@pytest.mark.parametrize(
    ("settings", "labels", "message"),
    [
        ({"methods": ("difusion",)}, [0], "Did you mean 'diffusion'"),
        ({"methods": ("features",)}, [0], "No method applies"),
        ({"baselines": ("tiny-fashion",)}, [0], "is no baseline"),
        ({"baselines": ("tiny-shapes-clip",) * 2}, [0], "twice"),
        ({"seeds": 0}, [0], "At least 1 seed"),
        ({"per_class": 1}, [0], "2 generated images"),
    ],
)
def test_what_makes_no_sense(settings, labels, message):
    with pytest.raises(InputError, match=message):
        entries(CompareSettings(**settings), labels)
