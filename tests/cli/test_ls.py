import json

import pytest

from diffsight.errors import ModelError
from diffsight.evaluation.task import list_tasks


@pytest.mark.parametrize("kind", ["models", "tasks", "matching", "policies", "presets", "tricks"])
def test_a_list_is_a_table_and_json(run, kind):
    listed = run("ls", kind)
    entries = json.loads(run("ls", kind, "--json").out)
    header, *rows = listed.out.splitlines()
    assert listed.code == 0
    assert header.startswith("name ")
    names = [entry["name"] for entry in entries]
    assert [row.split()[0] for row in rows[: len(names)]] == names


def test_models_say_where_from_how_large_and_under_which_licence(run):
    entries = {entry["name"]: entry for entry in json.loads(run("ls", "models", "--json").out)}
    assert entries["tiny-fashion"]["where"] == "in this package"
    assert all(entry["licence"] and entry["parameters"] and entry["description"] for entry in entries.values())
    assert entries["dit-xl-2-256"]["reads"] == ["class ids"]


def test_all_tasks_are_listed_with_their_licence(run):
    entries = json.loads(run("ls", "tasks", "--json").out)
    assert [entry["name"] for entry in entries] == list(list_tasks())
    assert all(entry["licence"] and entry["templates"] for entry in entries)


def test_every_listed_policy_and_preset_can_be_given(run):
    from diffsight.cli.options import make_policy, make_settings

    names = [entry["name"] for entry in json.loads(run("ls", "policies", "--json").out)]
    assert [make_policy(name, None).name for name in names] == names
    for entry in json.loads(run("ls", "presets", "--json").out):
        chosen = make_settings(
            preset=entry["name"], policy=None, draws=None, loss=None, weighting=None, ensemble=None, seed=0
        )
        assert chosen.loss == entry["loss"]


def test_doctor_says_what_is_there(run):
    found = json.loads(run("doctor", "--json").out)
    assert set(found) == {"versions", "device", "memory", "hub", "model", "data"}
    assert found["versions"]["torch"][0].isdigit()
    assert found["device"]["device"].split(":")[0] in ("cpu", "cuda", "mps")
    assert "GiB" in found["memory"]["machine"]
    assert "HF_HUB_OFFLINE" in found["hub"]["answers"]
    assert set(found["data"]) == set(list_tasks())


def test_doctor_fails_where_the_embedded_model_does_not_load(run, monkeypatch):
    def broken(*arguments):
        raise ModelError("weights are gone")

    monkeypatch.setattr("diffsight.cli.options.load_model", broken)
    ill = run("doctor")
    assert ill.code == 3
    assert "weights are gone" in ill.out
