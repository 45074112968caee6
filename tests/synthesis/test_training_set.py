import json
from dataclasses import replace

import numpy as np
import pytest
from digit_folders import NAMES, write_generated, write_photographs
from pipelines import save_stable_diffusion

from diffsight.backbones import load
from diffsight.backbones.sampling import Sampler
from diffsight.errors import InputError, SourceError
from diffsight.synthesis.protocol import check_protocol
from diffsight.synthesis.training_set import TrainingSet, join, match_classes, open_training_set


@pytest.fixture
def generated(tmp_path):
    return write_generated(tmp_path / "generated", 4)


@pytest.fixture
def photographs(tmp_path):
    return write_photographs(tmp_path / "photographs", 3)


def test_generated_images_say_so(generated):
    found = open_training_set(generated)
    assert found.synthetic
    assert found.class_names == NAMES
    assert found.targets.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.source.ids[0] == "number_one/00000.png"
    assert open_training_set(f"folder:{generated}").source.ids == found.source.ids


@pytest.mark.parametrize("format", ["folder", "wds"])
def test_sets_of_our_own_generator(tmp_path, format):
    from diffsight.synthesis.bag import make_trick
    from diffsight.synthesis.filters import Filters
    from diffsight.synthesis.generator import synthesize
    from diffsight.synthesis.plan import SynthesisSettings

    model = load(save_stable_diffusion(tmp_path / "model"), device="cpu")
    settings = SynthesisSettings(
        trick=make_trick("base"),
        per_class=2,
        sampler=Sampler(name="ddim", steps=1),
        filters=Filters(flat=0.0, repeated=False, near_duplicates=0),
        format=format,
    )
    made = synthesize(model, ["cat", "pug=a dog"], tmp_path / "set", settings=settings)
    found = open_training_set(tmp_path / "set")
    assert found.synthetic
    assert found.class_names == ("cat", "a dog")
    assert found.targets.tolist() == [0, 0, 1, 1]
    assert found.source[3].load().tobytes() == made.image(3).tobytes()
    (tmp_path / "set" / "dataset.json").unlink()
    with pytest.raises(SourceError, match="is not finished"):
        open_training_set(tmp_path / "set")


