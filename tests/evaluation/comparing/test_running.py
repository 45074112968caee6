import json
from dataclasses import replace

import pytest
from digit_folders import NAMES, write_photographs
from encoders import save_dinov2, save_timm

from diffsight.backbones import load
from diffsight.errors import RunError
from diffsight.evaluation.comparing import running
from diffsight.evaluation.comparing.forecast import forecast
from diffsight.evaluation.comparing.question import open_question
from diffsight.evaluation.comparing.rows import CompareSettings
from diffsight.evaluation.comparing.running import compare, read_comparison
from diffsight.evaluation.comparing.work import Work
from diffsight.evaluation.metrics.paired import compare_answers, read_answers
from diffsight.evaluation.task import folder_task
from diffsight.report.compared import comparison_page
from diffsight.scoring.elimination import Exhaustive
from diffsight.store.run import Run
from diffsight.synthesis.options import TrainSettings
from diffsight.zero_shot.settings import Settings

QUICK = CompareSettings(
    seeds=2,
    per_class=2,
    scoring=Settings(policy=Exhaustive(num_draws=2)),
    training=TrainSettings(
        network="test_resnet", epochs=1, batch_size=8, validation_share=0.0, select="last", patience=None
    ),
)


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 8, side=28)


@pytest.fixture(scope="module")
def question(photographs):
    return open_question(folder_task(photographs))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    place = tmp_path_factory.mktemp("baselines")
    dino, timm = save_dinov2(place / "dino"), save_timm(place / "timm", (*NAMES, "number two"))
    return replace(QUICK, baselines=("tiny-shapes-clip", str(dino), f"timm:{timm}"))


