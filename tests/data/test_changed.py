from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from diffsight.data.changed import LARGEST, changed
from diffsight.data.corruptions import RENDERING, Corruption, corrupt, parse_change
from diffsight.data.sources import open_source
from diffsight.errors import ImageError, InputError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "set"
    for name, image in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (folder / name).mkdir(parents=True)
        Image.fromarray(image).save(folder / name / "large.png")
        Image.fromarray(image).resize((96, 64)).save(folder / name / "small.png")
    (folder / "flower" / "broken.png").write_text("not an image")
    return folder


def test_ids_name_fingerprint_and_content_tell_of_the_change():
    clean = open_source("sklearn:digits")
    foggy = open_source("sklearn:digits@fog:3")
    assert foggy.name == f"{clean.name}@fog:3 (rendering {RENDERING})"
    assert foggy.ids == tuple(f"{id}@fog:3" for id in clean.ids)
    assert (foggy.labels, foggy.class_names) == (clean.labels, clean.class_names)
    few = [
        source.select(range(20)) for source in (clean, foggy, *(changed(clean, c) for c in map(parse_change, SPECS)))
    ]
    for what in (lambda s: s.name, lambda s: s.fingerprint(), lambda s: s.content()):
        assert len({what(source) for source in few}) == len(few)
    assert few[1].content() == changed(clean.select(range(20)), Corruption("fog")).content()


SPECS = ("fog:4", "fog:3:1", "snow:3", "resolution:4")


def test_an_image_is_changed_by_its_own_id():
    clean, noisy = open_source("sklearn:digits"), open_source("sklearn:digits@gaussian-noise:2:5")
    for index in (3, 0):
        expected = corrupt(np.asarray(clean[index].load()), "gaussian-noise", 2, image_id=clean.ids[index], seed=5)
        assert (np.asarray(noisy[index].load()) == expected).all()
    twice = open_source("sklearn:digits@fog:2@resolution:4")
    assert twice.ids[0] == f"{clean.ids[0]}@fog:2@resolution:4"
    assert twice[0].load().size == (8, 8)


def test_large_photographs_are_corrupted_at_the_size_of_networks(photographs):
    source = open_source(f"folder:{photographs}@gaussian-noise:3")
    sizes = {id: sample.load().size for id, sample in zip(source.ids, source, strict=True) if "broken" not in id}
    assert sizes["flower/large.png@gaussian-noise:3"] == (round(640 * LARGEST / 427), LARGEST)
    assert sizes["flower/small.png@gaussian-noise:3"] == (96, 64)
    less = open_source(f"folder:{photographs}@resolution:32")
    assert [sample.load().size for sample in less if "large" in sample.id] == [(640, 427)] * 2


def test_what_cannot_be_read_fails_as_before(photographs):
    source = open_source(f"folder:{photographs}@fog:1")
    broken = source.ids.index("flower/broken.png@fog:1")
    with pytest.raises(ImageError, match=r"broken\.png"):
        source[broken].load()
    clean = open_source(f"folder:{photographs}")
    undigested = changed(replace(clean, digest=None), Corruption("fog", 1))
    assert len(undigested.content()) == len(source.content())


def test_wrong_changes():
    with pytest.raises(InputError, match="Did you mean 'fog'"):
        open_source("sklearn:digits@fogg:3")


def test_folder_with_an_at_sign(tmp_path):
    place = tmp_path / "me@home"
    place.mkdir()
    Image.new("RGB", (8, 8)).save(place / "a.png")
    assert open_source(f"folder:{place}").ids == ("a.png",)
    assert open_source(f"folder:{place}@snow:1").ids == ("a.png@snow:1",)
