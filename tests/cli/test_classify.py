import json

import pytest

from diffsight.backbones.cards import assets

QUICK = ["--draws", "8", "--classes", "cat, dog, bird"]


@pytest.fixture
def classify(run, sd):
    return lambda *arguments: run("classify", *arguments, "--model", sd)


def answers(result):
    return [(image["label"], image["probability"], image["calls"]) for image in json.loads(result.out)["images"]]


def test_a_row_for_each_image_and_the_cost(classify, photos):
    done = classify(photos / "cat/1.png", photos / "dog/1.png", *QUICK)
    header, first, second, totals = done.out.splitlines()
    assert done.code == 0
    assert header.split() == ["image", "label", "p", "runner-up", "p", "calls"]
    name, label, probability, runner_up, rest, calls = first.split()
    assert name == str(photos / "cat/1.png")
    assert {label, runner_up} < {"cat", "dog", "bird"}
    assert 1 >= float(probability) >= float(rest) >= 0
    assert second.startswith(str(photos / "dog/1.png"))
    assert totals.startswith("2 images, ")
    assert "calls per image" in totals
    assert "calls/s" in totals
    assert int(calls) <= 24


def test_nothing_leaks_to_stderr(classify, photos):
    assert classify(photos, *QUICK).err == ""


def test_json_says_all(classify, photos):
    done = classify(photos, *QUICK, "--json", "--top", 3, "--seed", 4)
    found = json.loads(done.out)
    assert found["classes"] == ["cat", "dog", "bird"]
    assert found["settings"]["seed"] == 4
    assert found["settings"]["policy"]["max_draws"] == 8
    assert len(found["model"]["weights"]) == 64
    assert found["totals"]["images"] == len(found["images"]) == 4
    assert found["totals"]["calls"] == sum(image["calls"] for image in found["images"])
    for image in found["images"]:
        assert image["top"][0]["label"] == image["label"]
        assert sum(entry["probability"] for entry in image["top"]) == pytest.approx(1)


def test_folders_named_after_classes_tell_right_from_wrong(classify, photos):
    found = json.loads(classify(photos, *QUICK, "--json").out)
    assert [image["truth"] for image in found["images"]] == ["cat", "cat", "dog", "dog"]
    right = sum(image["label"] == image["truth"] for image in found["images"])
    assert (found["totals"]["right"], found["totals"]["judged"]) == (right, 4)
    table = classify(photos, *QUICK).out
    assert table.count("right\n") == right
    assert table.endswith(f"{right} of 4 right; by their folders.\n")


def test_other_folder_names_say_nothing(classify, photos):
    done = classify(photos, "--draws", 8, "--classes", "horse", "--classes", "ship")
    assert "right" not in done.out