@pytest.fixture(scope="module")
def everything(question, backbone, settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "all"
    return out, compare(question, out, labels=(0, 1, 4), backbone=backbone, settings=settings, device="cpu")


def test_every_method_gives_a_row(everything, question):
    out, result = everything
    methods = [(row["labels"], row["method"]) for row in result["rows"]]
    zero = ["diffusion", "zero-shot", "pretrained", "synthetic", "gdc"]
    few = ["features", "pixels", "pixels-knn", "probe", "probe", "probe", "knn", "knn", "knn"]
    assert methods == [(0, name) for name in zero] + [(1, name) for name in few] + [(4, name) for name in few]
    for row in result["rows"]:
        assert row["failure"] is None, row
        assert (row["images"], row["coverage"]) == (12, 1.0)
        assert 0 <= row["low"] <= row["value"] <= row["high"] <= 1
        assert row["seconds"] > 0
        assert Run.load(out / row["runs"][0]).metrics()["speed"]["seconds_per_image"] == row["seconds"]
        assert (row["flops"] or 0) > 0 or row["method"] == "pixels-knn"
        assert row["memory"] is None
        assert row["said"].startswith(row["protocol"])
    assert json.loads(json.dumps(result)) == result
    assert {key: value for key, value in read_comparison(out).items() if key != "schema"} == result


def test_what_each_costs_and_has_learnt_from(everything):
    rows = {(row["method"], row["labels"]): row for row in everything[1]["rows"]}
    assert rows["diffusion", 0]["calls"] == 3 * 2
    assert rows["features", 1]["calls"] == rows["gdc", 0]["calls"] == 1
    assert rows["pixels", 1]["calls"] == rows["zero-shot", 0]["calls"] == 0
    assert rows["synthetic", 0]["once"]["calls"] > 0
    assert rows["synthetic", 0]["once"]["seconds"] > 0
    assert rows["features", 4]["once"]["calls"] == 12
    assert rows["pretrained", 0]["protocol"] == "supervised"
    assert rows["features", 4]["protocol"] == "few-shot"
    assert rows["features", 4]["sd"] is not None
    assert rows["zero-shot", 0]["sd"] is None
    # Four images of each class are all that there are, so that seeds learn from the same.
    assert rows["pixels-knn", 4]["sd"] == 0


def test_each_row_is_a_run_that_can_be_compared_by_image(everything):
    out, result = everything
    runs = [read_answers(out / row["runs"][0]) for row in result["rows"]]
    for other in runs[1:]:
        assert compare_answers(runs[0], other, resamples=10).images == 12
    assert len(next(row for row in result["rows"] if row["method"] == "features")["runs"]) == 2


def test_agreement_and_advice(everything):
    result = everything[1]
    assert len(result["agreement"]["keys"]) == len(result["rows"])
    assert [one["labels"] for one in result["recommendations"]] == [0, 1, 4]
    assert all(one["reason"] for one in result["recommendations"])
    assert any("tiny-fashion was trained on the classes of fashion-mnist" in note for note in result["notes"])


def test_rows_that_are_there_are_taken(everything, question, backbone, settings, monkeypatch):
    out, result = everything
    monkeypatch.setattr(running, "WAYS", dict.fromkeys(running.WAYS, lambda *_: pytest.fail("computed again")))
    again = compare(question, out, labels=(0, 1, 4), backbone=backbone, settings=settings, device="cpu")
    assert again == result
    fewer = replace(settings, methods=("diffusion", "pixels"))
    part = compare(question, out, labels=(0, 4), backbone=backbone, settings=fewer, device="cpu")
    assert [row["method"] for row in part["rows"]] == ["diffusion", "pixels"]


def test_another_comparison_is_refused(everything, question, backbone, settings, photographs):
    out, _ = everything
    with pytest.raises(RunError, match=r"comparison with other settings.*\n  settings\.per_class: 2 .* 3 asked now"):
        compare(question, out, labels=(0,), backbone=backbone, settings=replace(settings, per_class=3), device="cpu")
    other = open_question(folder_task(photographs), seed=1)
    with pytest.raises(RunError, match=r"data\.ids"):
        compare(other, out, labels=(0,), backbone=backbone, settings=settings, device="cpu")


def test_a_foreign_directory_is_refused(question, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        compare(question, tmp_path, labels=(1,), settings=replace(QUICK, methods=("pixels",)), device="cpu")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_method_that_fails_is_a_row_with_its_reason(question, tmp_path):
    other = save_timm(tmp_path / "timm", ("cat", "dog"))
    settings = replace(QUICK, methods=("pretrained", "features", "pixels"), baselines=(f"timm:{other}",))
    result = compare(question, tmp_path / "out", labels=(0, 1), settings=settings, device="cpu")
    rows = {row["method"]: row for row in result["rows"]}
    assert "no class 'number one'" in rows["pretrained"]["failure"]
    assert "No diffusion model" in rows["features"]["failure"]
    assert rows["pixels"]["failure"] is None
    assert "pretrained" in comparison_page(result, tmp_path / "out")
    assert not (tmp_path / "out" / "rows" / rows["pretrained"]["key"] / "row.json").exists()


def test_an_interrupted_comparison_is_continued(question, everything, backbone, settings, tmp_path):
    some = replace(settings, methods=("diffusion", "gdc", "probe"))
    seen = []

    def interrupt(row):
        seen.append(row.key)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(question, tmp_path, labels=(0, 1), backbone=backbone, settings=some, device="cpu", told=interrupt)
    result = compare(question, tmp_path, labels=(0, 1), backbone=backbone, settings=some, device="cpu")
    whole = {row["key"]: row["seeds"] for row in everything[1]["rows"]}
    assert {row["key"]: row["seeds"] for row in result["rows"]} == {
        row["key"]: whole[row["key"]] for row in result["rows"]
    }


def test_images_without_labels(photographs, backbone, settings, tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, file in enumerate(sorted(photographs.rglob("*.png"))[::4]):
        (loose / f"{number}.png").write_bytes(file.read_bytes())
    (loose / "broken.png").write_text("not an image")
    question = open_question(folder_task(loose), class_names=NAMES)
    some = replace(settings, methods=("diffusion", "zero-shot", "pretrained"))
    result = compare(question, tmp_path / "out", labels=(0,), backbone=backbone, settings=some, device="cpu")
    assert all(row["value"] is None and row["failed"] == 1 for row in result["rows"])
    (advice,) = result["recommendations"]
    assert "nothing is known about accuracy" in advice["reason"]
    assert "no accuracy is known" in comparison_page(result, tmp_path / "out")


def test_from_a_hundred_labels_a_network_is_trained(tmp_path):
    many = open_question(folder_task(write_photographs(tmp_path / "set", 110)), test_share=0.05)
    settings = replace(QUICK, methods=("network",), seeds=1)
    (row,) = compare(many, tmp_path / "out", labels=(100,), settings=settings, device="cpu")["rows"]
    assert (row["method"], row["protocol"], row["failure"]) == ("network", "supervised", None)
    assert row["said"].startswith("supervised: test_resnet from scratch on 100 labels of each class")
    assert row["flops"] > 0


def test_the_page_says_it_all(everything):
    out, result = everything
    page = comparison_page(result, out)
    for text in ("Recommendation", "Agreement", "Paired differences", "timm:", "fashion-mnist", "few-shot: logistic"):
        assert text in page


def test_a_forecast_writes_nothing(question, backbone, settings, tmp_path):
    work = Work(
        question=question,
        labels=(0, 1),
        settings=replace(settings, baselines=settings.baselines[:1]),
        backbone=backbone,
        out=tmp_path,
        device=backbone.device,
    )
    rows = {(row.method, row.labels): row for row in forecast(work)}
    assert rows["diffusion", 0].calls == 12 * 6
    assert rows["gdc", 0].calls == 12 + 6  # the set is counted where it is needed first
    assert rows["features", 1].calls == len(work.training_union())
    assert all(row.failure is None and row.seconds >= 0 for row in rows.values())
    assert list(tmp_path.iterdir()) == []
