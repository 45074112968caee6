import json
import shutil

import pytest

from diffsight.backbones.cards import assets

QUICK = ["--policy", "exhaustive", "--draws", "2", "--severities", "5"]


@pytest.fixture
def robustness(run, sd, photos):
    return lambda *arguments: run("robustness", "--task", photos, "--model", sd, "--type", "fog", *arguments)


def test_accuracies_by_corruption_and_severity(robustness, tmp_path):
    done = robustness("--out", tmp_path / "out", *QUICK)
    assert done.code == 0, done.err
    assert "2 runs" in done.out
    assert all(word in done.out for word in ("fog", "clean", "severity 5"))
    again = robustness("--out", tmp_path / "out", *QUICK, "--reference", tmp_path / "out", "--json")
    found = json.loads(again.out)["metrics"]
    assert found["by_type"].keys() == {"fog"}
    kept = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert {key: kept[key] for key in found} == found
    assert kept["severities"] == [5]


def test_a_reference_of_other_images_is_refused_before_the_work(run, sd, photos, tmp_path):
    asked = ["robustness", "--task", photos, "--model", sd, "--type", "fog", *QUICK]
    assert run(*asked, "--limit", "3", "--out", tmp_path / "three").code == 0
    done = run(*asked, "--out", tmp_path / "out", "--reference", tmp_path / "three")
    assert (done.code, "they differ in data" in done.err) == (2, True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["clean"]


def test_what_is_left_out_is_told(run, sd, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "cat" / "broken.png").write_text("not an image")
    asked = ["robustness", "--task", tmp_path / "photos", "--model", sd, "--type", "fog", "--out", tmp_path / "out"]
    done = run(*asked, *QUICK)
    assert done.code == 3, done.err
    assert "Left out: 1 of 5 images" in done.out
    assert json.loads(run(*asked, *QUICK, "--json").out)["failed"] == {"clean": 1, "fog-5": 1}


def test_corruptions_without_a_relative_error_and_the_protocol_are_told(run, tmp_path):
    samples = assets() / "samples"
    asked = ["--task", samples, "--model", "tiny-shapes-clip", "--type", "jpeg-compression", "--severities", "1"]
    asked += ["--limit", "12", "--out", tmp_path / "out"]
    assert run("robustness", *asked).code == 0
    done = run("robustness", *asked, "--reference", tmp_path / "out")
    assert "No relative mCE" in done.out
    assert "Protocol: zero-shot" in done.out
    assert "2 of its 10 classes" in done.err


def test_what_it_would_cost(robustness, tmp_path):
    done = robustness("--dry-run", *QUICK, "--json")
    assert json.loads(done.out)["images"] == 8
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --out DIR"),
        (["--out", "x", "--severities", "9"], "from 1 to 5"),
        (["--out", "x", "--type", "frog"], "'fog'"),
        (["--out", "x", "--reference", "nowhere", *QUICK], "nowhere has no run 'clean'"),
    ],
)
def test_wrong_input_is_refused(robustness, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = robustness(*arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "x").exists()
