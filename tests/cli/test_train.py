import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from digit_folders import NAMES, write_generated, write_photographs

from diffsight.cli.train_options import make_settings
from diffsight.data.torchvision_sets import TORCHVISION
from diffsight.errors import InputError
from diffsight.evaluation.task import load_task
from diffsight.synthesis.export import load_onnx
from diffsight.synthesis.options import PRESETS

QUICK = ["--network", "test_resnet", "--epochs", "4", "--batch-size", "16", "--learning-rate", "0.005", "--no-flip"]


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return write_generated(tmp_path_factory.mktemp("generated") / "set", 40)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 20, skip=40)


@pytest.fixture
def train(run, generated):
    return lambda *arguments: run("train", "--data", generated, *QUICK, "--device", "cpu", *arguments)


def test_from_generated_images_to_an_onnx_file_and_a_number(train, run, photographs, tmp_path):
    out, file = tmp_path / "network", tmp_path / "network.onnx"
    done = train("--out", out, "--seeds", 2, "--export", file)
    assert (done.code, done.err) == (0, "")
    assert "test_resnet (372,979 parameters, 16×16 pixels, 3×3 convolution" in done.out
    assert "108 images of 3 classes" in done.out
    assert re.search(r"\d+\.\d% ± \d+\.\d% on generated images that were held out", done.out)
    assert "Protocol: zero-shot: trained on generated images alone." in done.out
    assert re.search(r"ONNX: .*network\.onnx \(\d\.\d MB, opset 18\)", done.out)
    assert load_onnx(file).class_names == NAMES

    found = run("evaluate", "--task", photographs, "--model", out, "--out", tmp_path / "run", "--device", "cpu")
    assert (found.code, found.err) == (0, "")
    assert re.search(r"accuracy +(100|[6-9]\d)\.\d% \[", found.out)
    assert re.search(r"2 networks: \d+\.\d% ± \d+\.\d% \(above: the first\)", found.out)
    assert re.search(
        r"time per image +[\d,.]+ ms on cpu, with reading it[\s\S]+The network alone: [\d,]+ images/s", found.out
    )
    assert "Protocol: zero-shot: trained on generated images alone." in found.out
    assert (tmp_path / "run" / "network-2" / "metrics.json").exists()

    of_file = run("evaluate", "--task", photographs, "--model", file, "--out", tmp_path / "onnx", "--json")
    metrics = json.loads(of_file.out)["metrics"]
    first = json.loads((tmp_path / "run" / "network-1" / "metrics.json").read_text())["metrics"]
    assert metrics["top1"] == first["top1"]


def test_the_same_command_again_and_json(train, tmp_path):
    first = train("--out", tmp_path / "out", "--epochs", 1, "--json")
    assert train("--out", tmp_path / "out", "--epochs", 1, "--json").out == first.out
    summary = json.loads(first.out)
    assert summary["protocol"] == "zero-shot"
    assert summary["seeds"][0]["epochs"] == 1
    other = train("--out", tmp_path / "out", "--epochs", 2)
    assert other.code == 2
    assert "settings.epochs: 1 in the run, 2 asked now" in other.err


def test_progress_goes_to_stderr(train, tmp_path, monkeypatch):
    monkeypatch.setattr("diffsight.cli.output.SECONDS_BETWEEN_LINES", 0)
    done = train("--out", tmp_path / "out", "--epochs", 1, "--json")
    assert json.loads(done.out)
    assert "120 of 120 images read" in done.err
    assert re.search(r"7 of 7 steps of seed 0, epoch 1 of 1", done.err)


