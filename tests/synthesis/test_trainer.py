import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from digit_folders import NAMES, write_generated, write_photographs

from diffsight.errors import InputError, ModelError, NumericsError, RunError
from diffsight.store.run import Run
from diffsight.synthesis import batches, material
from diffsight.synthesis.learner import Learner
from diffsight.synthesis.networks import NetworkPlan, build_network, plan_network
from diffsight.synthesis.options import PRESETS, TrainSettings, find_settings
from diffsight.synthesis.placement import place
from diffsight.synthesis.preprocessing import Preprocessing
from diffsight.synthesis.trained import TrainedClassifier
from diffsight.synthesis.trainer import estimate, load_trained, train
from diffsight.synthesis.training_set import open_training_set

QUICK = TrainSettings(network="test_resnet", epochs=4, batch_size=16, flip=False, learning_rate=5e-3, patience=None)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return open_training_set(write_generated(tmp_path_factory.mktemp("generated") / "set", 40))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Other digits than those of the generated set."""
    return open_training_set(write_photographs(tmp_path_factory.mktemp("real") / "set", 30, skip=40))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return open_training_set(write_generated(tmp_path_factory.mktemp("few") / "set", 5, side=12))


@pytest.fixture(scope="module")
def trained(generated, tmp_path_factory):
    return train(generated, tmp_path_factory.mktemp("trained") / "out", settings=QUICK, seeds=2, device="cpu")


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def curve(folder):
    return Run.load(folder / "run").read("epochs").drop_columns("seconds").to_pylist()


def test_it_learns_what_holds_for_other_images(trained, photographs):
    found = [
        (model.predict(photographs.source) == np.array(NAMES)[photographs.targets]) for model in trained.classifiers
    ]
    assert all(each.mean() > 0.8 for each in found)
    assert trained.classifiers[0].label == "zero-shot: trained on generated images alone"


def test_seeds_are_told_apart_and_summed_up(trained):
    summary = json.loads((trained.folder / "training.json").read_text())
    assert summary == trained.summary
    accuracies = [one["validation"]["accuracy"] for one in summary["seeds"]]
    assert summary["validation"]["mean"] == pytest.approx(np.mean(accuracies))
    assert summary["validation"]["sd"] == pytest.approx(np.std(accuracies, ddof=1))
    assert summary["validation"]["of"] == "generated images that were held out"
    assert summary["seeds"][0]["images"] == 3 * 36
    assert weights(trained.folder / "seed-0") != weights(trained.folder / "seed-1")
    assert [one.notes["seed"] for one in load_trained(trained.folder, device="cpu")] == [0, 1]


def test_the_same_command_again_trains_nothing(trained, generated):
    before = weights(trained.folder / "seed-0")
    steps = []
    again = train(generated, trained.folder, settings=QUICK, seeds=2, device="cpu", progress=steps.append)
    assert again.summary == trained.summary
    assert {step.what for step in steps} == {"images read"}
    assert weights(trained.folder / "seed-0") == before
    assert Run.load(trained.folder / "seed-0" / "run").state() == {}


def test_other_settings_or_images_are_refused(trained, generated, few):
    with pytest.raises(RunError, match=r"settings\.learning_rate: 0\.005 in the run, 0\.01 asked now"):
        train(generated, trained.folder, settings=replace(QUICK, learning_rate=0.01), device="cpu")
    with pytest.raises(RunError, match="content"):
        train(few, trained.folder, settings=QUICK, device="cpu")


@pytest.mark.parametrize("settings", [QUICK, replace(QUICK, mixup=0.4, ema_decay=None, select="last", augment="crop")])
def test_a_killed_training_goes_on_as_if_nothing_had_happened(few, tmp_path, settings):
    class Killed(BaseException):
        pass

    settings = replace(settings, batch_size=6, validation_share=0.2)
    train(few, tmp_path / "whole", settings=settings, device="cpu")
    for at in (4, 7):  # in the second epoch, and in the third

        def kill(progress, at=at):
            if progress.what == "steps of seed 0" and progress.done == at:
                raise Killed

        with pytest.raises(Killed):
            train(few, tmp_path / "parts", settings=settings, device="cpu", progress=kill)
    train(few, tmp_path / "parts", settings=settings, device="cpu")
    assert len(Run.load(tmp_path / "parts" / "seed-0" / "run").sessions) == 3
    assert curve(tmp_path / "parts" / "seed-0") == curve(tmp_path / "whole" / "seed-0")
    assert weights(tmp_path / "parts" / "seed-0") == weights(tmp_path / "whole" / "seed-0")


def test_results_do_not_depend_on_memory_or_threads(few, tmp_path, monkeypatch):
    settings = replace(QUICK, epochs=1)
    train(few, tmp_path / "held", settings=settings, device="cpu", workers=3)
    monkeypatch.setattr(material, "read_pictures", lambda *a, **k: batches.read_pictures(*a, memory=0, **k))
    train(few, tmp_path / "read", settings=settings, device="cpu", workers=1)
    assert weights(tmp_path / "held" / "seed-0") == weights(tmp_path / "read" / "seed-0")


def test_damaged_images_are_counted_and_left_out(tmp_path):
    folder = write_generated(tmp_path / "set", 6)
    broken = folder / "images" / "number_six" / "00002.png"
    broken.write_bytes(broken.read_bytes()[:40])
    made = train(open_training_set(folder), tmp_path / "out", settings=replace(QUICK, epochs=1), device="cpu")
    assert [one["id"] for one in made.summary["failed"]] == ["number_six/00002.png"]
    assert made.summary["seeds"][0]["images"] + made.summary["seeds"][0]["validation"]["images"] == 17
    assert made.classifiers[0].notes["failed"][0]["reason"]


def test_a_class_of_damaged_images_is_refused(tmp_path):
    folder = write_generated(tmp_path / "set", 2)
    for file in (folder / "images" / "number_six").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(InputError, match="no image of 'number six' that can be read"):
        train(open_training_set(folder), tmp_path / "out", settings=QUICK, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_result_with_real_images_says_so(generated, photographs, few, tmp_path):
    once = replace(QUICK, epochs=1, batch_size=64)
    with pytest.raises(InputError, match="not known to be synthetic"):
        train(photographs, tmp_path / "refused", settings=once, device="cpu")
    ceiling = train(photographs, tmp_path / "ceiling", settings=once, protocol="supervised", device="cpu")
    assert ceiling.summary["label"].startswith("supervised: trained on labelled real images")
    card = json.loads((tmp_path / "ceiling" / "seed-0" / "model.json").read_text())
    assert card["protocol"] == "supervised"
    assert card["notes"]["metrics"]["validation"]["of"] == "real images that were held out"
    oracle = train(few, tmp_path / "oracle", settings=once, validation=photographs, protocol="oracle", device="cpu")
    assert "no zero-shot result" in oracle.summary["label"]
    assert oracle.summary["validation"]["of"].startswith("real images of folder:set")


def test_probabilities_of_a_model_can_be_learnt_from(generated, photographs, tmp_path):
    teacher = np.full((len(photographs.targets), 3), 0.1)
    teacher[np.arange(len(teacher)), photographs.targets] = 0.8
    made = train(
        [photographs.with_targets(teacher), generated],
        tmp_path / "out",
        settings=replace(QUICK, epochs=3, label_smoothing=0.0),
        protocol="distilled",
        device="cpu",
    )
    assert made.summary["label"].startswith("distilled")
    assert made.summary["validation"]["mean"] > 0.7
    # Half of the targets are 0.8 at most, and so are the answers.
    assert made.classifiers[0].predict_proba(photographs.source).max(axis=1).mean() < 0.97


def test_training_ends_when_held_out_images_gain_nothing(few, tmp_path):
    stuck = replace(QUICK, epochs=30, learning_rate=1e-12, patience=2, ema_decay=None)
    made = train(few, tmp_path / "out", settings=stuck, device="cpu")
    assert made.summary["seeds"][0]["epochs"] < 30


def test_divergence_is_an_error(few, tmp_path):
    wild = replace(QUICK, learning_rate=1e30, clip=None, warmup=0.0)
    with pytest.raises(NumericsError, match="test_resnet diverged: its loss is"):
        train(few, tmp_path / "out", settings=wild, device="cpu")


def test_nothing_held_out_means_the_last_epoch(few, tmp_path):
    with pytest.raises(InputError, match="No image is held out"):
        train(few, tmp_path / "out", settings=replace(QUICK, validation_share=0.0), device="cpu")
    last = replace(QUICK, validation_share=0.0, select="last", epochs=1)
    made = train(few, tmp_path / "out", settings=last, device="cpu")
    assert made.summary["validation"] is None
    assert made.summary["seeds"][0]["images"] == 15


def test_the_papers_recipe_to_the_letter():
    paper = find_settings("shipard2023", network="convnext-s")
    assert (paper.learning_rate, paper.weight_decay, paper.epochs, paper.batch_size) == (1e-4, 0.9, 50, 64)
    assert (paper.size, paper.stem, paper.augment, paper.crop_scale, paper.flip) == (32, "standard", "crop", 0.08, True)
    assert (paper.label_smoothing, paper.mixup, paper.ema_decay, paper.amp, paper.clip) == (0, 0, None, "no", None)
    assert (paper.select, paper.patience, paper.network) == ("last", None, "convnext-s")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50)
    for epoch in range(50):
        assert paper.rate(epoch, 3, 10) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        theirs.step()
    assert PRESETS["shipard2023/eurosat"].normalize == "none"
    with pytest.raises(InputError, match="Did you mean 'shipard2023'"):
        find_settings("shipard2022")


@pytest.mark.parametrize(("preset", "momentum"), [(None, 0.1), ("shipard2023", 0.01)])
def test_statistics_of_norms_follow_as_they_should(preset, momentum):
    """With torchvision's 0.01 a MobileNet stays at chance for hundreds of steps, whatever it has learnt."""
    settings = find_settings(preset, network="mobilenetv3-small")
    how = Preprocessing(size=32, scale=32)
    learner = Learner(plan_network(settings.network, 3, 32), settings, how, place("cpu", "no"), 0)
    norms = [module for module in learner.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {momentum}


def test_a_preset_trains(few, tmp_path):
    settings = replace(find_settings("shipard2023", network="test_resnet"), epochs=1)
    made = train(few, tmp_path / "out", settings=settings, device="cpu")
    assert made.classifiers[0].preprocessing.size == 32
    assert made.classifiers[0].plan.stem == "standard"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1"),
        ({"batch_size": 1}, "batch_size must be a whole number from 2"),
        ({"learning_rate": 0.0}, "learning_rate must be over 0"),
        ({"label_smoothing": 1.0}, "label_smoothing must be from 0 to under 1"),
        ({"augment": "crops"}, "Unknown augment 'crops'.*'crop'"),
        ({"amp": "fp8"}, "Unknown amp"),
        ({"ema_decay": 1.0}, "ema_decay must be between 0 and 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(QUICK, **change)


def test_what_a_training_would_cost(generated):
    cost = estimate(generated, settings=QUICK, seeds=2, device="cpu")
    assert cost.images == 108
    assert cost.held_out == 12
    assert cost.steps == 2 * 4 * 7
    assert cost.seconds > 0
    assert cost.parameters == sum(p.numel() for p in load_network(cost).parameters())


def load_network(cost):
    return build_network(NetworkPlan.from_dict(cost.network))


def test_a_network_that_is_gone_is_an_error(few, tmp_path):
    settings = replace(QUICK, epochs=1)
    train(few, tmp_path / "out", settings=settings, device="cpu")
    (tmp_path / "out" / "seed-0" / "model.json").unlink()
    with pytest.raises(RunError, match=r"its network .* is gone"):
        train(few, tmp_path / "out", settings=settings, device="cpu")
    with pytest.raises(ModelError, match="cannot be read"):
        load_trained(tmp_path / "out", device="cpu")


def test_amp_must_be_possible(few, tmp_path):
    with pytest.raises(InputError, match="fp16 needs a CUDA GPU"):
        train(few, tmp_path / "out", settings=replace(QUICK, amp="fp16"), device="cpu")
    made = train(few, tmp_path / "out", settings=replace(QUICK, epochs=1, amp="bf16"), device="cpu")
    assert made.classifiers[0].network.network.fc.weight.dtype == torch.float32


@pytest.mark.slow
def test_two_processes_give_one_network(few, tmp_path):
    """Two processes on the CPU; with batches of all images, they make the steps that one makes."""
    folder = few.source.read.folder.parent
    command = ["train", "--data", folder, "--network", "test_vit", "--epochs", "2", "--batch-size", "64"]
    command += ["--augment", "none", "--no-flip", "--device", "cpu", "--json"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diffsight"]
    both = subprocess.run(
        [*map(str, [*launch, *command, "--out", tmp_path / "both"])], capture_output=True, text=True, check=False
    )
    assert both.returncode == 0, both.stderr
    assert json.loads(both.stdout)["seeds"][0]["epochs"] == 2
    one = train(
        few,
        tmp_path / "one",
        settings=TrainSettings(network="test_vit", epochs=2, batch_size=64, augment="none", flip=False),
        device="cpu",
    )
    ours, theirs = one.classifiers[0], TrainedClassifier.load(tmp_path / "both" / "seed-0", device="cpu")
    np.testing.assert_allclose(ours.predict_proba(few.source), theirs.predict_proba(few.source), atol=1e-4)
