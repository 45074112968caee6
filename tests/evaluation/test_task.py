import subprocess
import sys

import pytest
import yaml
from torchvision import datasets

from diffsight.backbones.cards import assets
from diffsight.data import cue_conflict, digits, fine_grained
from diffsight.data.eurosat import SPATIAL
from diffsight.data.folder_sets import CLASS_FOLDERS
from diffsight.data.prompts import PromptSet, templates_for
from diffsight.data.torchvision_sets import TORCHVISION
from diffsight.errors import InputError, PromptError, SourceError
from diffsight.evaluation.task import Task, folder_task, list_tasks, load_task, parse_task

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
COUNTS = {
    "aircraft": 100,
    "camelyon": 2,
    "cars": 196,
    "cifar10": 10,
    "cifar100": 100,
    "cub": 200,
    "cue-conflict": 16,
    "cue-conflict-fashion": 10,
    "cue-conflict-shapes": 4,
    "cue-conflict-stripes": 2,
    "digits": 10,
    "dogs": 120,
    "eurosat": 10,
    "eurosat-cells": 10,
    "eurosat-spatial": 10,
    "fashion-mnist": 10,
    "flowers102": 102,
    "food101": 101,
    "imagenet": 1000,
    "imagenet-a": 200,
    "imagenet-r": 200,
    "imagenet-sketch": 1000,
    "imagenet-v2": 1000,
    "mnist": 10,
    "pets": 37,
    "stl10": 10,
    "svhn": 10,
}
OF_THE_DATA = {"caltech101", "dtd", "objectnet", "sun397"}


def test_all_tasks_of_the_papers_are_there():
    assert set(list_tasks()) == set(COUNTS) | OF_THE_DATA


@pytest.mark.parametrize("name", list_tasks())
def test_task(name):
    task = load_task(name)
    assert task.name == name
    assert (task.class_names is None) == (name in OF_THE_DATA)
    assert task.licence
    assert task.citation
    scheme, _, data = task.source.partition(":")
    if scheme == "torchvision":
        assert task.split in TORCHVISION[data].splits
    elif scheme == "fine-grained":
        assert data in fine_grained.FINE_GRAINED
        assert task.split in fine_grained.SPLITS
    elif scheme == "class-folders":
        assert task.split in CLASS_FOLDERS[data].splits
    elif scheme == "cue-conflict":
        assert data in cue_conflict.SETS
    elif scheme == "spatial":
        assert task.split in SPATIAL[data]
    else:
        assert task.source == "sklearn:digits"
        assert task.split in digits.SPLITS
    if task.class_names is not None:
        assert len(PromptSet.from_templates(task.class_names, task.templates).prompts) == COUNTS[name]
    for preset, templates in task.presets.items():
        paper, _, dataset = preset.partition("/")
        assert templates == templates_for(paper, name)
        assert dataset in ("", name)


def test_class_names_are_in_the_order_of_the_labels():
    assert load_task("fashion-mnist").names(datasets.FashionMNIST.classes) == tuple(datasets.FashionMNIST.classes)
    flowers = load_task("flowers102").names(datasets.Flowers102.classes)
    other = [(a, b) for a, b in zip(flowers, datasets.Flowers102.classes, strict=True) if a != b]
    assert other == [
        ("globe flower", "globe-flower"),
        ("pink and yellow dahlia", "pink-yellow dahlia?"),
        ("air plant", "ball moss"),
    ]
    dogs = load_task("dogs").class_names
    assert (dogs[0], dogs[14], dogs[-1]) == ("Chihuahua", "black-and-tan coonhound", "African hunting dog")
    birds = load_task("cub").class_names
    assert (birds[0], birds[141 - 1], birds[-1]) == ("black footed albatross", "artic tern", "common yellowthroat")
    assert load_task("digits").class_names == load_task("mnist").class_names
    for name in ("eurosat", "mnist", "stl10"):
        assert load_task(name).class_names == TORCHVISION[name].names
    for name in ("eurosat-cells", "eurosat-spatial"):
        assert load_task(name).class_names == load_task("eurosat").class_names
        assert load_task(name).templates == load_task("eurosat").templates


def test_prompts_are_those_of_the_paper():
    def prompts(name):
        task = load_task(name)
        return PromptSet.from_templates(task.class_names, task.templates).prompts

    assert prompts("cifar10")[0] == "a blurry photo of a airplane."
    assert prompts("pets")[:2] == (
        "a photo of a Abyssinian cat, a type of pet.",
        "a photo of a American Bulldog, a type of pet.",
    )
    assert prompts("food101")[100] == "a photo of waffles, a type of food."
    assert prompts("mnist")[7] == "a photo of the number: '7'."


def test_minimal_file_takes_defaults():
    task = parse_task(TEXT)
    assert task == Task(
        name="animals", source="folder:photos", class_names=("cat", "dog"), licence="MIT", citation="me"
    )
    assert (task.split, task.metric, task.presets) == ("test", "top1", {})
    assert parse_task(TEXT.replace("class_names: [cat, dog]\n", "")).class_names is None


