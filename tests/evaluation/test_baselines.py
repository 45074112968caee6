import json
from dataclasses import replace

import pytest
import torch
from digit_folders import NAMES, write_photographs
from encoders import save_dinov2, save_siglip, save_timm
from torch.nn.functional import normalize

from diffsight.backbones.encoders.loading import load_encoder
from diffsight.errors import InputError, ModelError
from diffsight.evaluation.baselines import baseline_kind, load_baseline, make_baseline_job, zero_shot
from diffsight.evaluation.supervised import load_timm, supervised
from diffsight.evaluation.task import folder_task
from diffsight.evaluation.trained import evaluate_trained
from diffsight.store.run import Run


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 6)


@pytest.fixture(scope="module")
def clip():
    return load_encoder("tiny-shapes-clip", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    names = ("number zero, nought", "number one", "number six", "number nine")
    return save_timm(tmp_path_factory.mktemp("timm") / "network", names)


def test_templates_are_averaged_as_in_the_paper(clip):
    made = zero_shot(clip, ["red circle", "blue square"], ["a {}", "one {} here"])
    vectors = [normalize(clip.texts([f"a {name}", f"one {name} here"]).mean(0), dim=0) for name in made.class_names]
    torch.testing.assert_close(made.weights, torch.stack(vectors))
    batch = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    torch.testing.assert_close(made.run(batch), clip.scale * clip.vectors(batch) @ made.weights.T)


def test_one_template_is_what_clip_answers(clip, photographs):
    job = make_baseline_job(folder_task(photographs), "tiny-shapes-clip", device="cpu", dtype="fp32")
    sample = job.source[0]
    logits = job.model.run(job.model.preprocessing(sample.load())[None])
    texts = [f"a photo of a {name}." for name in job.classes]
    torch.testing.assert_close(logits, clip.similarity([sample.load()], texts), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_zero_shot_runs_as_any_other_model(kind, photographs, tmp_path):
    model = "tiny-shapes-clip" if kind == "clip" else save_siglip(tmp_path / "siglip")
    job = make_baseline_job(folder_task(photographs), model, templates=["a {}"], device="cpu", limit=7)
    metrics = evaluate_trained(job, tmp_path / "run")
    assert (metrics["images"], metrics["calls"]["total"]) == (7, 0)
    assert metrics["label"].startswith("zero-shot")
    assert not metrics["learnt"]
    fields = Run.load(tmp_path / "run").manifest.fingerprint_fields
    assert fields["model"]["templates"] == ["a {}"]
    assert fields["kind"] == "zero-shot baseline"
    assert evaluate_trained(job, tmp_path / "run") == metrics


def test_a_supervised_network_answers_for_the_classes_that_it_knows(network, photographs, tmp_path):
    assert baseline_kind(network) == baseline_kind(f"timm:{network}") == "timm"
    job = make_baseline_job(folder_task(photographs), f"timm:{network}", device="cpu")
    assert job.model.columns == (1, 2, 0)
    assert (job.model.preprocessing.size, job.model.preprocessing.scale) == (24, 27)
    batch = torch.stack([job.model.preprocessing(job.source[i].load()) for i in range(3)])
    whole = job.model.timm.network(batch.float() / 255)
    torch.testing.assert_close(job.model.run(batch), whole[:, [1, 2, 0]])
    metrics = evaluate_trained(job, tmp_path / "run")
    assert metrics["label"].startswith("supervised")
    assert metrics["scored"] == 18


def test_classes_that_a_network_does_not_have_are_refused(network, tmp_path):
    known = load_timm(f"timm:{network}", device="cpu")
    with pytest.raises(InputError, match="no class 'number ten'"):
        supervised(known, ["number one", "number ten"])
    with pytest.raises(InputError, match="the same class"):
        supervised(known, ["number zero", "nought"])
    twice = replace(known, names=(("crane",), ("crane",), ("bird",)))
    with pytest.raises(InputError, match=r"2 classes 'crane' \(numbers \[0, 1\]\)"):
        supervised(twice, ["crane", "bird"])
    with pytest.raises(InputError, match="label_names"):
        supervised(replace(known, names=()), ["crane", "bird"])


def test_imagenets_classes_have_their_names(tmp_path):
    known = load_timm(save_timm(tmp_path / "imagenet", ()), device="cpu")
    assert len(known.names) == 1000
    assert supervised(known, ["goldfish", "Persian cat"]).columns == (1, 283)


def test_how_timm_squashes_is_kept(tmp_path, photographs):
    folder = save_timm(tmp_path / "squash", NAMES, crop_pct=1.0, crop_mode="squash")
    prepared = load_timm(folder, device="cpu").preprocessing
    image = folder_task(photographs) and make_baseline_job(folder_task(photographs), folder, device="cpu").source[0]
    wide = image.load().resize((40, 20))
    assert prepared(wide).shape == (3, 24, 24)
    with pytest.raises(ModelError, match="border"):
        load_timm(save_timm(tmp_path / "border", NAMES, crop_mode="border"), device="cpu")


def test_what_is_no_baseline(photographs, tmp_path):
    assert baseline_kind("tiny-fashion") is None
    assert baseline_kind(photographs) is None
    task = folder_task(photographs)
    with pytest.raises(InputError, match="DINOv2"):
        make_baseline_job(task, save_dinov2(tmp_path / "dino"), device="cpu")
    with pytest.raises(InputError, match=r"timm has no network 'resnet51'\. Did you mean"):
        load_timm("timm:resnet51")
    with pytest.raises(ModelError, match="Hub"):
        load_timm("timm:resnet18.a1_in1k")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        load_baseline(tmp_path / "empty", NAMES, ["{}"])
    with pytest.raises(InputError, match="limit is 0"):
        make_baseline_job(task, "tiny-shapes-clip", limit=0)
