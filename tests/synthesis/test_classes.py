import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.errors import PromptError
from diffsight.evaluation.task import list_tasks, load_task
from diffsight.synthesis.classes import Classes


def test_names_become_folders():
    classes = Classes.parse([" sweet  pepper ", "t-shirt=T-shirt/top", "Käfer"])
    assert classes.names == ("sweet pepper", "T-shirt/top", "Käfer")
    assert classes.folders == ("sweet_pepper", "t-shirt", "Käfer")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "at least two classes; got none"),
        (["cat"], "got only 'cat'"),
        (["cat", " "], "name of a class is empty"),
        (["cat", "T-shirt/top"], "'/' is a path separator. Name another one before it: FOLDER=T-shirt/top"),
        (["cat", "a\\b"], "path separator"),
        (["cat", ".."], "hidden"),
        (["cat", ".cat"], "hidden"),
        (["cat", "../../etc=dog"], "path separator"),
        (["cat", "=dog"], "it is empty"),
        (["cat", "aux"], "Windows reserves"),
        (["cat", "com1.x"], "Windows reserves"),
        (["cat", "what?"], "a character that file systems forbid"),
        (["cat", "a\x00b"], "a character that file systems forbid"),
        (["cat", "dog."], "change on other systems"),
        (["cat", "x" * 121], "121 bytes, over 120"),
        (["cat", "\udcff"], "not UTF-8"),
        (["cat", "Cat"], "'cat' = 'Cat'"),
        (["sweet pepper", "sweet_pepper"], "'sweet pepper' = 'sweet_pepper'"),
        (["Caf\u00e9", "Cafe\u0301"], "must differ"),
        (["x=cat", "X=dog"], "Folders of classes must differ by more than case, spaces and underscores: 'cat' = 'dog'"),
    ],
)
def test_names_that_are_no_safe_folders_are_refused(names, message):
    with pytest.raises(PromptError) as refused:
        Classes.parse(names)
    assert message in str(refused.value)


@given(st.lists(st.text(max_size=12), min_size=2, max_size=4))
def test_no_folder_leads_out(names):
    try:
        classes = Classes.parse(names)
    except PromptError:
        return
    for folder in classes.folders:
        assert "/" not in folder
        assert folder not in ("", ".", "..")
        assert "\x00" not in folder


def test_the_classes_of_all_tasks_have_folders():
    named = [task.class_names for task in map(load_task, list_tasks()) if task.class_names]
    for names in named:
        classes = Classes.of_task(names)
        assert classes.names == tuple(names)
        assert len({*classes.folders}) == len(names)
    assert "T-shirt-top" in Classes.of_task(load_task("fashion-mnist").class_names).folders
