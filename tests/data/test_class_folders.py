import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.models import ResNet50_Weights

from diffsight.data.class_folders import class_ids, id_prompts
from diffsight.data.folder_sets import CLASS_FOLDERS
from diffsight.data.imagenet import imagenet_classes, subset
from diffsight.data.sources import open_source
from diffsight.errors import SourceError


def save(path, value=0, size=(9, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def grey(sample):
    return np.asarray(sample.load()).mean()


def test_classes_are_those_of_timm_and_torchvision():
    info = pytest.importorskip("timm.data").ImageNetInfo
    known = imagenet_classes()
    synsets = [each.synset for each in known]
    assert synsets == info().label_names() == sorted(synsets)
    lists = Path(inspect.getfile(info)).parent / "_info"
    for which in "ar":
        chosen = [synsets[label] for label in subset(which)]
        assert chosen == sorted((lists / f"imagenet_{which}_synsets.txt").read_text().split())
        assert len(chosen) == 200
    names = [each.name for each in known]
    assert len({name.casefold() for name in names}) == 1000
    others = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    assert (names[744], names[836]) == (others[744], others[836]) == ("projectile", "sunglass")
    assert sum(a == b for a, b in zip(names, others, strict=True)) > 600
    assert (names[0], names[134], names[517], names[639]) == (
        *("tench", "crane bird", "construction crane"),
        "one-piece bathing suit",
    )


def test_imagenet(tmp_path, caplog):
    save(tmp_path / "imagenet/val/n01443537/b.JPEG", 40)
    save(tmp_path / "imagenet/val/n01443537/a.JPEG", 80)
    save(tmp_path / "imagenet/val/n15075141/c.JPEG", 120)
    (tmp_path / "imagenet/val/n15075141/notes.txt").write_text("no image")
    source = open_source("class-folders:imagenet", root=tmp_path, split="val")
    assert source.ids == ("n01443537/a.JPEG", "n01443537/b.JPEG", "n15075141/c.JPEG")
    assert source.labels == (1, 1, 999)
    assert (source.class_names[1], source.class_names[999]) == ("goldfish", "toilet paper")
    assert "998 of 1000 classes have no image" in caplog.text
    assert abs(grey(source[2]) - 120) < 3
    few = open_source("class-folders:imagenet", root=tmp_path, split="val/1")
    assert few.ids == ("n01443537/a.JPEG", "n15075141/c.JPEG")
    directly = open_source("class-folders:imagenet", root=tmp_path / "imagenet/val", split="val")
    assert directly.fingerprint() == source.fingerprint()
    assert directly.content() == source.content()


@pytest.mark.parametrize(
    ("name", "split", "folders", "labels"),
    [
        ("imagenet-v2", "matched-frequency", ("imagenetv2-matched-frequency-format-val/2", "…-val/10"), (2, 10)),
        ("imagenet-a", "test", ("imagenet-a/n01498041", "imagenet-a/n12267677"), (0, 199)),
        ("imagenet-r", "test", ("imagenet-r/n01443537", "imagenet-r/n12267677"), (0, 199)),
        ("imagenet-sketch", "test", ("sketch/n01440764", "sketch/n01443537"), (0, 1)),
    ],
)
def test_shifts_have_their_own_classes(tmp_path, name, split, folders, labels):
    for folder in folders:
        save(tmp_path / folder.replace("…-val", "imagenetv2-matched-frequency-format-val") / "1.jpeg")
    source = open_source(f"class-folders:{name}", root=tmp_path, split=split)
    assert source.labels == labels
    ids = class_ids(f"class-folders:{name}@fog:3", root=tmp_path, split=split)
    assert len(ids) == len(source.class_names)
    names = [each.name for each in imagenet_classes()]
    assert all(names[one] == called for (one,), called in zip(ids, source.class_names, strict=True))


@pytest.fixture
def objectnet(tmp_path):
    top = tmp_path / "objectnet-1.0"
    image = np.full((10, 12, 3), 60, np.uint8)
    image[[0, -1]], image[:, [0, -1]] = (255, 0, 0), (255, 0, 0)
    for folder in ("alarm_clock", "banana", "air_freshener"):
        (top / "images" / folder).mkdir(parents=True)
        Image.fromarray(image).save(top / "images" / folder / "1.png")
    maps = {
        "folder_to_objectnet_label.json": {
            **{"alarm_clock": "Alarm clock", "banana": "Banana", "air_freshener": "Air freshener"}
        },
        "objectnet_to_imagenet_1k.json": {"Banana": "banana", "Alarm clock": "analog clock; digital clock"},
        "pytorch_to_imagenet_2012_id.json": {"954": 0, "409": 1, "530": 2},
    }
    (top / "mappings").mkdir()
    for name, values in maps.items():
        (top / "mappings" / name).write_text(json.dumps(values))
    (top / "mappings/imagenet_to_label_2012_v2").write_text("banana\nanalog clock\ndigital clock\n")
    return top


def test_objectnet_is_as_its_mappings_say(tmp_path, objectnet):
    source = open_source("class-folders:objectnet", root=tmp_path)
    assert source.class_names == ("Alarm clock", "Banana")
    assert source.ids == ("alarm_clock/1.png", "banana/1.png")
    assert (source[0].load().size, grey(source[0])) == ((8, 6), 60)
    assert class_ids("class-folders:objectnet", root=tmp_path) == ((409, 530), (954,))
    known = tuple("tench, Tinca tinca" if label == 0 else str(label) for label in range(1000))
    asked = id_prompts(source.class_names, known, "class-folders:objectnet", root=tmp_path)
    assert (asked.prompts, asked.owner) == (("409", "530", "954"), (0, 0, 1))
    assert id_prompts(source.class_names, ("cat", "dog"), "class-folders:objectnet", root=tmp_path) is None
    assert id_prompts(source.class_names, known, f"folder:{tmp_path}") is None
    (objectnet / "mappings/imagenet_to_label_2012_v2").write_text("banana\nanalog clock\n")
    with pytest.raises(SourceError, match="'Alarm clock' is ImageNet's 'digital clock'"):
        class_ids("class-folders:objectnet", root=tmp_path)
    (objectnet / "mappings/folder_to_objectnet_label.json").write_text("{")
    with pytest.raises(SourceError, match=r"folder_to_objectnet_label.json is not JSON"):
        open_source("class-folders:objectnet", root=tmp_path)
    (objectnet / "mappings/objectnet_to_imagenet_1k.json").unlink()
    (objectnet / "mappings/folder_to_objectnet_label.json").write_text('{"a": "A"}')
    with pytest.raises(SourceError, match=r"objectnet_to_imagenet_1k.json is missing.*Unpack all"):
        open_source("class-folders:objectnet", root=tmp_path)


def test_caltech_and_sun_have_the_names_of_their_folders(tmp_path):
    caltech = tmp_path / "caltech101/101_ObjectCategories"
    for number in range(101):
        save(caltech / f"thing_{number:03d}/image_0001.jpg")
    save(caltech / "BACKGROUND_Google/image_0001.jpg")
    source = open_source("class-folders:caltech101", root=tmp_path)
    assert (len(source), source.class_names[100]) == (101, "thing 100")
    (caltech / "thing_100/image_0001.jpg").unlink()
    (caltech / "thing_100").rmdir()
    with pytest.raises(SourceError, match="100 class folders and not 101"):
        open_source("class-folders:caltech101", root=tmp_path)
    save(tmp_path / "SUN397/a/apse/indoor/sun_1.jpg")
    lines = ["/a/abbey", "/a/apse/indoor", *(f"/z/place_{number}" for number in range(395))]
    (tmp_path / "SUN397/ClassName.txt").write_text("\n".join(lines))
    source = open_source("class-folders:sun397", root=tmp_path)
    assert (source.ids, source.labels) == (("a/apse/indoor/sun_1.jpg",), (1,))
    assert source.class_names[:3] == ("abbey", "apse indoor", "place 0")
    (tmp_path / "SUN397/ClassName.txt").write_text("/a/../b\n")
    with pytest.raises(SourceError, match="must name 397 folders"):
        open_source("class-folders:sun397", root=tmp_path)


def test_pcam(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    (tmp_path / "pcam").mkdir()
    images = np.arange(3, dtype=np.uint8).repeat(8 * 8 * 3).reshape(3, 8, 8, 3)
    for part, values in {"x": images, "y": np.array([1, 0, 1]).reshape(3, 1, 1, 1)}.items():
        with h5py.File(tmp_path / f"pcam/camelyonpatch_level_2_split_test_{part}.h5", "w") as file:
            file[part] = values
    source = open_source("torchvision:pcam", root=tmp_path)
    assert source.labels == (1, 0, 1)
    assert [grey(sample) for sample in source] == [0, 1, 2]
    with pytest.raises(SourceError, match="split_valid_x"):
        open_source("torchvision:pcam", root=tmp_path, split="val")


def test_pcam_needs_h5py(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    save(tmp_path / "pcam/camelyonpatch_level_2_split_test_x.h5.png")
    (tmp_path / "pcam/camelyonpatch_level_2_split_test_x.h5").touch()
    with pytest.raises(SourceError, match=r"pip install 'diffsight\[camelyon\]'"):
        open_source("torchvision:pcam", root=tmp_path)


@pytest.mark.parametrize("name", list(CLASS_FOLDERS))
def test_absent_data_say_where_and_how(tmp_path, name):
    split = next(iter(CLASS_FOLDERS[name].splits))
    with pytest.raises(SourceError) as failure:
        open_source(f"class-folders:{name}", root=tmp_path, split=split)
    message = str(failure.value)
    assert str(tmp_path) in message
    assert "https://" in message
    assert "$DIFFSIGHT_DATA" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "split", "says"),
    [
        ("imagenet-b", "test", "Did you mean .*'imagenet-a'"),
        ("imagenet", "test", "no split 'test'. Known names: train, val"),
        ("imagenet", "val/0", "images from 1, such as val/4"),
        ("imagenet", "val/", "images from 1, such as val/4"),
    ],
)
def test_unknown_names_and_splits(name, split, says):
    with pytest.raises(SourceError, match=says):
        open_source(f"class-folders:{name}", split=split)


def test_other_data_is_refused(tmp_path):
    save(tmp_path / "imagenet-a/n01498041/1.jpg")
    save(tmp_path / "imagenet-a/n01440764/1.jpg")  # of ImageNet, and not of ImageNet-A
    with pytest.raises(SourceError, match=r"'n01440764'.*which is no class of imagenet-a"):
        open_source("class-folders:imagenet-a", root=tmp_path)
    save(tmp_path / "imagenet/val/ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(SourceError, match="images and no class folders; sort them"):
        open_source("class-folders:imagenet", root=tmp_path, split="val")
    (tmp_path / "sketch/n01440764").mkdir(parents=True)
    with pytest.raises(SourceError, match="no image in the class folders"):
        open_source("class-folders:imagenet-sketch", root=tmp_path)
    save(tmp_path / "elsewhere/1.jpg")
    (tmp_path / "sketch/n01440764/1.jpg").symlink_to(tmp_path / "elsewhere/1.jpg")
    with pytest.raises(SourceError, match="is a link out of"):
        open_source("class-folders:imagenet-sketch", root=tmp_path)
    (tmp_path / "sketch/n01443537").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "sketch/n01440764/1.jpg").unlink()
    with pytest.raises(SourceError, match="leads out of"):
        open_source("class-folders:imagenet-sketch", root=tmp_path)


def test_a_name_without_its_scheme_is_suggested():
    with pytest.raises(SourceError, match="Did you mean 'class-folders:objectnet'"):
        open_source("objectnet")
