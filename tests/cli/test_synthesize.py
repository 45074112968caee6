import json
import re

import numpy as np
import pytest
from PIL import Image
from pipelines import save_ddpm

from diffsight.data.sources import open_source
from diffsight.synthesis.dataset import read_synthetic

QUICK = ["--steps", "2", "--trick", "class-prompt", "--flat", "0", "--near-duplicates", "0"]


@pytest.fixture
def command(sd, tmp_path):
    """Six images of two classes, in the folder ``set``."""
    out = tmp_path / "set"
    return ["synthesize", "--classes", "cat,dog", "--model", sd, "--per-class", "3", "--out", out, *QUICK], out


def test_a_set_is_made_told_and_continued(run, command):
    arguments, out = command
    done = run(*arguments)
    assert done.code == 0, done.err
    assert re.search(r"cat +cat +3 +0", done.out)
    assert "6 images kept of 6 drawn; dropped: none." in done.out
    assert "24 calls" in done.out
    assert "contact-class-prompt.png" in done.out
    found = read_synthetic(out)
    assert found.classes == ("cat", "dog")
    assert len(open_source(f"folder:{out}/images")) == 6
    before = {path: path.read_bytes() for path in (out / "images").rglob("*.png")}
    again = run(*arguments, "--json")
    told = json.loads(again.out)
    assert (told["images"], told["missing"], told["calls"]) == (6, 0, 0)
    assert {path: path.read_bytes() for path in (out / "images").rglob("*.png")} == before
    refused = run(*arguments, "--seed", 1)
    assert refused.code == 2
    assert "settings.seed: 0 in the run, 1 asked now" in refused.err


def test_the_cost_is_told_and_nothing_is_written(run, command):
    arguments, out = command
    told = json.loads(run(*arguments, "--dry-run", "--json").out)
    assert (told["images"], told["calls"], told["calls_per_image"], told["pilot_images"]) == (6, 24, 4.0, 6)
    shown = run(*arguments, "--dry-run", "--guidance-scale", "1")
    assert re.search(r"calls +12 \(2.0 per image\)", shown.out)
    assert "Nothing was written" in shown.out
    assert not out.exists()


def test_classes_of_a_folder_are_its_folders(run, sd, photos, tmp_path):
    done = run("synthesize", "--task", photos, "--model", sd, "--per-class", 1, "--out", tmp_path / "set", *QUICK)
    assert done.code == 0, done.err
    assert read_synthetic(tmp_path / "set").classes == ("cat", "dog")


@pytest.mark.parametrize("option", ["--classes", "--classes-file"])
def test_classes_come_from_a_file_or_a_task(run, sd, tmp_path, option):
    file = tmp_path / "names.txt"
    file.write_text("cat\nfour-legs=dog\n\n")
    out = tmp_path / "set"
    done = run("synthesize", option, file, "--model", sd, "--per-class", 1, "--out", out, *QUICK)
    assert done.code == 0, done.err
    assert {path.name for path in (out / "images").iterdir()} == {"cat", "four-legs"}
    tasks = ["synthesize", "--task", "fashion-mnist", "--per-class", 1, "--steps", 1, "--trick", "class-prompt"]
    done = run(*tasks, "--out", tmp_path / "fashion", "--flat", "0")
    assert done.code == 0, done.err
    found = read_synthetic(tmp_path / "fashion")
    assert found.classes[0] == "T-shirt/top"
    assert found.row(0)["file"] == "images/T-shirt-top/00000.png"
    assert "no claim about zero-shot skill" in (tmp_path / "fashion/README.md").read_text()


def test_tricks_take_their_options(run, sd, tmp_path):
    (tmp_path / "bank.txt").write_text("a photo of {a class}\n")
    (tmp_path / "aliases.json").write_text('{"cat": ["cat", "bird"]}')
    common = ["synthesize", "--classes", "cat,dog", "--model", sd, "--per-class", 2, "--steps", 1, "--flat", 0]
    common += ["--near-duplicates", 0]

    def rows(name, *arguments):
        done = run(*common, "--out", tmp_path / name, *arguments)
        assert done.code == 0, done.err
        return read_synthetic(tmp_path / name).rows.to_pylist()

    said = rows(
        "a", "--trick", "multi-domain", "--domain", "photo", "--domain", "dog", "--form", "{domain} of {a class}"
    )
    assert {row["prompt"] for row in said[:2]} == {"photo of a cat", "dog of a cat"}
    said = rows("b", "--trick", "templates+bank", "--template", "{class} a", "--bank", tmp_path / "bank.txt")
    assert {row["prompt"] for row in said[:2]} == {"cat a", "a photo of a cat"}
    said = rows("c", "--trick", "class-prompt", "--guidance-scale", "1-2")
    assert all(1 <= row["guidance_scale"] <= 2 for row in said)
    said = rows(
        "d", "--trick", "random-guidance", "--whole-scales", "--sampler", "euler", "--size", 8, "--no-antialias"
    )
    assert all(row["guidance_scale"] in (1, 2, 3, 4, 5) for row in said)
    assert {(row["sampler"], row["width"], row["resize"]) for row in said} == {("euler", 8, "8")}
    said = rows("e", "--trick", "aliases", "--aliases", tmp_path / "aliases.json", "--format", "wds")
    assert {row["prompt"] for row in said} == {"an image of a cat", "an image of a bird", "an image of a dog"}
    assert said[0]["file"].startswith("shards/00000.tar:")
    common[2], common[4] = "bag,coat", "tiny-fashion"
    (tmp_path / "kinds.json").write_text('{"bag": "thing", "coat": "clothing"}')
    said = rows("f", "--trick", "superclass", "--superclass", tmp_path / "kinds.json")
    assert said[0]["prompt"] == "an image of a bag, a type of thing"


