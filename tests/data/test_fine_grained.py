import numpy as np
import pytest
import scipy.io
from PIL import Image

from diffsight.data.sources import open_source
from diffsight.errors import ImageError, SourceError

BIRDS = {
    1: "001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg",
    2: "001.Black_footed_Albatross/Black_Footed_Albatross_0002_55.jpg",
    3: "002.Laysan_Albatross/Laysan_Albatross_0001_545.jpg",
    4: "002.Laysan_Albatross/Laysan_Albatross_0002_1027.jpg",
}
DOGS = {
    "train": ["n02085620-Chihuahua/n02085620_5927.jpg", "n02089078-black-and-tan_coonhound/n02089078_1.jpg"],
    "test": ["n02085620-Chihuahua/n02085620_2650.jpg", "n02089078-black-and-tan_coonhound/n02089078_2.jpg"],
}


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value, value, value)).save(path, quality=95)


def write_lists(place, birds, training):
    (place / "images.txt").write_text("".join(f"{number} {path}\n" for number, path in birds.items()))
    (place / "train_test_split.txt").write_text("".join(f"{number} {value}\n" for number, value in training.items()))


@pytest.fixture
def cub(tmp_path):
    place = tmp_path / "CUB_200_2011"
    for number, path in BIRDS.items():
        save(place / "images" / path, 40 * number)
    write_lists(place, BIRDS, {1: 0, 2: 1, 3: 1, 4: 0})
    return place


def cells(texts):
    array = np.empty((len(texts), 1), dtype=object)
    array[:, 0] = texts
    return array


def write_mat(path, files, labels, **more):
    scipy.io.savemat(path, {"file_list": cells(files), "annotation_list": cells(files), "labels": labels, **more})


@pytest.fixture
def dogs(tmp_path):
    place = tmp_path / "stanford_dogs"
    for split, paths in DOGS.items():
        for number, path in enumerate(paths):
            save(place / "Images" / path, 40 + 40 * number + (split == "test"))
        write_mat(place / f"{split}_list.mat", paths, np.array([[1.0], [2.0]]))
    return place


def grey(sample):
    return sample.load().getpixel((2, 2))[0]


def test_cub_is_divided_as_its_authors_say(cub, tmp_path):
    test = open_source("fine-grained:cub", root=tmp_path)
    train = open_source("fine-grained:cub", root=tmp_path, split="train")
    assert test.name == "fine-grained:cub/test"
    assert test.ids == (BIRDS[1], BIRDS[4])
    assert train.ids == (BIRDS[2], BIRDS[3])
    assert test.labels == train.labels == (0, 1)
    assert test.class_names == train.class_names == ("black footed albatross", "laysan albatross")
    assert [grey(sample) for sample in test] == [40, 160]


def test_dogs_are_divided_as_their_authors_say(dogs, tmp_path):
    for split, paths in DOGS.items():
        source = open_source("fine-grained:dogs", root=tmp_path, split=split)
        assert source.ids == tuple(paths)
        assert source.labels == (0, 1)
        assert source.class_names == ("Chihuahua", "black-and-tan coonhound")
        assert [grey(sample) for sample in source] == [40 + (split == "test"), 80 + (split == "test")]


def test_lists_may_be_compressed(dogs, tmp_path):
    scipy.io.savemat(
        dogs / "test_list.mat", {"file_list": cells(DOGS["test"]), "labels": np.array([[1], [2]])}, do_compression=True
    )
    assert open_source("fine-grained:dogs", root=tmp_path).ids == tuple(DOGS["test"])


@pytest.mark.parametrize("name", ["cub", "dogs"])
def test_places(request, tmp_path, monkeypatch, name):
    place = request.getfixturevalue(name)
    assert len(open_source(f"fine-grained:{name}", root=place)) == 2
    monkeypatch.setenv("DIFFSIGHT_DATA", str(tmp_path))
    assert len(open_source(f"fine-grained:{name}")) == 2
    link = tmp_path / "elsewhere" / place.name
    link.parent.mkdir()
    link.symlink_to(place)
    assert len(open_source(f"fine-grained:{name}", root=link.parent)) == 2


@pytest.mark.parametrize(("name", "says"), [("cub", "CUB_200_2011.tgz"), ("dogs", "lists.tar")])
def test_absent_data_say_where_and_how(tmp_path, name, says):
    with pytest.raises(SourceError) as failure:
        open_source(f"fine-grained:{name}", root=tmp_path)
    message = str(failure.value)
    assert str(tmp_path) in message
    assert "http" in message
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("uri", "split", "hint"),
    [
        ("fine-grained:cubs", "test", "'cub'"),
        ("fine-grained:", "test", "dogs"),
        ("cub", "test", "'fine-grained:cub'"),
        ("fine-grained:cub", "val", "no split 'val'"),
    ],
)
def test_unknown_names(uri, split, hint):
    with pytest.raises(SourceError, match=hint):
        open_source(uri, split=split)


def test_content_follows_the_images(cub, tmp_path):
    source = open_source("fine-grained:cub", root=tmp_path)
    known = source.content()
    save(cub / "images" / BIRDS[2], 3)
    assert source.content() == known
    save(cub / "images" / BIRDS[4], 3)
    assert source.content() != known


def test_an_image_that_is_missing_is_one_image_error(cub, tmp_path):
    (cub / "images" / BIRDS[1]).unlink()
    source = open_source("fine-grained:cub", root=tmp_path)
    with pytest.raises(ImageError, match="does not exist"):
        source[0].load()
    assert grey(source[1]) == 160


