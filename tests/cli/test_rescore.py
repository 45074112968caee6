import json

import pytest
from stored_runs import informative_errors, save_run

ERRORS, LABELS = informative_errors(80, 40)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("rescore") / "run", ERRORS, LABELS)


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_weights_are_learnt_kept_and_used(run, stored, tmp_path):
    before = contents(stored)
    done = run("rescore", stored, "--learn-weights", tmp_path / "weights.json", "--share", 0.25)
    assert done.code == 0, done.err
    assert "not zero-shot" in done.out
    assert "21 images" in done.out
    assert "coverage         59 of 59 images" in done.out
    assert "Against with the run's own weights, on 59 images: " in done.out
    again = json.loads(run("rescore", stored, "--weights", tmp_path / "weights.json", "--json").out)
    learnt = json.loads(run("rescore", stored, "--learn-weights", tmp_path / "b.json", "--share", 0.25, "--json").out)
    assert again["metrics"] == learnt["metrics"]
    assert again["against"] == learnt["against"]
    assert again["weights"]["images"] == 21
    assert again["metrics"]["left_out"] == 21
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "weights.json").read_bytes()
    assert before == contents(stored)


def test_a_result_on_what_was_learnt_from_says_so(run, stored, tmp_path):
    done = run("rescore", stored, "--learn-weights", tmp_path / "w.json", "--form", "cubic", "--share", 1)
    assert "oracle" in done.out
    assert json.loads((tmp_path / "w.json").read_text())["form"] == "cubic"


def test_votes_and_calibration(run, stored):
    voted = json.loads(run("rescore", stored, "--vote", "majority", "--json").out)["metrics"]
    assert voted["top1"] != json.loads(run("rescore", stored, "--json").out)["metrics"]["top1"]
    calibrated = run("rescore", stored, "--calibration", "temperature")
    assert "Labels were used: not zero-shot" in calibrated.out


def test_the_difference_to_another_run(run, stored, tmp_path):
    done = run("rescore", stored, "--policy", "exhaustive", "--draws", 4, "--against", stored)
    assert f"Against {stored}, on 80 images: " in done.out
    other = save_run(tmp_path / "other", ERRORS, LABELS, task="cars")
    refused = run("rescore", stored, "--against", other)
    assert refused.code == 2
    assert refused.out == ""
    assert "task: 'pets' in the first, 'cars' in the second" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--form", "cubic"], ["--form", "--learn-weights"]),
        (["--learn-weights", "OUT", "--form", "bucket"], ["'buckets'"]),
        (["--learn-weights", "OUT", "--form", "cubic", "--space", "x0"], ["'buckets'"]),
        (["--learn-weights", "OUT", "--share", "0"], ["share"]),
        (["--learn-weights", "OUT", "--weights", "OUT"], ["one of the two"]),
        (["--learn-weights", "OUT", "--weighting", "vdm"], ["not both"]),
        (["--weights", "OUT"], ["cannot be read", "--learn-weights"]),
        (["--vote", "most"], ["'most'", "majority"]),
        (["--calibration", "platt"], ["160 calls"]),
        (["--vote", "majority", "--scale", "2"], ["vote and scale"]),
        (["--against", "OUT"], ["not a run"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, stored, tmp_path, arguments, words):
    refused = run("rescore", stored, *(tmp_path / "out.json" if a == "OUT" else a for a in arguments))
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words), refused.err
    assert list(tmp_path.iterdir()) == []
