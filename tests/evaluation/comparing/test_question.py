import shutil
from dataclasses import replace

import numpy as np
import pytest
from digit_folders import NAMES, write_photographs

from diffsight.data.readers import image_digest
from diffsight.errors import InputError, PromptError
from diffsight.evaluation.comparing.question import choose_labels, open_question, readable
from diffsight.evaluation.task import Task, folder_task, load_task


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("real") / "set", 10)


def test_a_folder_is_divided_and_no_picture_is_in_both_parts(photographs, tmp_path):
    task = folder_task(photographs)
    whole = open_question(task)
    assert (len(whole.test), len(whole.train), whole.classes) == (15, 15, NAMES)
    assert set(whole.test.ids).isdisjoint(whole.train.ids)
    assert open_question(task).test.ids == whole.test.ids
    assert open_question(task, seed=1).test.ids != whole.test.ids
    for id in whole.test.ids[:3]:  # copies of tested pictures under names that sort to the end
        name, _, file = id.partition("/")
        (photographs / name / f"z{file}").write_bytes((photographs / id).read_bytes())
    try:
        again = open_question(task)
        tested = {image_digest(again.test.read, id) for id in again.test.ids}
        assert tested.isdisjoint(image_digest(again.train.read, id) for id in again.train.ids)
        assert again.twice > 0
    finally:
        for copy in photographs.rglob("z*"):
            copy.unlink()


def test_the_whole_folder_is_tested_on_where_nothing_is_learnt(photographs):
    question = open_question(folder_task(photographs), divided=False)
    assert (len(question.test), question.train) == (30, None)
    assert choose_labels(question, None) == (0,)
    with pytest.raises(InputError, match="all images are tested on"):
        choose_labels(question, [1])


def test_a_limit_draws_from_all_classes(photographs):
    question = open_question(folder_task(photographs), limit=12, divided=False)
    assert len(question.test) == 12
    assert len(set(question.test.labels)) == 3


def test_one_image_of_each_class_cannot_be_divided(photographs, tmp_path):
    for folder in photographs.iterdir():
        (tmp_path / folder.name).mkdir()
        shutil.copy(min(folder.iterdir()), tmp_path / folder.name)
    with pytest.raises(InputError, match="or ask for --labels 0"):
        open_question(folder_task(tmp_path))
    assert len(open_question(folder_task(tmp_path), divided=False).test) == 3


def test_other_images_take_the_places_of_broken_ones(photographs, tmp_path, caplog):
    shutil.copytree(photographs, tmp_path / "set")
    question = open_question(folder_task(tmp_path / "set"))
    assert readable(question, 2, [0, 1]) is question
    drawn = question.draw(2, 0)
    for place in drawn.tolist()[:2]:
        (tmp_path / "set" / question.train.ids[place]).write_text("not an image")
    again = readable(question, 2, [0, 1])
    assert "cannot be read, and give no label: 2." in caplog.text
    assert np.bincount([again.train.labels[place] for place in again.draw(2, 0).tolist()]).tolist() == [2, 2, 2]
    for seed in (0, 1):
        for place in again.draw(2, seed).tolist():
            again.train.read(again.train.ids[place])
    with pytest.raises(InputError, match="cannot be read, and of those that can a class has 3"):
        readable(question, 5, [0])


def test_labels_that_are_not_there_are_refused(photographs):
    question = open_question(folder_task(photographs))
    assert choose_labels(question, None) == (0, 1)
    assert choose_labels(question, [5, 0, 5]) == (0, 5)
    assert np.bincount(np.array(question.train.labels)[question.draw(5, 0)]).tolist() == [5, 5, 5]
    assert set(question.draw(2, 0)) < set(question.draw(5, 0))
    with pytest.raises(InputError, match=r"6 labels .* 'number one' has 5 images"):
        choose_labels(question, [0, 6])
    with pytest.raises(InputError, match="numbers from 0"):
        choose_labels(question, [-1])


def test_images_without_labels_need_names(photographs, tmp_path):
    loose = tmp_path / "loose"
    loose.mkdir()
    for number, file in enumerate(sorted(photographs.rglob("*.png"))[:4]):
        (loose / f"{number}.png").write_bytes(file.read_bytes())
    with pytest.raises(PromptError, match="--classes"):
        open_question(folder_task(loose))
    question = open_question(folder_task(loose), class_names=["one", "six"])
    assert not question.labelled
    assert choose_labels(question, None) == (0,)
    with pytest.raises(InputError, match="have none"):
        choose_labels(question, [0, 1])


def test_parts_of_a_task(photographs):
    task = load_task("digits")
    question = open_question(task, limit=20)
    assert set(question.test.ids).isdisjoint(question.train.ids)
    same = open_question(replace(task, split="train"), limit=20)
    with pytest.raises(InputError, match="train split"):
        choose_labels(same, [1])


def test_a_task_without_training_images(tmp_path, photographs):
    task = Task(name="mine", source=f"folder:{photographs}", class_names=("a", "b"))
    with pytest.raises(PromptError, match="names 2 classes"):
        open_question(task)