@pytest.mark.parametrize(
    "path",
    [
        "../secret.jpg",
        "001.A/../../secret.jpg",
        "/etc/passwd",
        "001.A//a.jpg",
        "001.A/./a.jpg",
        "001.A/deep/a.jpg",
        "001.jpg",
        "001.A/..",
        "001.A\\..\\a.jpg",
        "001.A/a\0.jpg",  # Matlab's format ends at the zero.
    ],
)
@pytest.mark.parametrize("name", ["cub", "dogs"])
def test_lists_may_not_leave_the_folder(request, tmp_path, name, path):
    place = request.getfixturevalue(name)
    if name == "cub":
        write_lists(place, {**BIRDS, 5: path}, {1: 0, 2: 1, 3: 1, 4: 0, 5: 0})
    else:
        write_mat(place / "test_list.mat", [*DOGS["test"], path], np.array([[1], [2], [1]]))
    with pytest.raises(SourceError, match=r"no file in a class folder|does not begin|class 1 is both"):
        open_source(f"fine-grained:{name}", root=tmp_path)


def test_links_may_not_leave_the_folder(cub, tmp_path):
    save(tmp_path / "secret.jpg", 9)
    (cub / "images" / BIRDS[1]).unlink()
    (cub / "images" / BIRDS[1]).symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(SourceError, match="no file in a class folder"):
        open_source("fine-grained:cub", root=tmp_path)


@pytest.mark.parametrize(
    ("birds", "training", "says"),
    [
        ({**BIRDS, 5: BIRDS[4]}, {1: 0, 2: 1, 3: 1, 4: 0, 5: 0}, "two images have the id"),
        (BIRDS, {1: 0, 2: 1, 3: 1}, "image 4 is in only one"),
        (BIRDS, {1: 0, 2: 1, 3: 1, 4: 0, 5: 0}, "image 5 is in only one"),
        (BIRDS, {1: 0, 2: 1, 3: 1, 4: 2}, "image 4 has '2'"),
        (BIRDS, dict.fromkeys(BIRDS, 1), "name no image"),
        ({}, {}, "name no image"),
        ({**BIRDS, 4: "Laysan/a.jpg"}, {1: 0, 2: 1, 3: 1, 4: 0}, "does not begin with the number"),
        ({**BIRDS, 4: "001.Laysan/a.jpg"}, {1: 0, 2: 1, 3: 1, 4: 0}, "class 1 is both"),
        ({**BIRDS, 4: "003.Laysan/a.jpg"}, {1: 0, 2: 1, 3: 1, 4: 0}, "numbered from 1 to 3"),
    ],
)
def test_inconsistent_lists_of_cub(cub, tmp_path, birds, training, says):
    write_lists(cub, birds, training)
    with pytest.raises(SourceError, match=says):
        open_source("fine-grained:cub", root=tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "missing"),
        (b"\xff\xfe1 a", "cannot be read"),
        (b"1\n2 1\n", "line 1 is no number and value"),
        (b"one 1\n", "line 1 is no number and value"),
        (b"1 0\n1 1\n", "line 2 repeats a number"),
        (b"1 0\n\n2 1\n", "line 2 is no number and value"),
    ],
)
def test_damaged_lists_of_cub(cub, tmp_path, content, says):
    path = cub / "train_test_split.txt"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=rf"train_test_split\.txt.*{says}"):
        open_source("fine-grained:cub", root=tmp_path)


@pytest.mark.parametrize(("name", "file"), [("cub", "images.txt"), ("dogs", "test_list.mat")])
def test_lists_that_are_too_large_are_not_read(request, tmp_path, name, file):
    with (request.getfixturevalue(name) / file).open("wb") as large:
        large.truncate(2**36)
    with pytest.raises(SourceError, match="over the limit"):
        open_source(f"fine-grained:{name}", root=tmp_path)


@pytest.mark.parametrize(
    ("files", "labels", "says"),
    [
        (DOGS["test"], [[1], [1]], "class 1 is both"),
        (DOGS["test"], [[1], [3]], "numbered from 1 to 3"),
        (DOGS["test"], [[0], [1]], "numbered from 0 to 1"),
        ([DOGS["test"][0]] * 2, [[1], [2]], "in 1 folders"),
        (DOGS["test"], [[1], [2], [2]], "file_list and labels are"),
        (DOGS["test"], [[1.5], [2]], "whole numbers"),
        (DOGS["test"], [[np.nan], [2]], "damaged or not the authors' list"),
        ([DOGS["test"][0], 3.0], [[1], [2]], "file_list must hold names"),
        ([DOGS["test"][0], np.zeros(3)], [[1], [2]], "damaged or not the authors' list"),
    ],
)
def test_inconsistent_lists_of_dogs(dogs, tmp_path, files, labels, says):
    write_mat(dogs / "test_list.mat", files, np.array(labels))
    with pytest.raises(SourceError, match=says):
        open_source("fine-grained:dogs", root=tmp_path)


def test_damaged_lists_of_dogs(dogs, tmp_path):
    path = dogs / "test_list.mat"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:130], whole[:-40]):
        path.write_bytes(content)
        with pytest.raises(SourceError, match=r"test_list\.mat is damaged"):
            open_source("fine-grained:dogs", root=tmp_path)
    scipy.io.savemat(path, {"labels": np.ones((2, 1))})
    with pytest.raises(SourceError, match="KeyError: 'file_list'"):
        open_source("fine-grained:dogs", root=tmp_path)
    scipy.io.savemat(path, {"file_list": np.ones((2, 1)), "labels": np.ones((2, 1))})
    with pytest.raises(SourceError, match="file_list and labels are"):
        open_source("fine-grained:dogs", root=tmp_path)
    path.unlink()
    with pytest.raises(SourceError, match=r"test_list\.mat is missing"):
        open_source("fine-grained:dogs", root=tmp_path)
