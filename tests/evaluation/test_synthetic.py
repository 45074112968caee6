import json
from dataclasses import replace

import numpy as np
import pytest
from digit_folders import NAMES, write_generated, write_photographs

from diffsight import DiffusionClassifier, Staged, load
from diffsight.backbones.cards import assets
from diffsight.errors import InputError, SourceError
from diffsight.evaluation.embedding import diffusion_embedder
from diffsight.evaluation.gaussian import evaluate_gaussian
from diffsight.evaluation.synthetic import ORACLE, agreement, open_real, open_set, report
from diffsight.evaluation.task import folder_task
from diffsight.synthesis import diversity
from diffsight.synthesis.gaussian import GaussianClassifier
from diffsight.synthesis.training_set import open_training_set


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def embedder(backbone, tmp_path_factory):
    return diffusion_embedder(backbone, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_generated(tmp_path_factory.mktemp("generated") / "set", 16, side=28)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 12, skip=40, side=28)


def test_a_set_alone_at_equal_numbers(folder, embedder):
    images, generator = open_set(folder)
    assert generator is None
    found = report(images, embedder, per_class=6)
    assert json.loads(json.dumps(found)) == found
    assert [one["name"] for one in found["classes"]] == list(NAMES)
    assert [one["images"] for one in found["classes"]] == [6, 6, 6]
    assert (found["pooled"]["images"], found["oracle"], found["agreement"], found["failed"]) == (18, None, None, [])
    assert max(one["vendi"] for one in found["classes"]) < found["pooled"]["vendi"] < 18
    assert min(one["cosine"] for one in found["classes"]) > found["pooled"]["cosine"]
    everything = report(images, embedder)
    values = embedder.embed(images.source).values
    assert everything["pooled"]["vendi"] == pytest.approx(diversity.vendi_score(values), rel=1e-6)


def test_real_images_stand_under_oracle(folder, photographs, embedder):
    images, _ = open_set(folder)
    real = open_real(str(photographs))
    assert real.class_names == NAMES
    found = report(images, embedder, real=real)["oracle"]
    assert found["label"] == ORACLE
    assert found["images"] == 36  # twelve of each class on both sides
    assert [one["images"] for one in found["classes"]] == [12, 12, 12]
    assert found["fid"] > 0
    assert "fid" not in found["classes"][0]
    for one in (found, *found["classes"]):
        assert 0 <= one["precision"] <= 1
        assert one["real_alone"]["images"] == one["images"]
    same = report(open_training_set(photographs), embedder, real=real)["oracle"]
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert found["fid"] > same["fid"]


def test_classes_are_compared_by_name_and_unlabelled_images_as_a_whole(folder, photographs, embedder, tmp_path):
    images, _ = open_set(folder)
    real = open_real(str(photographs))
    known = report(images, embedder, real=real)["oracle"]["classes"]
    labels = tuple((label + 1) % 3 for label in real.source.labels)
    names = (NAMES[2], *NAMES[:2])
    turned = replace(real, source=replace(real.source, labels=labels, class_names=names), class_names=names)
    for one, other in zip(report(images, embedder, real=turned)["oracle"]["classes"], known, strict=True):
        assert one["real_alone"]["vendi"] == pytest.approx(other["real_alone"]["vendi"])
        assert one["kid"]["value"] == pytest.approx(other["kid"]["value"])
    for number, file in enumerate(sorted(photographs.rglob("*.png"))):
        (tmp_path / f"{number}.png").write_bytes(file.read_bytes())
    found = report(images, embedder, real=open_real(f"folder:{tmp_path}"))["oracle"]
    assert (found["images"], found["classes"]) == (36, None)


def test_images_that_cannot_be_read_are_listed_and_numbers_stay_equal(tmp_path, embedder):
    images, _ = open_set(write_generated(tmp_path / "set", 8, side=28))
    (tmp_path / "set" / "images" / "number_six" / "00003.png").write_bytes(b"")
    found = report(images, embedder)
    assert [one["id"] for one in found["failed"]] == ["number_six/00003.png"]
    assert [one["images"] for one in found["classes"]] == [7, 7, 7]


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Three trousers and three bags that tiny-fashion knows; the last bag is in the folder of trousers, too."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ("bag", "trouser"):
        (folder / name).mkdir()
        for number, path in enumerate(sorted((assets() / "samples" / name).glob("*.png"))[:3]):
            (folder / name / f"{number}.png").write_bytes(path.read_bytes())
    (folder / "trouser" / "3.png").write_bytes((folder / "bag" / "2.png").read_bytes())
    (folder / "trouser" / "broken.png").write_bytes(b"")
    return folder


def test_label_agreement(backbone, samples):
    images = open_training_set(samples)
    classifier = DiffusionClassifier(backbone, ["trouser", "bag"], policy=Staged(samples=(8,), keep=(1,)))
    found = agreement(images, classifier)
    assert found["images"] == 7
    assert found["value"]["value"] == pytest.approx(6 / 7)
    assert found["classes"] == [{"name": "bag", "value": 1.0}, {"name": "trouser", "value": 0.75}]
    assert found["calls"] == 7 * 16
    assert found["classifier"] == "tiny-fashion"
    with pytest.raises(InputError, match="The classifier has no class 'trouser'"):
        agreement(images, DiffusionClassifier(backbone, ["coat", "bag"]))


def test_gaussians_of_generated_images_on_real_ones(folder, photographs, embedder):
    images, _ = open_set(folder)
    seen = []
    found = evaluate_gaussian(images, folder_task(photographs), embedder, progress=lambda *state: seen.append(state))
    assert json.loads(json.dumps(found)) == found
    test = embedder.embed(open_real(str(photographs)).source)
    references = embedder.embed(images.source)
    model = GaussianClassifier().fit(references.values, images.labels)
    truth = np.repeat([0, 1, 2], 12)
    assert found["top1"]["value"] == np.mean(model.predict(test.values) == truth)
    assert found["top1"]["value"] > 0.8
    assert found["label"].startswith("zero-shot: Gaussians on features of generated images")
    assert (found["references"]["images"], found["scored"], found["calls"]["mean"]) == (48, 36, 1.0)
    assert {what for what, *_ in seen} <= {"references", "test images"}
    options = GaussianClassifier(covariance="per-class", shrinkage=0.5)
    other = evaluate_gaussian(images, folder_task(photographs), embedder, classifier=options, limit=5)
    assert (other["scored"], other["shrinkage"]) == (5, [0.5] * 3)


def test_what_cannot_be_reported_is_refused(folder, photographs, samples, embedder):
    images, _ = open_set(folder)
    with pytest.raises(InputError, match="fewer than the 17 per class"):
        report(images, embedder, per_class=17)
    with pytest.raises(InputError, match="no class 'number one'"):
        report(images, embedder, real=open_real(str(samples)))
    with pytest.raises(InputError, match="1 images that can be used"):
        report(images, embedder, per_class=1)
    with pytest.raises(InputError, match="no task 'mnist-fashionable'"):
        open_real("mnist-fashionable")
    with pytest.raises(InputError, match="not known to be synthetic"):
        evaluate_gaussian(open_training_set(photographs), folder_task(photographs), embedder)
    with pytest.raises(InputError, match="limit is 0"):
        evaluate_gaussian(images, folder_task(photographs), embedder, limit=0)
    with pytest.raises(SourceError, match="There is no folder"):
        open_set("nowhere")
