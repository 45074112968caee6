import json
import re
from contextlib import contextmanager
from functools import partial

import pytest

from diffsight.cli import output
from diffsight.evaluation import runner

QUICK = ["--policy", "exhaustive", "--draws", "6"]


@pytest.fixture
def evaluate(run, sd, photos):
    return lambda *arguments: run("evaluate", "--task", photos, "--model", sd, *QUICK, *arguments)


def test_metrics_with_interval_and_cost(evaluate, tmp_path, photos):
    done = evaluate("--out", tmp_path / "run")
    assert done.code == 0
    assert done.err == ""
    assert re.search(r"accuracy +\d+\.\d% \[\d+\.\d%, \d+\.\d%\] \*", done.out)
    assert re.search(r"calls per image +12\.0 ", done.out)
    assert re.search(r"coverage +4 of 4 images, 0 failed", done.out)
    assert re.search(r"ties +0", done.out)
    assert "ECE" in done.out
    assert str(tmp_path / "run") in done.out


def test_the_same_command_again_gives_the_same(evaluate, tmp_path):
    first = evaluate("--out", tmp_path / "run", "--json")
    assert evaluate("--out", tmp_path / "run", "--json").out == first.out
    assert json.loads(first.out)["metrics"]["calls"]["total"] == 4 * 2 * 6


def test_an_interrupted_run_is_continued(evaluate, tmp_path, monkeypatch):
    whole = json.loads(evaluate("--out", tmp_path / "whole", "--batch-size", 8, "--json").out)

    @contextmanager
    def interrupting(total):
        def report(images, calls):
            if images == 2:
                raise KeyboardInterrupt

        yield report

    with monkeypatch.context() as patched:
        patched.setattr(output, "progress", interrupting)
        patched.setattr(runner, "evaluate", partial(runner.evaluate, commit_every=1))
        stopped = evaluate("--out", tmp_path / "run", "--batch-size", 8)
    assert stopped.code == 130
    assert stopped.out == ""
    assert "same command continues" in stopped.err
    done = json.loads(evaluate("--out", tmp_path / "run", "--batch-size", 8, "--json").out)
    for metrics in (done["metrics"], whole["metrics"]):
        assert metrics.pop("speed")["seconds"] > 0  # the only numbers that are measured
    assert done["metrics"] == whole["metrics"]


def test_other_settings_are_refused_with_the_difference(evaluate, tmp_path):
    evaluate("--out", tmp_path / "run")
    refused = evaluate("--out", tmp_path / "run", "--seed", 1)
    assert refused.code == 2
    assert "settings.seed: 0 in the run, 1 asked now" in refused.err


def test_a_foreign_directory_is_refused(evaluate, tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    refused = evaluate("--out", tmp_path)
    assert refused.code == 2
    assert "thesis.tex" in refused.err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_bad_image_is_a_failure_and_the_exit_code_says_so(run, sd, photos, tmp_path):
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes((photos / name).read_bytes() if "cat" in name else b"text")
    done = run("evaluate", "--task", tmp_path / "data", "--model", sd, *QUICK, "--out", tmp_path / "run")
    assert done.code == 3
    assert "1 of 3 images, 2 failed" in done.out


def test_dry_run_writes_nothing(evaluate, tmp_path):
    done = evaluate("--dry-run", "--out", tmp_path / "run", "--json")
    found = json.loads(done.out)
    assert (found["images"], found["calls"], found["dry_run"]) == (4, 48, True)
    assert not (tmp_path / "run").exists()
    assert "MB" in evaluate("--dry-run").out


def test_limit_and_templates(evaluate, tmp_path):
    done = evaluate("--out", tmp_path / "run", "--limit", 3, "--template", "a {}", "--template", "{}", "--json")
    calls = json.loads(done.out)["metrics"]["calls"]
    assert calls["total"] == 3 * 2 * 2 * 6


def test_a_papers_preset_for_this_task(run, sd, photos, tmp_path):
    (tmp_path / "pets.yaml").write_text(
        f"name: pets\nversion: 1\nsource: 'folder:{photos}'\ntemplates: ['a {{}}']\nlicence: none\ncitation: none\n"
        "presets: {li2023/pets: ['a photo of a {}']}\n"
    )
    common = ("--task", tmp_path / "pets.yaml", "--model", sd, "--preset", "li2023", "--limit", 1)
    done = run("evaluate", *common, "--out", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    fields = json.loads((tmp_path / "run" / "manifest.json").read_text())["fingerprint_fields"]
    assert fields["settings"]["policy"]["samples"] == [25, 250]
    assert fields["settings"]["loss"] == "l1"
    assert fields["prompts"] == ["a photo of a cat", "a photo of a dog"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "cifar11", "--out", "x"], ["'cifar10'"]),
        (["--task", "PHOTOS"], ["--out", "--dry-run"]),
        (["--task", "nowhere.yaml", "--out", "x"], ["nowhere.yaml"]),
        (["--task", "folder:nowhere", "--out", "x"], ["nowhere"]),
        (["--task", "cifar10", "--model", "SD", "--root", "ROOT", "--out", "x"], ["ROOT", "cifar10"]),
        (["--task", "cifar10", "--split", "trian", "--model", "SD", "--root", "ROOT", "--out", "x"], ["train"]),
        (["--task", "PHOTOS", "--model", "nothing-like-it", "--out", "x"], ["tiny-fashion"]),
        (["--task", "PHOTOS", "--model", "SD", "--template", "no place", "--out", "x"], ["{}"]),
        (["--task", "PHOTOS", "--model", "DIT", "--template", "a {}", "--out", "x"], ["--template"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, sd, dit, photos, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    stand_ins = {"PHOTOS": photos, "SD": sd, "DIT": dit, "ROOT": tmp_path / "ROOT"}
    refused = run("evaluate", *(stand_ins.get(argument, argument) for argument in arguments))
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words)
    assert list(tmp_path.iterdir()) == []


def test_rescore_asks_the_stored_errors(evaluate, run, tmp_path):
    first = json.loads(evaluate("--out", tmp_path / "run", "--json").out)["metrics"]
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    again = json.loads(run("rescore", tmp_path / "run", "--json").out)["metrics"]
    assert again["top1"] == first["top1"]
    fewer = json.loads(
        run("rescore", tmp_path / "run", "--policy", "exhaustive", "--draws", 3, "--loss", "l1", "--json").out
    )
    assert fewer["metrics"]["calls"]["total"] == first["calls"]["total"] / 2
    assert "accuracy" in run("rescore", tmp_path / "run", "--weighting", "vdm").out
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["not a run"]),
        (["--policy", "raec"], ["'race'"]),
        (["--draws", "9"], ["--policy"]),
        (["--loss", "l7"], ["Unknown loss"]),
    ],
)
def test_rescore_refuses_what_makes_no_sense(run, tmp_path, arguments, words):
    refused = run("rescore", tmp_path, *arguments)
    assert refused.code == 2
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words)