@pytest.mark.parametrize("judge", ["self", "tiny-shapes-clip"])
def test_labels_are_checked_by_the_model_itself_or_by_another(run, command, judge):
    arguments, out = command
    done = run(*arguments, "--label-check", judge, "--max-attempts", 2, "--json")
    assert done.code in (0, 3), done.err
    told = json.loads(done.out)
    assert told["images"] + told["missing"] == 6
    assert told["drawn"] == 6 + told["dropped"].get("label", 0) - told["missing"]
    checked = json.loads((out / "dataset.json").read_text())["settings"]["filters"]["scorer"]
    assert checked.startswith("zero-shot" if judge == "self" else "clip")


def test_what_is_given_up_is_counted_and_ends_with_3(run, sd, tmp_path):
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "black.png")
    arguments = ["synthesize", "--classes", "cat,dog", "--model", sd, "--per-class", 8, "--steps", 1]
    arguments += ["--trick", "class-prompt", "--max-attempts", 1, "--flat", 0, "--near-duplicates", 128]
    done = run(*arguments, "--out", tmp_path / "set", "--reject", tmp_path, "--json")
    told = json.loads(done.out)
    assert told["missing"] > 0
    assert told["dropped"] == {"near-duplicate": told["missing"]}
    assert done.code == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--trick", "multidomain"], "Did you mean 'multi-domain'"),
        (["--trick", "multi-domain", "--form", "a drawing of {class}"], "one place for the domain"),
        (["--trick", "templates", "--template", "a cat"], "one place for the class"),
        (["--domain", "sketch"], "domains belongs to the trick multi-domain"),
        (["--trick", "bank"], "needs a file of prompts"),
        (["--trick", "bank", "--bank", "none.txt"], "none.txt is missing"),
        (["--sampler", "plms"], "Unknown sampler 'plms'"),
        (["--steps", "1000"], "at most 999 steps"),
        (["--guidance-scale", "much"], "a number or a range such as 1-5; got 'much'"),
        (["--guidance-scale", "5-1"], "a range goes up"),
        (["--format", "zip"], "Unknown format 'zip'"),
        (["--preset", "shipard"], "Did you mean 'shipard2023'"),
        (["--preset", "shipard2023", "--steps", "3"], "--preset shipard2023 fixes that already: leave out --steps"),
        (["--reject", "none"], "There is no folder"),
        (["--near-duplicates", "500"], "from 0 to 128"),
        (["--label-check", "sd-99"], "Unknown model 'sd-99'"),
        (["--model", "sd-99"], "Unknown model 'sd-99'"),
        (["--task", "fashion-mnist"], "Give one of --classes NAMES"),
    ],
)
def test_wrong_options_are_refused(run, command, change, message):
    arguments, out = command
    refused = run(*arguments, *change)
    assert refused.code == 2
    assert message in refused.err
    assert not out.exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat", "at least two classes; got only 'cat'"),
        ("cat,Cat", "must differ"),
        ("cat,a/b", "path separator. Name another one before it: FOLDER=a/b"),
        ("cat,..", "hidden"),
        ("cat,", "name of a class is empty"),
    ],
)
def test_wrong_classes_are_refused(run, sd, tmp_path, names, message):
    refused = run("synthesize", "--classes", names, "--model", sd, "--out", tmp_path / "set", *QUICK)
    assert refused.code == 2
    assert message in refused.err
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_draw_classes_are_refused(run, dit, tmp_path):
    ddpm = save_ddpm(tmp_path / "ddpm")
    refused = run("synthesize", "--classes", "cat,dog", "--model", ddpm, "--out", tmp_path / "set", *QUICK)
    assert "unconditional: it takes neither classes nor text" in refused.err
    refused = run("synthesize", "--classes", "cat,dog", "--model", dit, "--out", tmp_path / "set", "--steps", 1)
    assert "use the trick 'class-prompt'" in refused.err
    assert run("synthesize", "--classes", "cat,dog", "--model", dit, *QUICK).code == 2  # where to?
    assert not (tmp_path / "set").exists()


def test_tricks_are_listed(run):
    listed = json.loads(run("ls", "tricks", "--json").out)
    assert {"base", "class-prompt", "multi-domain", "random-guidance", "merged"} <= {entry["name"] for entry in listed}
    assert "uniform from 1 to 5" in run("ls", "tricks").out


def test_domains_that_the_model_cannot_read_are_left_out_and_said(run, tmp_path):
    out = tmp_path / "set"
    names = ["synthesize", "--classes", "t-shirt=T-shirt/top,bag", "--trick", "multi-domain", "--steps", 1]
    done = run(*names, "--per-class", 7, "--flat", 0, "--near-duplicates", 0, "--out", out)
    assert done.code == 0, done.err
    said = "Of the paper's ten domains, digital art image, stick figure, 3D rendering are left out"
    assert said in done.err
    assert said in (out / "README.md").read_text()
    found = {row["domain"] for row in read_synthetic(out).rows.to_pylist()}
    assert found == {"photo", "drawing", "painting", "sketch", "collage", "poster", "rock drawing"}
    for asked in (["--domain", "stick figure"], ["--preset", "shipard2023", "--model", "tiny-fashion"]):
        asked = [*names[:5], *asked, "--out", tmp_path / "no"]  # what is asked for is never left out
        refused = run(*asked)
        assert refused.code == 2
        assert "tiny-fashion reads 16" in refused.err
        assert "other domains" in refused.err
