import json

import numpy as np
import pytest
import torch
from digit_folders import NAMES, write_photographs

from diffsight.backbones import load
from diffsight.data.corruptions import Corruption, Resolution
from diffsight.data.cue_conflict import cue_labels
from diffsight.errors import InputError, RunError, SourceError
from diffsight.evaluation.metrics.shape_bias import cue_conflict
from diffsight.evaluation.probing import open_parts
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import folder_task, load_task, parse_task
from diffsight.evaluation.trained import evaluate_trained, make_trained_job
from diffsight.scoring.elimination import Exhaustive
from diffsight.store.run import Run
from diffsight.synthesis.preprocessing import Preprocessing
from diffsight.zero_shot.settings import Settings

QUICK = Settings(policy=Exhaustive(num_draws=4))


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 6)


class Brightness:
    """A network that says of an image how bright it is: 'zero_one' if it is dark, and so on."""

    class_names = tuple(NAMES)
    preprocessing = Preprocessing(size=8, scale=8)
    label = "zero-shot"

    def run(self, batch):
        place = batch.float().mean(dim=(1, 2, 3))[:, None] / 256 * len(NAMES)
        return -((torch.arange(len(NAMES)) + 0.5 - place) ** 2)

    def identity(self):
        return {"weights": "none"}


def test_any_task_can_be_corrupted(photographs, tmp_path):
    clean = load_task("fashion-mnist")
    task = load_task("fashion-mnist@fog:3")
    assert (task.name, task.source) == ("fashion-mnist@fog:3", "torchvision:fashion-mnist@fog:3")
    assert (task.class_names, task.templates, task.version) == (clean.class_names, clean.templates, clean.version)
    assert load_task(f"{photographs}@resolution:4").source == f"folder:{photographs}@resolution:4"
    assert load_task(f"folder:{photographs}@fog:1").name == "set@fog:1"
    file = tmp_path / "own.yaml"
    text = "name: own\nversion: 1\nsource: folder:set@snow:2\ntemplates: ['{}']\nlicence: MIT\ncitation: me\n"
    file.write_text(text)
    assert load_task(file).source == f"folder:{tmp_path / 'set@snow:2'}"
    assert load_task(f"{file}@fog:1").source.endswith("set@snow:2@fog:1")
    with pytest.raises(InputError, match=r"line 3, source: Unknown corruption 'snoww'\. Did you mean 'snow'"):
        parse_task(text.replace("snow", "snoww"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fashion-mnist@gausian-noise:3", "Did you mean 'gaussian-noise'"),
        ("fashion-mnist@fog:9", "severity is 1, 2, 3, 4 or 5; got 9"),
        ("fashon-mnist@fog:3", "no task 'fashon-mnist'.*Did you mean 'fashion-mnist'"),
    ],
)
def test_wrong_names(name, said):
    with pytest.raises(InputError, match=said):
        load_task(name)


def test_a_diffusion_model_on_corrupted_images(backbone, photographs, tmp_path):
    jobs = {
        spec: make_job(load_task(f"{photographs}{spec}"), backbone, settings=QUICK, limit=4)
        for spec in ("", "@fog:3", "@fog:4", "@fog:3:1", "@resolution:3")
    }
    fields = [json.dumps(job.manifest(8).fingerprint_fields, sort_keys=True) for job in jobs.values()]
    assert len({*fields}) == len(fields)
    metrics = evaluate(jobs["@fog:3"], tmp_path / "run", batch_size=8)
    assert (metrics["scored"], metrics["failed"]) == (4, 0)
    assert all(id.endswith("@fog:3") for id in Run.load(tmp_path / "run").read("predictions")["id"].to_pylist())
    with pytest.raises(RunError, match="fog"):
        evaluate(jobs["@fog:4"], tmp_path / "run", batch_size=8)


def test_a_network_on_corrupted_images(photographs, tmp_path):
    jobs = [make_trained_job(load_task(f"{photographs}{spec}"), Brightness()) for spec in ("", "@brightness:5")]
    tables = []
    for number, job in enumerate(jobs):
        evaluate_trained(job, tmp_path / str(number))
        tables.append(Run.load(tmp_path / str(number)).read("predictions")["prediction"].to_pylist())
    assert np.mean(tables[1]) > np.mean(tables[0])
    assert jobs[0].manifest().fingerprint_fields != jobs[1].manifest().fingerprint_fields


def test_heads_are_trained_on_clean_images_and_tested_on_corrupted_ones(photographs):
    parts = open_parts(load_task("digits@fog:3"))
    assert not any("@" in id for id in parts.train.ids)
    assert all(id.endswith("@fog:3") for id in parts.test.ids)
    clean, foggy = open_parts(folder_task(photographs)), open_parts(load_task(f"{photographs}@fog:3"))
    assert foggy.train.ids == clean.train.ids
    assert foggy.test.ids == tuple(f"{id}@fog:3" for id in clean.test.ids)


def test_shape_and_texture_decisions_of_a_run(tmp_path):
    task = load_task("cue-conflict-shapes")
    job = make_job(task, load("tiny-shapes", device="cpu"), settings=QUICK, limit=10)
    metrics = evaluate(job, tmp_path / "run", batch_size=64)
    table = Run.load(tmp_path / "run").read("predictions")
    shapes, textures = cue_labels(table["id"].to_pylist(), task.class_names)
    assert shapes.tolist() == table["label"].to_pylist()
    found = cue_conflict(
        predictions=table["prediction"].to_pylist(),
        shapes=shapes.tolist(),
        textures=textures.tolist(),
        class_names=task.class_names,
    )
    assert (found.images, found.same_cue) == (10, 0)
    assert found.shape_accuracy.value == metrics["top1"]["value"]
    assert found.shape + found.texture >= 5  # chance would be half of them


def test_cue_conflicts_of_the_paper_are_read_from_a_copy(tmp_path):
    with pytest.raises(SourceError, match="texture-vs-shape"):
        make_trained_job(load_task("cue-conflict"), Brightness(), root=tmp_path)
    assert Corruption("fog").spec == "fog:3"
    assert Resolution(4).spec == "resolution:4"
