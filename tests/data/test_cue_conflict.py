import logging
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffsight.data import conflicts
from diffsight.data.addressed import Draws
from diffsight.data.cue_conflict import GEIRHOS_CLASSES, CueConflicts, cue_labels, open_cue_conflicts, slug
from diffsight.data.scenes import COLOURS, HELD_OUT
from diffsight.data.sources import open_source
from diffsight.data.torchvision_sets import DEBIAN_FASHION_MNIST
from diffsight.errors import SourceError


@pytest.mark.parametrize(("name", "pairs"), [("shapes", 10), ("stripes", 2)])
def test_scenes_show_one_class_by_shape_and_another_by_colour_or_texture(name, pairs):
    images = open_cue_conflicts(name)
    assert len(images) == 1000
    counts = Counter(zip(images.shapes, images.textures, strict=True))
    assert len(counts) == pairs
    assert len({*counts.values()}) == 1
    assert all(shape != texture for shape, texture in counts)
    for index in range(60):
        shape, cue = images.shapes[index], images.textures[index]
        thing = conflicts.conflicting_scene(name, shape, cue, index // pairs).things[0]
        words = images.class_names[cue].split()
        assert thing.shape == images.class_names[shape].split()[1] != words[1]
        assert words[0] == (thing.colour if name == "shapes" else thing.texture)
        assert (thing.shape, thing.colour) not in HELD_OUT
    # No class is itself a combination that the model never saw.
    assert not {tuple(each.split()[::-1]) for each in images.class_names} & HELD_OUT


def test_a_painted_scene_has_the_colour_of_the_other_class():
    images = open_cue_conflicts("shapes")
    for image in list(images)[:20]:
        pixels = np.asarray(image.load()).reshape(-1, 3).astype(int)
        coloured = pixels[np.ptp(pixels, axis=1) > 60]
        nearest = min(COLOURS, key=lambda name: np.abs(coloured - COLOURS[name]).sum(axis=1).min())
        assert nearest == images.class_names[image.texture].split()[0]


def test_labels_come_back_from_the_ids_of_a_run():
    images = open_cue_conflicts("shapes")
    source = open_source("cue-conflict:shapes@gaussian-noise:1")
    shapes, textures = cue_labels(source.ids, images.class_names)
    assert tuple(shapes.tolist()) == images.shapes == source.labels
    assert tuple(textures.tolist()) == images.textures
    assert source.class_names == images.class_names
    assert np.asarray(source[0].load()).shape == (32, 32, 3)
    assert cue_labels([], images.class_names)[0].shape == (0,)


@pytest.mark.parametrize(
    ("id", "said"),
    [("digits/test/00001", "not of the form"), ("red_circle0-greem_square0", "Did you mean 'green_square'")],
)
def test_ids_of_other_images(id, said):
    with pytest.raises(SourceError, match=said):
        cue_labels([id], ("red circle", "green square"))


def test_same_class_twice_is_no_conflict():
    with pytest.raises(SourceError, match="no conflict"):
        CueConflicts(name="x", class_names=("a", "b"), ids=("a1-a2",), shapes=(0,), textures=(0,), read=Image.open)


def write_published(folder: Path) -> Path:
    """Two images of each pair of the published classes in a row, one of them with shape and texture of one class."""
    for index, name in enumerate(GEIRHOS_CLASSES):
        (folder / name).mkdir(parents=True)
        for other in (name, GEIRHOS_CLASSES[(index + 1) % len(GEIRHOS_CLASSES)]):
            Image.new("RGB", (4, 4), (index, 0, 0)).save(folder / name / f"{name}{index}-{other}7.png")
    return folder


def test_published_images(tmp_path, caplog):
    write_published(tmp_path / "texture-shape-cue-conflict")
    with caplog.at_level(logging.WARNING):
        images = open_cue_conflicts("geirhos", root=tmp_path)
    assert "32 images, 16 of them conflicts; the published set has 1280 and 1200" in caplog.text
    assert images.ids[0] == "airplane/airplane0-bear7.png"
    assert images.shapes == tuple(range(16))
    assert images.textures == (*range(1, 16), 0)
    assert [image.load().getpixel((0, 0))[0] for image in images] == list(range(16))
    again = open_source("cue-conflict:geirhos", root=tmp_path / "texture-shape-cue-conflict")
    assert again.ids == images.ids


def test_published_images_that_are_absent_or_damaged(tmp_path):
    with pytest.raises(SourceError, match="style-transfer-preprocessed-512 of github"):
        open_cue_conflicts("geirhos", root=tmp_path)
    folder = write_published(tmp_path / "style-transfer-preprocessed-512")
    odd = folder / "cat" / "cat1-kitten2.png"
    (folder / "cat" / "cat7-cat7.png").rename(odd)
    with pytest.raises(SourceError, match="names the class 'kitten'"):
        open_cue_conflicts("geirhos", root=tmp_path)
    odd.rename(folder / "cat" / "dog1-cat2.png")
    with pytest.raises(SourceError, match="folder of another shape"):
        open_cue_conflicts("geirhos", root=tmp_path)
    for path in (folder / "truck").iterdir():
        path.unlink()
    (folder / "truck").rmdir()
    with pytest.raises(SourceError, match="no folder 'truck'"):
        open_cue_conflicts("geirhos", root=tmp_path)


def test_unknown_sets_and_splits():
    with pytest.raises(SourceError, match="Did you mean 'shapes'"):
        open_source("cue-conflict:shape")
    with pytest.raises(SourceError, match="no split 'train'"):
        open_source("cue-conflict:shapes", split="train")


def garment(kind):
    image = np.zeros((28, 28), dtype=np.uint8)
    match kind:
        case "checked":
            image[4:24, 6:22] = np.where(np.indices((20, 16)).sum(axis=0) % 2, 250, 90)
        case "cross":
            image[2:26, 11:17] = image[11:17, 2:26] = 170
            image[13, 13] = 0
        case "thin":
            image[14, 3:25] = 200
    return image


def test_a_silhouette_is_filled_with_the_other_texture():
    draws = Draws(seed=0, image_id="a", purpose="cue conflict")
    filled = conflicts.refill(garment("cross"), garment("checked"), draws)
    inside = garment("cross") > 0
    inside[13, 13] = True  # a hole is part of what it lies in
    assert ((filled > 0) == inside).all()
    assert 150 < filled[inside].mean() < 190
    assert filled[inside].std() > 40
    thin = conflicts.refill(garment("cross"), garment("thin"), draws)
    assert (thin[inside] == 200).all()
    assert conflicts.refill(garment("nothing"), garment("checked"), draws).max() == 0
    assert conflicts.refill(garment("cross"), garment("nothing"), draws).max() == 0


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_garments():
    images = open_cue_conflicts("fashion-mnist")
    counts = Counter(zip(images.shapes, images.textures, strict=True))
    assert len(images) == 900
    assert {*counts.values()} == {10}
    assert len(counts) == 90
    photographs = open_source("torchvision:fashion-mnist")
    shapes, textures = [], []
    for id, shape, texture in zip(images.ids, images.shapes, images.textures, strict=True):
        first, second = conflicts.numbers(id)
        assert (photographs.labels[first], photographs.labels[second]) == (shape, texture)
        shapes.append(first)
        textures.append(second)
    assert len({*shapes}) == len({*textures}) == 900
    for image in list(images)[:5]:
        first, _ = conflicts.numbers(image.id)
        own = np.asarray(photographs[first].load().convert("L"))
        made = np.asarray(image.load())
        assert made.shape == (28, 28, 3)
        assert ((made[..., 0] > 0) == conflicts.silhouette(own)).mean() > 0.99
    assert {slug(name) for name in images.class_names} >= {"t_shirt_top", "ankle_boot"}