def test_what_it_would_cost(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = train("--dry-run", "--seeds", 3)
    assert done.code == 0
    assert re.search(r"images +108 to learn from, 12 held out, 0 cannot be read", done.out)
    assert re.search(r"steps +84 at most", done.out)
    assert json.loads(train("--dry-run", "--json").out)["steps"] == 28
    assert not list(tmp_path.iterdir())


def test_real_images_are_refused_unless_it_is_said(train, run, photographs, tmp_path):
    refused = run("train", "--data", photographs, *QUICK, "--out", tmp_path / "out")
    assert refused.code == 2
    assert "not known to be synthetic" in refused.err
    assert not (tmp_path / "out").exists()
    chosen = train("--validation", photographs, "--out", tmp_path / "out")
    assert chosen.code == 2
    assert "no real image may choose an epoch" in chosen.err
    ceiling = run(
        "train", "--data", photographs, *QUICK, "--epochs", 1, "--protocol", "supervised", "--out", tmp_path / "c"
    )
    assert ceiling.code == 0
    assert "Protocol: supervised: trained on labelled real images: a ceiling, no zero-shot result." in ceiling.out
    again = run("evaluate", "--task", photographs, "--model", tmp_path / "c", "--out", tmp_path / "run")
    assert "THE NETWORK LEARNT FROM THESE VERY IMAGES" in again.out


def test_a_task_can_be_a_ceiling(run, tmp_path):
    done = run("train", "--data", "digits", *QUICK, "--protocol", "supervised", "--epochs", 1, "--dry-run", "--size", 8)
    assert done.code == 0, done.err
    assert "test_resnet" in done.out


def test_a_damaged_image_is_reported(run, tmp_path):
    folder = write_generated(tmp_path / "set", 6)
    (folder / "images" / "number_one" / "00001.png").write_bytes(b"")
    done = run("train", "--data", folder, *QUICK, "--epochs", 1, "--out", tmp_path / "out", "--device", "cpu")
    assert done.code == 3
    assert "failed: number_one/00001.png: Image" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--network", "resnet-19"], "Unknown network 'resnet-19'. Did you mean"),
        (["--augment", "spin"], "Unknown augment 'spin'"),
        (["--preset", "shipard2023"], "--preset shipard2023 fixes that already: leave out --epochs"),
        (["--export", "model.pt"], "An ONNX file ends in .onnx"),
        (["--protocol", "zero"], "Unknown protocol 'zero'"),
        (["--data", "nowhere"], "There is no folder"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(train, tmp_path, arguments, message):
    done = train("--out", tmp_path / "out", *arguments)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "out").exists()


def test_options_stand_for_settings():
    settings = make_settings(None, None, {"ema_decay": 0.0, "validation_share": 0.0}, "bf16")
    assert (settings.ema_decay, settings.select, settings.patience, settings.amp) == (None, "last", None, "bf16")
    assert settings.network == "resnet-18"
    assert make_settings("shipard2023", "vit-s", {}, None).network == "vit-s"
    assert make_settings("shipard2023", None, {}, None) == PRESETS["shipard2023"]
    with pytest.raises(InputError, match="leave out --size and --no-flip"):
        make_settings("shipard2023", None, {"size": 28, "flip": False}, None)


def test_evaluating_refuses_what_a_network_has_not(train, run, photographs, tmp_path):
    out = tmp_path / "network"
    train("--out", out, "--epochs", 1)
    asked = ["evaluate", "--task", photographs, "--model", out, "--device", "cpu"]
    scored = run(*asked, "--out", tmp_path / "run", "--policy", "exhaustive", "--draws", 3)
    assert scored.code == 2
    assert "leave out --policy and --draws" in scored.err
    assert run(*asked).code == 2
    cost = run(*asked, "--dry-run")
    assert re.search(r"images +60", cost.out)
    adapted = run(*asked, "--out", tmp_path / "adapted", "--adapt-bn")
    assert "transductive: BatchNorm has seen 60 unlabelled images" in adapted.out
    diffusion = run("evaluate", "--task", photographs, "--model", "tiny-fashion", "--out", tmp_path / "x", "--adapt-bn")
    assert "--adapt-bn is for networks" in diffusion.err
    (tmp_path / "other" / "cat").mkdir(parents=True)
    for file in (photographs / "number_one").iterdir():
        (tmp_path / "other" / "cat" / file.name).write_bytes(file.read_bytes())
    mismatch = run("evaluate", "--task", tmp_path / "other", "--model", out, "--out", tmp_path / "run")
    assert mismatch.code == 2
    assert "The network has no class 'cat'" in mismatch.err


def test_exporting_what_is_there(train, run, tmp_path):
    train("--out", tmp_path / "network", "--epochs", 1)
    done = run("export", tmp_path / "network", "--out", tmp_path / "network.onnx", "--json")
    assert done.code == 0
    facts = json.loads(done.out)
    assert facts["opset"] == 18
    assert Path(facts["file"]).stat().st_size == facts["bytes"]
    assert np.isfinite(facts["difference"])
    none = run("export", tmp_path, "--out", tmp_path / "other.onnx")
    assert none.code == 2
    assert "Give the folder of a trained network" in none.err


def test_networks_are_listed(run):
    listed = run("ls", "networks")
    assert listed.code == 0
    assert re.search(r"resnet-50 +resnet +arXiv:2302.03298 +3×3 convolution", listed.out)
    papers = [one["name"] for one in json.loads(run("ls", "networks", "--json").out) if one["paper"]]
    assert len(papers) == 7


def test_images_of_others_are_synthetic_by_the_users_word(run, photographs, tmp_path):
    said = run("train", "--data", photographs, "--synthetic", *QUICK, "--epochs", 1, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    word = "zero-shot: trained on generated images alone; that folder:set is generated is the word of who trained it"
    assert f"Protocol: {word}." in said.out
    assert json.loads((tmp_path / "out" / "training.json").read_text())["label"] == word
    found = run("evaluate", "--task", photographs, "--model", tmp_path / "out", "--out", tmp_path / "run")
    assert "is the word of who trained it" in found.out
    real = run("train", "--data", "sklearn:digits", "--synthetic", *QUICK, "--out", tmp_path / "real")
    assert real.code == 2
    assert "known set of real images" in real.err


def test_folders_are_matched_to_the_classes_of_a_task(run, tmp_path):
    folder = write_photographs(tmp_path / "given", 4)
    arguments = ["train", "--data", folder, "--synthetic", "--task", "eurosat", *QUICK, "--out", tmp_path / "out"]
    unknown = run(*arguments)
    assert unknown.code == 2
    assert "has 'number one', which is no class of the task 'eurosat'" in unknown.err
    for old, new in zip(sorted(folder.iterdir()), ("AnnualCrop", "River", "SeaLake"), strict=True):
        old.rename(folder / new)
    few = run(*arguments)
    assert few.code == 2
    assert "has no image of 'forest'" in few.err
    rest = [name for name in TORCHVISION["eurosat"].folders if name not in ("AnnualCrop", "River", "SeaLake")]
    for name in rest:
        shutil.copytree(folder / "River", folder / name)
    done = run(*arguments, "--epochs", 1)
    assert done.code == 0, done.err
    assert (
        tuple(json.loads((tmp_path / "out" / "training.json").read_text())["classes"])
        == load_task("eurosat").class_names
    )
