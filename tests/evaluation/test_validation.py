import json
import re

import pytest
from PIL import Image

from diffsight.cli import main
from diffsight.errors import InputError
from diffsight.evaluation.task import list_tasks, load_task
from diffsight.evaluation.validation import validate_task

TEXT = """\
name: animals
version: 1
source: folder:photos
class_names: [cat, dog]
templates:
  - a photo of a {}.
licence: MIT
citation: me
"""


def save(path, value, size=(9, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


@pytest.fixture
def file(tmp_path):
    for number, name in enumerate(("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")):
        save(tmp_path / "photos" / name, 10 * number, size=(9 + number, 8))
    file = tmp_path / "animals.yaml"
    file.write_text(TEXT)
    return file


def test_a_sound_task(file):
    found = validate_task(file)
    assert (found.mistakes, found.notes) == ((), ())
    assert found.data["images"] == found.data["opened"] == 4
    assert found.data["per_class"] == {"least": 2, "most": 2}
    assert found.data["sides"] == {"least": 8, "most": 12}
    assert found.run["first_prompt"] == "a photo of a cat."
    assert found.run["chance"] == 0.5
    assert str(file) in found.run["command"]
    assert found.task == load_task(file)
    assert json.loads(json.dumps(found.to_dict()))["valid"] is True
    assert validate_task(file, images=2).data["opened"] == 2
    assert validate_task(file, images=0).data["opened"] == 0
    assert validate_task(file.parent / "photos").run["classes"] == 2
    assert "fog:3" in validate_task(f"{file}@fog:3").run["transform"]


def test_all_mistakes_are_told_with_their_lines(file):
    text = TEXT.replace("templates:", "templets:").replace("version: 1", "version: one").replace("[cat, dog]", "[cat]")
    file.write_text(text + "name: again\n")
    found = validate_task(file)
    assert found.task is None
    assert [(each.line, each.key) for each in found.mistakes] == [
        (5, "templets"),
        (9, "name"),
        (None, "templates"),
        (2, "version"),
        (4, "class_names"),
    ]
    assert "Did you mean 'templates'" in found.mistakes[0].message
    assert all(str(file) in each.message for each in found.mistakes)
    file.write_text(TEXT.replace("[cat, dog]", "[cat, dog"))
    assert validate_task(file).mistakes[0].line == 5


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("[cat, dog]", "[cat, dog, fox]", 4, "names 3 classes but .* has 2"),
        ("[cat, dog]", "[dog, cat]", 4, "at place 0, but .* has it at place 1"),
        ("folder:photos", "folder:fotos", 3, "There is no folder"),
        ("folder:photos", "torchvision:cifar11", 3, "Did you mean 'cifar10'"),
        ("licence: MIT", "licence: MIT\nsplit: nowhere", 8, "no split 'nowhere'"),
        ("licence: MIT", "licence: MIT\npresets: {li2024: ['a {}']}", 8, "Did you mean 'li2023'"),
    ],
)
def test_what_does_not_fit_the_data_is_told_with_its_line(file, old, new, line, says):
    text = TEXT.replace(old, new)
    if "split" in new:
        text = text.replace("folder:photos", "sklearn:digits")
    file.write_text(text)
    found = validate_task(file)
    assert len(found.mistakes) == 1
    assert found.mistakes[0].line == line
    assert f"line {line}" in found.mistakes[0].message
    assert re.search(says, found.mistakes[0].message)


def test_bad_images_are_counted(file):
    photos = file.parent / "photos"
    (photos / "cat/3.png").write_bytes(b"no image")
    (photos / "dog/3.png").write_bytes((photos / "cat/1.png").read_bytes())
    (photos / "dog/4.png").write_bytes((photos / "dog/1.png").read_bytes())
    (photos / "dog/5.png").write_bytes((photos / "dog/2.png").read_bytes())
    found = validate_task(file)
    assert not found.mistakes
    assert (found.data["unreadable"], found.data["duplicates"], found.data["in_several_classes"]) == (1, 3, 1)
    assert "3.png" in found.data["reasons"][0]
    notes = " ".join(found.notes)
    assert all(
        text in notes
        for text in ("1 of 8 images cannot be read", "more than once", "in several classes", "from 3 to 5")
    )
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no image")
    assert "none of 8 images can be read" in validate_task(file).mistakes[0].message


def test_images_without_labels_are_noted(tmp_path):
    save(tmp_path / "1.png", 1)
    file = tmp_path / "task.yaml"
    file.write_text(TEXT.replace("folder:photos", "folder:."))
    found = validate_task(tmp_path)
    assert not found.mistakes
    assert "no labels" in found.notes[0]


def test_data_of_known_sets_that_are_elsewhere_are_no_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr("diffsight.data.torchvision_sets.DEBIAN_FASHION_MNIST", tmp_path / "none")
    for name in list_tasks():
        found = validate_task(name, root=tmp_path, images=0)
        assert not found.mistakes, name
        made = load_task(name).source in ("sklearn:digits", "cue-conflict:shapes", "cue-conflict:stripes")
        assert (found.data is not None) == made, name
        assert (found.run is not None) == (made or load_task(name).class_names is not None), name
        assert made or "is not here" in found.notes[0]


def test_what_is_no_task_is_refused(tmp_path):
    with pytest.raises(InputError, match="There is no task"):
        validate_task("nothing")
    with pytest.raises(InputError, match="cannot be read"):
        validate_task(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff")
    assert "cannot be read" in validate_task(tmp_path / "bytes.yaml").mistakes[0].message


def test_command(file, capsys):
    assert main(["validate", str(file)]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("No mistakes.", "chance 50.0%", "a photo of a cat.", "diffsight evaluate"))
    assert main(["validate", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["images"] == 4
    file.write_text(TEXT.replace("version", "versoin"))
    assert main(["validate", str(file)]) == 2
    shown = capsys.readouterr().out
    assert f"{file}, line 2: unknown key 'versoin'. Did you mean 'version'?" in shown
    assert "2 mistakes: it cannot be run." in shown
    assert main(["validate", str(file), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["mistakes"][0]["line"] == 2
    assert main(["validate", "nothing"]) == 2
