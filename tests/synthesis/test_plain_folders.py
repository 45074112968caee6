import json

import numpy as np
import pytest
from digit_folders import NAMES, write_generated, write_photographs

from diffsight.data.torchvision_sets import TORCHVISION
from diffsight.errors import InputError
from diffsight.evaluation.task import load_task
from diffsight.synthesis.plain_folders import as_classes, folders_of
from diffsight.synthesis.protocol import check_protocol, user_word
from diffsight.synthesis.training_set import join, open_training_set


@pytest.fixture
def folder(tmp_path):
    """As others give away what they generated: folders of classes, and no word about where they are from."""
    return write_photographs(tmp_path / "given", 4)


def renamed(folder, *names):
    for old, new in zip(sorted(folder.iterdir()), names, strict=True):
        old.rename(folder / new)
    return folder


def test_a_plain_folder_is_synthetic_if_the_user_says_so(folder):
    plain, said = open_training_set(folder), open_training_set(folder, synthetic=True)
    assert (plain.synthetic, plain.stated) == (False, False)
    assert (said.synthetic, said.stated) == (True, True)
    with pytest.raises(InputError, match=r"not known to be synthetic.*--synthetic"):
        check_protocol("zero-shot", [plain], None)
    check_protocol("zero-shot", [said], None)
    assert "stated" not in plain.fingerprint()
    assert said.fingerprint() == plain.fingerprint() | {"synthetic": True, "stated": True}


def test_a_description_needs_no_word_and_cannot_be_overruled(folder, tmp_path):
    generated = write_generated(tmp_path / "generated", 2)
    found = open_training_set(generated, synthetic=True)
    assert (found.synthetic, found.stated) == (True, False)
    both = join([found, open_training_set(folder, synthetic=True)])
    assert (both.synthetic, both.stated) == (True, True)
    (generated / "dataset.json").write_text(json.dumps({"synthetic": False, "classes": list(NAMES)}))
    with pytest.raises(InputError, match=r"dataset\.json does not say that the images are synthetic"):
        open_training_set(generated, synthetic=True)
    with pytest.raises(InputError, match="known set of real images"):
        open_training_set("sklearn:digits", synthetic=True)


def test_the_word_is_said_beside_every_number(folder):
    said, plain = (open_training_set(folder, synthetic=value).fingerprint() for value in (True, False))
    for data in ({"training": [plain, said], "validation": None}, {"training": [], "validation": said}):
        assert user_word(data) == "that folder:given is generated is the word of who trained it"
    assert user_word({"training": [plain], "validation": plain}) is None
    assert user_word({}) is None


@pytest.mark.parametrize("names", [("AnnualCrop", "River", "SeaLake"), ("annual_crop_land", "river", "Lake or Sea")])
def test_folders_are_matched_to_a_task(folder, names, caplog):
    task = load_task("eurosat")
    with caplog.at_level("INFO"):
        found = as_classes(
            open_training_set(renamed(folder, *sorted(names, key=str.casefold)), synthetic=True),
            task.class_names,
            folders=folders_of(task.source),
            of="the task 'eurosat'",
        )
    assert found.class_names == task.class_names
    assert sorted(set(found.targets.tolist())) == [0, 8, 9]
    by_folder = {id.partition("/")[0]: label for id, label in zip(found.source.ids, found.targets, strict=True)}
    assert by_folder == dict(zip(names, (0, 8, 9), strict=True))
    assert found.source.labels == tuple(found.targets.tolist())
    assert found.stated
    assert "12 images of 3 of the 10 classes of the task 'eurosat', 4 to 4 of each" in caplog.text
    assert "has no image of 'forest'" in caplog.text


def test_unknown_folders_are_refused(folder):
    found = open_training_set(renamed(folder, "AnnualCrop", "River", "Sea"))
    names, folders = load_task("eurosat").class_names, TORCHVISION["eurosat"].folders
    with pytest.raises(InputError, match=r"'Sea', which is no class of it.*Rename the folder"):
        as_classes(found, names, folders=folders, of="it")


def test_two_folders_of_one_class_are_joined(folder):
    found = open_training_set(renamed(folder, "AnnualCrop", "River", "annual crop land"))
    names, folders = load_task("eurosat").class_names, TORCHVISION["eurosat"].folders
    joined = as_classes(found, names, folders=folders, of="it")
    assert np.bincount(joined.targets).tolist() == [8, 0, 0, 0, 0, 0, 0, 0, 4]


def test_spelling_that_leaves_a_doubt_does_not_count(folder):
    found = open_training_set(renamed(folder, "C", "C++", "c#"))
    matched = as_classes(found, ("c#", "C", "C++"), of="it")
    for id, label in zip(matched.source.ids, matched.targets, strict=True):
        assert ("c#", "C", "C++")[label] == id.partition("/")[0]
    with pytest.raises(InputError, match=r"'C', which is no class of it"):
        as_classes(found, ("c#", "c", "C++"), of="it")


def test_soft_targets_keep_their_probabilities(folder):
    hard = open_training_set(folder)
    soft = hard.with_targets(np.tile([0.5, 0.25, 0.25], (12, 1)))
    found = as_classes(soft, ("number zero", "number two", "number one", "number six"), of="it")
    np.testing.assert_allclose(found.targets[0], [0.25, 0, 0.5, 0.25])


def test_names_of_folders_are_known_where_they_differ():
    assert folders_of("torchvision:eurosat") == folders_of("spatial:eurosat-cells") == folders_of("spatial:eurosat")
    assert folders_of("torchvision:eurosat")[9] == "SeaLake"
    assert folders_of("torchvision:cifar10") == folders_of("folder:eurosat") == folders_of("eurosat") == ()
