import numpy as np
import pytest
from PIL import Image

from diffsight.backbones.cards import assets
from diffsight.data.sources import open_source
from diffsight.errors import InputError
from diffsight.synthesis.filters import (
    FLAT,
    LABEL,
    NEAR,
    REPEATED,
    SAME,
    UNWANTED,
    Filters,
    Judge,
    content_of,
    perceptual_hash,
    read_unwanted,
)


@pytest.fixture(scope="module")
def photos():
    """Photographs of ten classes, ten of each."""
    source = open_source(f"folder:{assets() / 'samples'}")
    return np.stack([np.asarray(sample.load()) for sample in source]), source.labels


def decide(judge, pixels, labels=None):
    labels = [0] * len(pixels) if labels is None else labels
    contents, hashes = [content_of(one) for one in pixels], [perceptual_hash(one) for one in pixels]
    return judge.decide(np.stack(pixels), labels, contents, hashes)


def scorer(name, scores):
    class Fixed:
        def __call__(self, images):
            assert all(isinstance(image, Image.Image) for image in images)
            return np.array(scores[: len(images)])

    Fixed.name = name
    return Fixed()


def differing(one, other):
    return (int(perceptual_hash(one), 16) ^ int(perceptual_hash(other), 16)).bit_count()


def test_real_photographs_are_all_kept(photos):
    pixels, labels = photos
    assert decide(Judge(Filters()), pixels, labels) == [""] * 100


def test_pictures_without_content_are_dropped(photos):
    black, grey = np.zeros((28, 28, 3), np.uint8), np.full((28, 28, 3), 127, np.uint8)
    noisy = grey + np.random.default_rng(0).integers(-1, 2, (28, 28, 3)).astype(np.uint8)
    assert decide(Judge(Filters()), [black, grey, noisy, photos[0][0]]) == [FLAT, FLAT, FLAT, ""]
    assert decide(Judge(Filters(flat=0, near_duplicates=0)), [black, grey]) == ["", ""]


def test_a_picture_that_comes_twice_is_dropped_whatever_the_class(photos):
    one, other = photos[0][:2]
    assert decide(Judge(Filters()), [one, other, one], [0, 0, 1]) == ["", "", REPEATED]
    assert decide(Judge(Filters(repeated=False)), [one, other, one], [0, 0, 1]) == [""] * 3


def test_pictures_that_are_nearly_the_same_are_dropped_within_their_class(photos):
    one = photos[0][40]
    lighter = np.clip(one.astype(int) + 6, 0, 255).astype(np.uint8)
    assert differing(one, lighter) < SAME
    assert decide(Judge(Filters()), [one, lighter, lighter], [0, 0, 1]) == ["", NEAR, REPEATED]
    assert decide(Judge(Filters(repeated=False)), [one, lighter], [0, 1]) == ["", ""]
    assert decide(Judge(Filters(near_duplicates=0)), [one, lighter]) == ["", ""]
    # What was dropped drops no other.
    judge = Judge(Filters(scorer="x"), scorer("x", [[0, 1], [1, 0]]))
    assert decide(judge, [one, lighter]) == [LABEL, ""]


def test_the_hash_knows_a_picture_in_another_size_and_format(tmp_path, photos):
    image = Image.fromarray(photos[0][85])
    large = np.asarray(image.resize((300, 300), Image.Resampling.BICUBIC))
    image.resize((112, 112), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=85)
    assert differing(photos[0][85], large) < SAME
    assert differing(photos[0][85], np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))) < SAME
    assert min(differing(photos[0][85], other) for other in photos[0][:80]) > 2 * SAME


def test_unwanted_pictures_are_dropped_in_any_size(tmp_path, photos):
    Image.fromarray(photos[0][85]).resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / "stock.png")
    judge = Judge(Filters(unwanted=read_unwanted(tmp_path)))
    assert decide(judge, [photos[0][85], photos[0][84]]) == [UNWANTED, ""]
    with pytest.raises(InputError, match="There is no folder"):
        read_unwanted(tmp_path / "none")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"unwanted pictures cannot be used: .*bad.png"):
        read_unwanted(tmp_path)


def test_a_scorer_drops_what_it_takes_for_another_class(photos):
    judge = Judge(Filters(scorer="x"), scorer("x", [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]))
    assert decide(judge, photos[0][:3], [0, 1, 0]) == ["", "", LABEL]
    for filters, given in (
        (Filters(), scorer("x", [])),
        (Filters(scorer="x"), None),
        (Filters(scorer="y"), scorer("x", [])),
    ):
        with pytest.raises(InputError, match="filters name the scorer"):
            Judge(filters, given)


def test_batches_decide_nothing(photos):
    pixels = [photos[0][i % 30] for i in range(50)]
    whole, parts = Judge(Filters()), Judge(Filters())
    assert decide(whole, pixels) == [reason for i in range(0, 50, 7) for reason in decide(parts, pixels[i : i + 7])]


def test_after_an_interruption_it_remembers(photos):
    one, other = photos[0][0], photos[0][1]
    judge = Judge(Filters())
    judge.remember(content_of(one), perceptual_hash(one), 0, kept=True)
    judge.remember(content_of(other), perceptual_hash(other), 0, kept=False)
    lighter = [np.clip(image.astype(int) + 6, 0, 255).astype(np.uint8) for image in (one, other)]
    assert decide(judge, [one, *lighter]) == [REPEATED, NEAR, ""]


@pytest.mark.parametrize(
    "settings",
    [{"flat": -1.0}, {"flat": 200.0}, {"near_duplicates": 129}, {"near_duplicates": -1}, {"max_attempts": 0}],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        Filters(**settings)
