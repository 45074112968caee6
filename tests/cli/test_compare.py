import json

import pytest
from digit_folders import write_photographs

from diffsight.evaluation.comparing import running

CHEAP = ["--methods", "pixels", "--methods", "pixels-knn", "--seeds", 2, "--device", "cpu"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 12)


@pytest.fixture(scope="module")
def loose(photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loose")
    for number, file in enumerate(sorted(photographs.rglob("*.png"))[::9]):
        (folder / f"{number}.png").write_bytes(file.read_bytes())
    return folder


def test_a_table_a_page_and_a_recommendation(run, photographs, tmp_path):
    out = tmp_path / "out"
    done = run("compare", "--task", photographs, *CHEAP, "--labels", "1,6", "--out", out)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "set: 18 test images of folder:set"
    assert [line.split()[:2] for line in lines[2:6]] == [
        ["1", "pixels"],
        ["1", "pixels-knn"],
        ["6", "pixels"],
        ["6", "pixels-knn"],
    ]
    assert "±" in lines[2]
    advice = [line.split(" take ")[0] for line in lines if line.startswith("With ")]
    assert advice == ["With 1 label of each class", "With 6 labels of each class"]
    assert (out / "comparison.html").read_text().count("<html") == 1
    stored = json.loads((out / "comparison.json").read_text())
    again = run("compare", "--task", photographs, *CHEAP, "--labels", "1,6", "--out", out, "--json")
    found = json.loads(again.out)
    assert found["rows"] == stored["rows"]
    assert found["page"] == str(out / "comparison.html")


def test_usual_labels_are_those_that_there_are(run, photographs, tmp_path):
    done = run("compare", "--task", photographs, *CHEAP, "--out", tmp_path / "out", "--json")
    assert [row["labels"] for row in json.loads(done.out)["rows"]] == [1, 1]


def test_a_folder_without_labels(run, loose, tmp_path):
    given = ("--classes", "number zero,number one,number six", "--baseline", "tiny-shapes-clip", "--device", "cpu")
    done = run("compare", "--task", loose, *given, "--methods", "zero-shot", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "not known" in done.out
    assert "nothing is known about accuracy" in done.out


def test_a_failed_method_is_told_and_the_exit_code_says_so(run, photographs, tmp_path):
    given = ("--baseline", "timm:nowhere/at-all", "--methods", "pretrained", "--methods", "pixels", "--seeds", 1)
    done = run("compare", "--task", photographs, *given, "--labels", "0,1", "--out", tmp_path / "out")
    assert done.code == 3
    assert "failed: timm has no network 'nowhere/at-all'" in done.out
    assert "pixels" in done.out


def test_an_interruption_says_how_to_go_on(run, photographs, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(running.WAYS, "pixels-knn", stop)
        stopped = run("compare", "--task", photographs, *CHEAP, "--labels", "1", "--out", tmp_path / "out")
    assert stopped.code == 130
    assert "same command continues" in stopped.err
    assert run("compare", "--task", photographs, *CHEAP, "--labels", "1", "--out", tmp_path / "out").code == 0


def test_a_dry_run_writes_nothing(run, photographs, tmp_path):
    done = run(
        "compare", "--task", photographs, *CHEAP, "--labels", "1", "--out", tmp_path / "out", "--dry-run", "--json"
    )
    found = json.loads(done.out)
    assert [row["method"] for row in found["rows"]] == ["pixels", "pixels-knn"]
    assert (found["calls"], found["dry_run"]) == (0, True)
    assert list(tmp_path.iterdir()) == []
    assert "Nothing was written" in run("compare", "--task", photographs, *CHEAP, "--labels", "1", "--dry-run").out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "PHOTOS"], ["--out", "--dry-run"]),
        (["--task", "fashion-mnits", "--out", "OUT"], ["fashion-mnist"]),
        (["--task", "PHOTOS", "--out", "OUT", "--methods", "pixel"], ["pixels"]),
        (["--task", "PHOTOS", "--out", "OUT", "--labels", "1,x"], ["1,x"]),
        (["--task", "PHOTOS", "--out", "OUT", "--labels", "0,7"], ["7 labels", "6 images"]),
        (["--task", "PHOTOS", "--out", "OUT", "--classes", "a,b"], ["names 2 classes"]),
        (["--task", "PHOTOS", "--out", "OUT", "--baseline", "tiny-fashion"], ["no baseline"]),
        (["--task", "LOOSE", "--out", "OUT"], ["--classes"]),
        (["--task", "LOOSE", "--out", "OUT", "--classes", "a,b", "--labels", "1"], ["No labels"]),
        (["--task", "PHOTOS", "--out", "PHOTOS", *CHEAP, "--labels", "1"], ["number_one", "no comparison"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, photographs, loose, tmp_path, arguments, words):
    stand_ins = {"PHOTOS": photographs, "LOOSE": loose, "OUT": tmp_path / "out"}
    refused = run("compare", *(stand_ins.get(argument, argument) for argument in arguments))
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_evaluate_takes_baselines(run, photographs, tmp_path):
    common = ("evaluate", "--task", photographs, "--model", "tiny-shapes-clip", "--device", "cpu")
    done = run(*common, "--limit", 4, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "Protocol: zero-shot" in done.out
    assert run(*common, "--dry-run").code == 0
    refused = run(*common, "--draws", 4, "--out", tmp_path / "other")
    assert refused.code == 2
    assert "tiny-shapes-clip has no denoising errors: leave out --draws" in refused.err
