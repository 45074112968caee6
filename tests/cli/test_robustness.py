import json

import pytest

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
