"""Runs on cue conflicts tell shape and texture apart, whatever the model is."""

import pytest

from diffsight.backbones import load
from diffsight.backbones.cards import assets
from diffsight.data.cue_conflict import cue_labels
from diffsight.evaluation.baselines import make_baseline_job
from diffsight.evaluation.rescoring import rescore
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import folder_task, load_task
from diffsight.evaluation.trained import evaluate_trained
from diffsight.report.page import make_report
from diffsight.scoring.elimination import Exhaustive
from diffsight.store.run import Run
from diffsight.zero_shot.settings import Settings

TASK = load_task("cue-conflict-shapes")


def of_diffusion(out):
    backbone = load("tiny-shapes", device="cpu")
    return evaluate(make_job(TASK, backbone, settings=Settings(policy=Exhaustive(num_draws=2)), limit=8), out)


def of_clip(out):
    return evaluate_trained(make_baseline_job(TASK, "tiny-shapes-clip", limit=8, device="cpu"), out)


@pytest.mark.parametrize("measure", [of_diffusion, of_clip])
def test_answers_are_counted_by_both_labels(measure, tmp_path):
    found = measure(tmp_path / "run")["cue_conflict"]
    rows = Run.load(tmp_path / "run").read("predictions").to_pylist()
    shapes, textures = cue_labels([row["id"] for row in rows], TASK.class_names)
    by_shape = sum(row["prediction"] == shape for row, shape in zip(rows, shapes, strict=True))
    by_texture = sum(row["prediction"] == texture for row, texture in zip(rows, textures, strict=True))
    assert (found["shape"], found["texture"], found["other"]) == (by_shape, by_texture, 8 - by_shape - by_texture)
    assert found["shape_accuracy"]["value"] == by_shape / 8
    assert make_report([tmp_path / "run"]).html.count("shape bias") == 1
    if measure is of_diffusion:
        again = rescore(tmp_path / "run", loss="l1")
        assert again["cue_conflict"]["shape_accuracy"]["value"] == again["top1"]["value"]


def test_other_tasks_have_no_such_numbers(tmp_path):
    backbone = load("tiny-fashion", device="cpu")
    settings = Settings(policy=Exhaustive(num_draws=1))

    job = make_job(folder_task(assets() / "samples"), backbone, settings=settings, limit=2)
    assert "cue_conflict" not in evaluate(job, tmp_path / "run")
