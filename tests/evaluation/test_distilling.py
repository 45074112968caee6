import json
from dataclasses import replace

import numpy as np
import pytest

from diffsight import DiffusionClassifier, Staged, load
from diffsight.backbones.cards import assets
from diffsight.backbones.sampling import Sampler
from diffsight.errors import ImageError, InputError, RunError
from diffsight.evaluation.distilling import Recipe, cost, distil, label, open_photographs
from diffsight.synthesis.bag import make_trick
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.export import load_onnx
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.plan import SynthesisSettings
from diffsight.zero_shot.settings import Settings


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("bag", "trouser"):
        for number, path in enumerate(sorted((assets() / "samples" / name).glob("*.png"))[:6]):
            (folder / f"{number}-{name}.png").write_bytes(path.read_bytes())
    (folder / "broken.png").write_bytes(b"")
    return open_photographs(folder)


@pytest.fixture(scope="module")
def recipe():
    return Recipe(
        backbone=load("tiny-fashion", device="cpu", dtype="fp32"),
        classes=Classes.parse(["trouser", "bag"]),
        synthesis=SynthesisSettings(trick=make_trick("base"), per_class=4, sampler=Sampler(steps=2)),
        scoring=Settings(policy=Staged(samples=(8,), keep=(1,))),
        training=TrainSettings(network="test_resnet", epochs=2, batch_size=8, validation_share=0.25),
    )


def test_from_class_names_to_onnx(recipe, tmp_path):
    seen = set()
    file = tmp_path / "model.onnx"
    found = distil(recipe, tmp_path / "out", export=file, device="cpu", progress=lambda *state: seen.add(state[0]))
    assert found["protocol"] == "zero-shot"
    assert found["sources"] == {"generated": 8, "photographs": 0, "unreadable": 0}
    assert found["export"] == str(file)
    model = load_onnx(file)
    assert model.class_names == ("trouser", "bag")
    assert model.label.startswith("zero-shot")
    assert {"images drawn", "steps of seed 0"} <= seen
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["network", "synthetic"]
    seen.clear()
    again = distil(recipe, tmp_path / "out", device="cpu", progress=lambda *state: seen.add(state[0]))
    assert again == found | {"export": None}
    assert "steps of seed 0" not in seen
    with pytest.raises(RunError, match="per_class"):
        distil(replace(recipe, synthesis=replace(recipe.synthesis, per_class=5)), tmp_path / "out", device="cpu")


def test_photographs_are_labelled_by_the_zero_shot_classifier(recipe, photographs, tmp_path):
    found = label(replace(recipe, photographs=photographs), tmp_path / "labels")
    assert found.class_names == ("trouser", "bag")
    assert not found.synthetic
    assert (len(found.source), found.source.labels, found.targets.shape) == (12, None, (12, 2))
    assert found.labels.tolist() == [int("bag" in id) for id in found.source.ids]
    same = DiffusionClassifier(recipe.backbone, ["trouser", "bag"], policy=recipe.scoring.policy)
    assert same.fit().predict_proba(found.source).argmax(axis=1).tolist() == found.labels.tolist()
    again = label(replace(recipe, photographs=photographs), tmp_path / "labels")
    assert np.array_equal(again.targets, found.targets)


@pytest.mark.parametrize("generated", [4, 0])
def test_photographs_make_another_protocol(recipe, photographs, tmp_path, generated):
    synthesis = recipe.synthesis if generated else None
    mixed = replace(recipe, photographs=photographs, synthesis=synthesis)
    found = distil(mixed, tmp_path / "out", export=tmp_path / "model.onnx", device="cpu")
    assert found["protocol"] == "distilled"
    assert found["sources"] == {"generated": 2 * generated, "photographs": 12, "unreadable": 1}
    said = "distilled: real images labelled by a model; no label of a person was used"
    assert found["label"] == load_onnx(tmp_path / "model.onnx").label
    assert found["label"].startswith(said)
    assert ("tiny-fashion was trained on the classes of fashion-mnist" in found["label"]) == bool(generated)


def test_what_it_costs(recipe, photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = cost(replace(recipe, photographs=photographs), device="cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["protocol"] == "distilled"
    assert found["steps"]["synthesize"]["images"] == 8
    assert found["steps"]["label"]["images"] == 13
    assert found["steps"]["label"]["calls"] == 13 * 16
    assert found["steps"]["train"]["steps"] == 2 * 2  # 16 of 21 images, in batches of 8
    assert found["calls"] == found["steps"]["synthesize"]["calls"] + 13 * 16
    assert found["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_distilled_is_refused(recipe, photographs, tmp_path):
    with pytest.raises(InputError, match="nothing to learn from"):
        replace(recipe, synthesis=None)
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        distil(recipe, tmp_path / "out", export=tmp_path / "model.pt")
    assert not (tmp_path / "out").exists()
    broken = photographs.select([photographs.ids.index("broken.png")])
    with pytest.raises(ImageError, match="None of 1 photographs can be read"):
        label(replace(recipe, photographs=broken), tmp_path / "labels")
