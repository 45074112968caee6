"""A model file where a command takes a model."""

import json

import pytest
from tiny.additions import save_lora


@pytest.fixture(scope="module")
def mine(sd, tmp_path_factory):
    place = tmp_path_factory.mktemp("mine")
    save_lora(sd, place / "style.safetensors", "unet")
    (place / "mine.yaml").write_text(f"base: {sd}\nlora: [style.safetensors]\ntrained_on: pictures of my cat\n")
    return place / "mine.yaml"


def answers(run, *arguments):
    done = run(*arguments, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_classify_uses_it_and_says_what_it_was_trained_on(run, mine, sd, photos):
    picture = photos / "cat" / "1.png"
    arguments = ("classify", picture, "--classes", "cat, dog", "--policy", "exhaustive", "--draws", "3")
    found, base = (answers(run, *arguments, "--model", model) for model in (mine, sd))
    assert found["model"]["name"] == str(mine)
    assert found["model"].keys() - base["model"].keys() == {"lora"}
    assert found["images"] != base["images"]
    assert found["note"] == f"{mine} says that it was trained on pictures of my cat."


@pytest.mark.parametrize("command", ["layers", "features", "match"])
def test_other_commands_take_it(run, mine, photos, tmp_path, command):
    arguments = {
        "layers": (mine,),
        "features": ("extract", "--task", photos, "--model", mine, "--layers", "mid", "--out", tmp_path / "out"),
        "match": ("query", photos / "cat" / "1.png", "--model", mine, "--text", "a cat", "--text", "a dog"),
    }
    done = run(command, *arguments[command], "--device", "cpu")
    assert done.code == 0, done.err


def test_a_mistake_is_one_line(run, mine, photos):
    broken = mine.with_name("broken.yaml")
    broken.write_text("base: nowhere\nlora: [none.safetensors]\n")
    refused = run("classify", photos / "cat" / "1.png", "--model", broken, "--classes", "cat, dog")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "broken.yaml, line 2, lora: there is no file" in refused.err