@pytest.mark.parametrize(
    ("old", "new", "line", "says"),
    [
        ("templates:", "template:", 5, "unknown key 'template'. Did you mean 'templates'"),
        ("citation: me", "citation: me\nversion: 2", 9, "'version' is there already, on line 2"),
        ("version: 1", "version: one", 2, "whole number"),
        ("version: 1", "version: true", 2, "whole number"),
        ("[cat, dog]", "[cat, no]", 4, "item 2 is a bool, not text; put it in quotes"),
        ("[cat, dog]", "[cat, Cat]", 4, "differ by more than case"),
        ("[cat, dog]", "[cat]", 4, "at least two"),
        ("[cat, dog]", "cat", 4, "must be a list of texts"),
        ("a photo of a {}.", "a photo.", 5, "no place for the class name"),
        ("a photo of a {}.", "a {} of {}.", 5, "and no other placeholder"),
        ("  - a photo of a {}.", "  []", 5, "must be a list of texts"),
        ("citation: me", "metric: top5", 8, "Did you mean 'top1'"),
        ("citation: me", "presets: li2023", 8, "must map"),
        ("citation: me", "presets: {li2023: [a photo]}", 8, "no place for the class name"),
        ("name: animals", "name: 2024-01-01", 1, "put it in quotes"),
        ("licence: MIT", "licence:", 7, "must be text"),
        ("[cat, dog]", "[cat, dog", 5, "not YAML"),
        ("[cat, dog]", "!!python/object:os.system [cat, dog]", 4, "not YAML"),
    ],
)
def test_wrong_file_is_refused_with_the_line(old, new, line, says):
    text = TEXT.replace(old, new)
    if "citation" not in text:
        text += "citation: me\n"
    with pytest.raises(InputError) as caught:
        parse_task(text, origin="my.yaml")
    assert f"line {line}" in str(caught.value)
    assert "my.yaml" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "must be a list of keys"),
        ("- a\n- b", "must be a list of keys"),
        ("name: x", "has no 'version'"),
        ("? [a, b]\n: c", "not YAML"),
        ("a: " + "[" * 1200, "not YAML"),
        ("#" * 2_000_000, "at most"),
        (TEXT + "---\nname: second", "not YAML"),
    ],
)
def test_what_is_no_task_is_refused(text, says):
    with pytest.raises(InputError, match=says):
        parse_task(text)


def test_nested_aliases_do_not_blow_up():
    bomb = "a: &a [x, x]\n" + "".join(f"k{i}: &k{i} [*{'a' if i == 0 else f'k{i - 1}'}, *a]\n" for i in range(40))
    with pytest.raises(InputError, match="unknown key 'a'"):
        parse_task(bomb)
    bomb = TEXT.replace("[cat, dog]", "[&a [x, x], &b [*a, *a], &c [*b, *b], [*c, *c]]")
    with pytest.raises(InputError, match="item 1 is a list"):
        parse_task(bomb)


def test_task_made_in_python_is_checked():
    with pytest.raises(InputError, match=r"Task 'x', templates: .*no place for the class name"):
        Task(name="x", source="folder:x", templates=("a photo",))
    with pytest.raises(InputError, match="source"):
        Task(name="x", source=" ")


def test_names_are_checked_against_the_data():
    task = parse_task(TEXT)
    assert task.names(None) == task.names(["Cat", "DOG"]) == task.names(["felis", "canis"]) == ("cat", "dog")
    with pytest.raises(PromptError, match="names 2 classes but folder:photos has 3"):
        task.names(["cat", "dog", "fox"])
    with pytest.raises(PromptError, match="'cat' at place 0, but folder:photos has it at place 1"):
        task.names(["dog", "cat"])
    unnamed = Task(name="x", source="folder:x")
    assert unnamed.names(["b", "a"]) == ("b", "a")
    with pytest.raises(PromptError, match="Add class_names"):
        unnamed.names(None)


def test_unknown_task_names_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        load_task("cifar-10")
    with pytest.raises(InputError, match="cannot be read"):
        load_task("missing.yaml")


def test_file_on_disk(tmp_path):
    file = tmp_path / "animals.yaml"
    file.write_text(TEXT)
    assert load_task(file).source == f"folder:{tmp_path / 'photos'}"
    file.write_bytes(b"name: \xff")
    with pytest.raises(InputError, match="cannot be read"):
        load_task(str(file))
    file.write_text(yaml.safe_dump({"name": "x"}))
    with pytest.raises(InputError, match=str(file)):
        load_task(file)


def test_folder_is_a_task(tmp_path):
    task = folder_task(tmp_path)
    assert task.name == tmp_path.name
    assert task.source == f"folder:{tmp_path}"
    assert task.class_names is None
    assert load_task(tmp_path) == load_task(f"folder:{tmp_path}") == task
    assert folder_task(tmp_path, templates=["a drawing of a {}."]).templates == ("a drawing of a {}.",)
    with pytest.raises(SourceError, match="no folder"):
        load_task("folder:/nowhere")


def test_a_task_file_makes_a_task_of_its_folder(tmp_path):
    (tmp_path / "task.yaml").write_text(TEXT)
    assert load_task(tmp_path).source == f"folder:{tmp_path / 'photos'}"
    assert load_task(f"folder:{tmp_path}").source == f"folder:{tmp_path}"


def test_tasks_are_listed_without_torch():
    script = "import sys, diffsight.evaluation.task as t; t.load_task('pets'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_folder_with_the_name_of_a_task_is_told_from_it(tmp_path, monkeypatch, caplog):
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert load_task("pets").source != "folder:pets"
    assert "write ./pets or folder:pets" in caplog.text
    assert load_task("./pets").source == "folder:pets"


def test_the_first_images_of_a_folder_may_lack_classes_which_is_told(caplog):
    task = folder_task(assets() / "samples")
    assert len(task.open(limit=100)) == len(task.open()) == 100
    assert not caplog.text
    part = task.open(limit=12)
    assert len({*part.labels}) == 2
    assert "first 12 of the 100 images of folder:samples show 2 of its 10 classes" in caplog.text