def test_a_bad_image_is_a_row_and_not_the_end(classify, photos, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    done = classify(bad, photos / "cat/1.png", *QUICK)
    assert done.code == 3
    assert f"{bad}  failed: " in done.out
    assert "1 failed" in done.out
    found = json.loads(classify(bad, photos / "cat/1.png", *QUICK, "--json").out)
    assert found["images"][0]["label"] is None
    assert "bad.png" in found["images"][0]["failure"]
    assert found["images"][1]["label"] in found["classes"]
    assert found["totals"]["failed"] == 1


def test_classes_can_come_from_files(classify, photos, tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\n dog \nbird\n")
    (tmp_path / "prompts.csv").write_text(
        "prompt,classname,classidx\na photo of a cat.,cat,0\na photo of a dog.,dog,1\na photo of a bird.,bird,2\n"
    )
    expected = answers(classify(photos, *QUICK, "--json"))
    listed = classify(photos, "--draws", 8, "--json", "--classes-file", tmp_path / "names.txt")
    assert answers(listed) == expected
    prompted = classify(photos, "--draws", 8, "--json", "--prompts", tmp_path / "prompts.csv")
    assert answers(prompted) == expected


def test_classes_with_one_prompt_tie_and_say_so(classify, photos, tmp_path):
    (tmp_path / "twins.csv").write_text("prompt,classname,classidx\na photo,cat,0\na photo,dog,1\n")
    done = classify(photos, "--prompts", tmp_path / "twins.csv", "--draws", 8)
    assert done.out.count("cat = dog (tie)") == 4
    assert "4 tied" in done.out
    assert "0 of 4 right" in done.out


def test_batches_change_nothing(classify, photos):
    whole = answers(classify(photos, *QUICK, "--json"))
    pieces = answers(classify(photos, *QUICK, "--json", "--batch-size", 5))
    assert [(label, calls) for label, _, calls in whole] == [(label, calls) for label, _, calls in pieces]
    assert [p for _, p, _ in whole] == pytest.approx([p for _, p, _ in pieces], abs=1e-4)


@pytest.mark.parametrize("policy", ["exhaustive", "staged", "t-test", "race", "pooled-race"])
def test_every_policy_keeps_to_the_draws(classify, photos, policy):
    done = classify(photos / "cat/1.png", "--classes", "cat,dog", "--policy", policy, "--draws", 12, "--json")
    assert 0 < json.loads(done.out)["totals"]["calls"] <= 24


def test_settings_reach_the_score(classify, photos):
    done = classify(
        *(photos, "--classes", "cat,dog", "--draws", 4, "--json", "--loss", "l1", "--weighting", "vdm"),
        *("--ensemble", "min", "--template", "a {}", "--template", "a photo of a {}", "--policy", "exhaustive"),
    )
    found = json.loads(done.out)
    chosen = {key: found["settings"][key] for key in ("loss", "weighting", "ensemble")}
    assert chosen == {"loss": "l1", "weighting": "vdm", "ensemble": "min"}
    assert found["totals"]["calls_per_image"] == 2 * 2 * 4


def test_a_preset_is_the_papers(classify, photos):
    done = classify(photos / "cat/1.png", "--classes", "cat,dog", "--preset", "li2023/stl10", "--json")
    found = json.loads(done.out)
    assert found["settings"]["loss"] == "l1"
    assert found["settings"]["policy"] == {
        "name": "staged",
        "keep": [5, 1],
        "samples": [100, 500],
        "paper_exact": True,
    }


def test_limit_and_single_files(classify, photos):
    assert "1 image," in classify(photos, *QUICK, "--limit", 1).out
    twice = classify(photos / "cat/1.png", photos / "cat/1.png", *QUICK)
    assert "1 image," in twice.out


def test_a_class_conditional_model_has_its_own_classes(run, dit, photos):
    done = run("classify", photos / "cat/1.png", "--model", dit, "--draws", 4, "--top", 3, "--json")
    assert {entry["label"] for entry in json.loads(done.out)["images"][0]["top"]} == {"cat", "dog", "bird"}
    some = run("classify", photos / "cat/1.png", "--model", dit, "--draws", 4, "--classes", "bird, cat", "--json")
    assert json.loads(some.out)["classes"] == ["bird", "cat"]


def test_dry_run_only_tells(classify, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = classify(photos, *QUICK, "--dry-run")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()[:4]] == ["images", "calls", "time", "disk"]
    assert "cat/1.png" not in done.out
    found = json.loads(classify(photos, *QUICK, "--policy", "exhaustive", "--dry-run", "--json").out)
    assert (found["images"], found["calls"]) == (4, 4 * 3 * 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--samples"]),
        (["nowhere.png"], ["nowhere.png"]),
        (["EMPTY"], ["no image"]),
        (["PHOTOS", "--samples"], ["not both"]),
        (["PHOTOS", "--classes", "cat"], ["at least two"]),
        (["PHOTOS", "--classes", "cat, dog, Cat"], ["'cat'", "'Cat'"]),
        (["PHOTOS", "--classes", "cat,,dog"], ["empty"]),
        (["PHOTOS", "--classes-file", "nowhere.txt"], ["nowhere.txt"]),
        (["PHOTOS", "--classes", "cat,dog", "--classes-file", "x"], ["not both"]),
        (["PHOTOS", "--prompts", "nowhere.csv"], ["nowhere.csv"]),
        (["PHOTOS", "--prompts", "x.csv", "--classes", "cat,dog"], ["--prompts"]),
        (["PHOTOS", "--classes", "cat,dog", "--template", "a photo"], ["{}"]),
        (["PHOTOS", "--classes", "cat,dog", "--policy", "rase"], ["'race'"]),
        (["PHOTOS", "--classes", "cat,dog", "--draws", "1"], ["at least 2"]),
        (["PHOTOS", "--classes", "cat,dog", "--loss", "l3"], ["l1"]),
        (["PHOTOS", "--classes", "cat,dog", "--weighting", "snrs"], ["'snr'"]),
        (["PHOTOS", "--classes", "cat,dog", "--ensemble", "means"], ["'mean'"]),
        (["PHOTOS", "--classes", "cat,dog", "--preset", "li2032"], ["'li2023'"]),
        (["PHOTOS", "--classes", "cat,dog", "--preset", "li2023", "--loss", "l2"], ["--loss"]),
        (["PHOTOS", "--classes", "cat,dog", "--model", "sd-1.6"], ["'sd-1.5'"]),
        (["PHOTOS", "--classes", "cat,dog", "--model", "no/folder"], ["no/folder"]),
        (["PHOTOS", "--model", "sd-1.5"], ["--classes"]),
        (["PHOTOS", "--model", "SD"], ["--classes"]),
        (["PHOTOS", "--model", "SD", "--classes", "cat,dog", "--device", "gpu"], ["'gpu'"]),
        (["PHOTOS", "--model", "SD", "--classes", "cat,dog", "--dtype", "int8"], ["'int8'"]),
        (["PHOTOS", "--model", "SD", "--classes", "cat,dog", "--loss", "kl"], ["'kl'"]),
        (["PHOTOS", "--model", "DIT", "--template", "a {}"], ["--template"]),
        (["PHOTOS", "--model", "DIT", "--classes", "cat, wolf"], ["wolf"]),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run, sd, dit, photos, tmp_path, arguments, words):
    stand_ins = {"PHOTOS": photos, "EMPTY": tmp_path, "SD": sd, "DIT": dit}
    refused = run("classify", *(stand_ins.get(argument, argument) for argument in arguments))
    assert refused.code == 2
    assert refused.out == ""
    assert refused.err.startswith("diffsight: ")
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words)


def test_hidden_files_and_other_files_are_no_images(classify, photos, tmp_path):
    for name in ("shown.png", ".hidden.png", ".git/x.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((photos / "cat/1.png").read_bytes())
    found = json.loads(classify(tmp_path, *QUICK, "--json").out)
    assert [image["image"] for image in found["images"]] == [str(tmp_path / "shown.png")]


def test_interrupted_says_so(classify, photos, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffsight.zero_shot.classifier.DiffusionClassifier.classify", interrupt)
    stopped = classify(photos, *QUICK)
    assert stopped.code == 130
    assert "Interrupted" in stopped.err


@pytest.mark.skipif(not (assets() / "tiny-fashion").is_dir(), reason="the embedded model is not there")
class TestEmbeddedModel:
    def test_samples_are_judged_and_the_truth_is_told(self, run):
        done = run("classify", "--samples", "--limit", 3, "--draws", 16)
        assert done.code == 0
        assert done.err == ""
        assert " of 3 right; they are test photographs of the classes that the model was trained on." in done.out

    def test_other_classes_are_warned_of(self, run, photos):
        done = run("classify", photos / "cat/1.png", "--classes", "cat, dog", "--draws", 4)
        assert done.code == 0
        assert "cat" in done.err
        assert "--model" in done.err
