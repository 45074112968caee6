from dataclasses import replace

import numpy as np
import pytest
import torch
from digit_folders import NAMES, write_generated, write_photographs

from diffsight.errors import InputError, RunError
from diffsight.evaluation import trained as evaluation
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.evaluation.recognisers import is_trained, load_recognisers
from diffsight.evaluation.task import folder_task, load_task
from diffsight.evaluation.trained import adapted, evaluate_trained, make_trained_job, over_seeds, pace
from diffsight.store.run import Run
from diffsight.synthesis.export import export_onnx
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.trainer import train
from diffsight.synthesis.training_set import open_training_set

QUICK = TrainSettings(network="test_resnet", epochs=5, batch_size=16, flip=False, learning_rate=5e-3, patience=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("networks")
    images = open_training_set(write_generated(place / "set", 40))
    train(images, place / "out", settings=QUICK, seeds=2, device="cpu")
    return place / "out"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Thirty of each class, and one file that is no image."""
    place = write_photographs(tmp_path_factory.mktemp("real") / "set", 30, skip=40)
    (place / "number_six" / "broken.png").write_text("not an image")
    return place


@pytest.fixture(scope="module")
def job(folder, photographs):
    return make_trained_job(folder_task(photographs), load_recognisers(folder, device="cpu")[0])


def test_metrics_of_real_images(job, tmp_path):
    metrics = evaluate_trained(job, tmp_path / "run")
    model = job.model
    truth = np.array(NAMES)[
        [label for id, label in zip(job.source.ids, job.source.labels, strict=True) if "bro" not in id]
    ]
    readable = job.source.select([index for index, id in enumerate(job.source.ids) if "broken" not in id])
    hits = int((model.predict(readable) == truth).sum())
    assert (metrics["scored"], metrics["failed"], metrics["images"]) == (90, 1, 91)
    assert metrics["top1"] == {key: getattr(wilson(hits, 90), key) for key in ("value", "low", "high")}
    assert metrics["top1"]["value"] > 0.8
    assert [one["name"] for one in metrics["per_class"]] == list(NAMES)
    assert 0 <= metrics["calibration"]["ece"] <= 1
    assert metrics["calls"]["total"] == 0
    assert metrics["speed"]["images_per_second"] >= metrics["speed"]["with_reading"] > 0
    assert metrics["label"].startswith("zero-shot")
    assert not metrics["learnt"]
    assert Run.load(tmp_path / "run").failures()[0]["id"] == "number_six/broken.png"


def test_an_interrupted_run_is_continued(job, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "GROUP", 8)
    whole = evaluate_trained(job, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def kill(done, total):
        if done >= 40:
            raise Killed

    with pytest.raises(Killed):
        evaluate_trained(job, tmp_path / "parts", commit_every=16, progress=kill)
    done = []
    parts = evaluate_trained(job, tmp_path / "parts", commit_every=16, progress=lambda n, total: done.append(n))
    assert done[0] == 40
    assert {key: value for key, value in parts.items() if key != "speed"} == {
        key: value for key, value in whole.items() if key != "speed"
    }
    rows = [Run.load(tmp_path / name).read("predictions").to_pylist() for name in ("whole", "parts")]
    assert rows[0] == rows[1]
    assert evaluate_trained(job, tmp_path / "parts") == parts


def test_another_network_is_another_run(folder, job, photographs, tmp_path):
    evaluate_trained(job, tmp_path / "run")
    other = make_trained_job(folder_task(photographs), load_recognisers(folder, device="cpu")[1])
    with pytest.raises(RunError, match=r"model\.weights"):
        evaluate_trained(other, tmp_path / "run")


def test_seeds_have_a_mean(folder, photographs, tmp_path):
    jobs = [make_trained_job(folder_task(photographs), one) for one in load_recognisers(folder, device="cpu")]
    results = [evaluate_trained(each, tmp_path / str(number)) for number, each in enumerate(jobs)]
    both = over_seeds(results)
    assert both["mean"] == pytest.approx(np.mean([one["value"] for one in results]))
    assert both["sd"] == pytest.approx(np.std([one["value"] for one in results], ddof=1))
    assert over_seeds(results[:1])["sd"] is None


def test_an_onnx_file_gives_the_same(folder, job, photographs, tmp_path):
    file = export_onnx(job.model, tmp_path / "model.onnx").path
    (found,) = load_recognisers(file)
    other = evaluate_trained(make_trained_job(folder_task(photographs), found), tmp_path / "onnx")
    ours = evaluate_trained(job, tmp_path / "torch")
    assert other["top1"] == ours["top1"]
    assert other["speed"]["device"] == "cpu (onnxruntime)"
    with pytest.raises(InputError, match="not in an ONNX file"):
        adapted(make_trained_job(folder_task(photographs), found))


def test_classes_are_matched_by_name(job, photographs):
    task = folder_task(photographs)
    turned = replace(job.model, class_names=tuple(name.upper() for name in NAMES[::-1]))
    assert make_trained_job(task, turned).order == (2, 1, 0)
    for names in (("number one", "number two", "number zero"), NAMES[:2]):
        with pytest.raises(InputError, match="The network has"):
            make_trained_job(task, replace(job.model, class_names=names))
    with pytest.raises(InputError, match="limit is 0"):
        make_trained_job(task, job.model, limit=0)
    assert len(make_trained_job(task, job.model, limit=7).source) == 7


def test_adapting_skips_what_cannot_be_read(job, tmp_path):
    other = adapted(job)
    assert other.model.adapted == 90
    assert "transductive" in evaluate_trained(other, tmp_path / "run")["label"]


def test_images_that_were_learnt_from_are_told(folder, job, photographs, tmp_path):
    made = train(
        open_training_set(photographs),
        tmp_path / "ceiling",
        settings=replace(QUICK, epochs=1),
        protocol="supervised",
        device="cpu",
    )
    again = make_trained_job(folder_task(photographs), made.classifiers[0])
    assert again.learnt
    assert evaluate_trained(again, tmp_path / "run")["learnt"]
    assert not job.learnt
    assert make_trained_job(folder_task(photographs), made.classifiers[0], limit=7).learnt  # and some of them
    assert make_trained_job(load_task(f"{photographs}@fog:1"), made.classifiers[0]).learnt  # and changed ones


def test_what_is_a_network(folder, photographs):
    assert is_trained(folder)
    assert is_trained(folder / "seed-0")
    assert is_trained("somewhere/model.onnx")
    assert not is_trained(photographs)
    assert not is_trained("tiny-fashion")
    assert [one.notes["seed"] for one in load_recognisers(folder / "seed-1", device=torch.device("cpu"))] == [1]


def test_pace(job):
    assert pace(job, images=5) > 0