def test_classes_keep_the_order_and_the_spelling_of_their_description(generated):
    names = ["Number: Six", "number one", "number zero"]
    (generated / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": names}))
    found = open_training_set(generated)
    assert found.class_names == tuple(names)
    assert found.targets.tolist() == [1] * 4 + [0] * 4 + [2] * 4


def test_classes_may_name_their_folders(generated):
    classes = [{"name": f"class {n}", "folder": name.replace(" ", "_")} for n, name in enumerate(NAMES)]
    (generated / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": classes}))
    assert open_training_set(generated).class_names == ("class 0", "class 1", "class 2")


def test_real_images_do_not(photographs):
    found = open_training_set(photographs)
    assert not found.synthetic
    assert found.class_names == NAMES
    assert not open_training_set("sklearn:digits").synthetic


@pytest.mark.parametrize("content", ["{", "[]", '{"synthetic": true}', '{"synthetic": true, "classes": [1]}'])
def test_a_damaged_description_is_refused(generated, content):
    (generated / "dataset.json").write_text(content)
    with pytest.raises(SourceError, match=r"dataset\.json is not the description"):
        open_training_set(generated)


def test_only_true_is_synthetic(generated):
    (generated / "dataset.json").write_text(json.dumps({"synthetic": "yes", "classes": list(NAMES)}))
    assert not open_training_set(generated).synthetic


def test_folders_and_description_must_fit(generated):
    (generated / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": list(NAMES[:2])}))
    with pytest.raises(SourceError, match="'number_zero', which is no class"):
        open_training_set(generated)
    (generated / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": [*NAMES, "number two"]}))
    with pytest.raises(SourceError, match="no image of 'number two'"):
        open_training_set(generated)


def test_sets_are_joined_by_the_names_of_their_classes(generated, photographs):
    first = open_training_set(generated)
    second = open_training_set(photographs)
    turned = replace(second, class_names=NAMES[::-1], targets=2 - second.targets)
    both = join([first, turned])
    assert not both.synthetic
    assert len(both.source) == 12 + 9
    assert both.labels.tolist() == first.labels.tolist() + second.labels.tolist()
    assert both.source[0].load().tobytes() == first.source[0].load().tobytes()
    assert both.source[12].load().tobytes() == second.source[0].load().tobytes()
    assert both.source.content() == join([first, turned]).source.content()


def test_soft_and_hard_targets_together(generated, photographs):
    hard = open_training_set(generated)
    soft = open_training_set(photographs).with_targets(np.full((9, 3), 1 / 3))
    both = join([hard, soft])
    assert both.soft
    np.testing.assert_allclose(both.targets[0], [1, 0, 0])
    np.testing.assert_allclose(both.targets[-1], [1 / 3] * 3)


def test_targets_must_fit(photographs):
    found = open_training_set(photographs)
    for targets, message in [
        (np.zeros(4, int), "9 images but 4 targets"),
        (np.full(9, 3), "labels are from 0 to 2; got 3"),
        (np.full((9, 2), 0.5), "2 probabilities of each image, for 3 classes"),
        (np.full((9, 3), 0.5), "sum to 1"),
    ]:
        with pytest.raises(InputError, match=message):
            found.with_targets(targets)


def test_one_class_or_none_cannot_be_learnt(photographs):
    found = open_training_set(photographs)
    with pytest.raises(InputError, match="has 1 classes"):
        TrainingSet(source=found.source, class_names=("one",), targets=np.zeros(9, int))
    with pytest.raises(InputError, match="has no image"):
        TrainingSet(source=found.source.select([]), class_names=NAMES, targets=np.zeros(0, int))
    with pytest.raises(InputError, match="two classes have the name 'a'"):
        TrainingSet(source=found.source, class_names=("a", "a"), targets=np.zeros(9, int))


def test_a_folder_without_classes_has_no_labels(photographs):
    with pytest.raises(InputError, match="have no labels"):
        open_training_set(photographs / "number_one")


def test_classes_are_matched_by_name():
    assert match_classes(["T-shirt/top", "Ankle boot"], ["ankle_boot", "t shirt top"], of="It") == [1, 0]
    assert match_classes(["C", "C++"], ["C++", "C"], of="It") == [1, 0]
    with pytest.raises(InputError, match="It has no class 'cat' and a class 'dog' too many"):
        match_classes(["cat", "bird"], ["bird", "dog"], of="It")
    with pytest.raises(InputError, match="It has a class 'dog' too many"):
        match_classes(["bird"], ["bird", "dog"], of="It")
    with pytest.raises(InputError, match="Give data and networks of the same classes"):
        match_classes(["c", "d"], ["C", "C++"], of="It")


def test_real_images_decide_nothing_unless_it_is_said(generated, photographs):
    made, real = open_training_set(generated), open_training_set(photographs)
    soft = real.with_targets(np.full((9, 3), 1 / 3))
    check_protocol("zero-shot", [made], None)
    check_protocol("zero-shot", [made], made)
    check_protocol("oracle", [made], real)
    check_protocol("supervised", [real], real)
    check_protocol("distilled", [soft, made], made)
    for protocol, training, validation, message in [
        ("zero-shot", [real], None, "photographs is not known to be synthetic.*'supervised'"),
        ("zero-shot", [made, real], None, "photographs is not known to be synthetic"),
        ("zero-shot", [soft], None, "not known to be synthetic.*'distilled'"),
        ("zero-shot", [made], real, "no real image may choose an epoch.*'oracle'"),
        ("oracle", [real], None, "learns from generated images alone"),
        ("distilled", [real], None, "real images with labels"),
        ("distilled", [soft], real, "real images with labels"),
        ("zeroshot", [made], None, "Unknown protocol 'zeroshot'.*'zero-shot'"),
    ]:
        with pytest.raises(InputError, match=message):
            check_protocol(protocol, training, validation)
