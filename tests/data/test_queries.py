from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsight.data.queries import Crop, Query
from diffsight.errors import ImageError, InputError


def picture(value=0):
    return Image.new("RGB", (2, 2), (value, value, value))


@pytest.mark.parametrize(
    ("images", "texts", "form", "count"),
    [
        ((Path("a.png"),), ("a cat", "a dog"), "texts", 2),
        ((Path("a.png"), Path("b.png"), picture()), ("a cat",), "images", 3),
        ((Path("a.png"), picture()), ("a cat", "a dog"), "grid", 2),
        ((Crop(Path("a.png"), (0, 0, 4, 4)), Crop(Path("a.png"), (4, 0, 8, 4))), ("a cat",), "images", 2),
    ],
)
def test_form_follows_from_what_there_is_more_of(images, texts, form, count):
    query = Query(id="q", images=images, texts=texts)
    assert (query.form, query.count) == (form, count)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"texts": ("a cat",)}, "1 image.* 1 text.*at least two candidates"),
        ({"texts": ()}, "nothing to choose"),
        ({"images": ()}, "nothing to choose"),
        ({"texts": ("a", "b", "c"), "images": (Path("a"), Path("b"))}, "2 images and 3 texts"),
        ({"texts": ("a", "b", "a")}, "text 'a' twice"),
        ({"texts": ("a",), "images": (Path("a"), Path("a"))}, "image a twice"),
        ({"texts": ("a",), "images": (Crop(Path("a"), (0, 0, 1, 1)),) * 2}, "image Crop.* twice"),
        ({"positive": 2}, "positive 2.* 0 to 1"),
        ({"positive": -1}, "positive -1"),
        ({"images": (Path("a"), Path("b")), "positive": 0}, "each has its own"),
    ],
)
def test_what_is_no_query(changes, says):
    with pytest.raises(InputError, match=rf"'q7'.*{says}"):
        Query(**{"id": "q7", "images": (Path("a"),), "texts": ("a", "b"), **changes})


@pytest.fixture
def photograph(tmp_path):
    values = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    Image.fromarray(values).save(tmp_path / "a.png")
    return tmp_path / "a.png", values


def test_a_crop_is_the_part_in_its_box(photograph):
    path, values = photograph
    assert np.array_equal(Crop(path, (2, 1, 7, 4)).load(), values[1:4, 2:7])


def test_a_crop_ends_at_the_edge(photograph):
    path, values = photograph
    assert np.array_equal(Crop(path, (-3, 2, 99, 99)).load(), values[2:])


def test_crops_that_are_nothing(photograph, tmp_path):
    with pytest.raises(InputError, match=r"\(3, 0, 3, 4\).*is empty"):
        Crop(photograph[0], (3, 0, 3, 4))
    with pytest.raises(ImageError, match=r"\(8, 0, 9, 4\) lies outside.*8×6"):
        Crop(photograph[0], (8, 0, 9, 4)).load()
    with pytest.raises(ImageError, match=r"b\.png.*does not exist"):
        Crop(tmp_path / "b.png", (0, 0, 1, 1)).load()
