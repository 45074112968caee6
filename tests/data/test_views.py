import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffsight.data.images import RESIZES, SCALERS, ImageTransform
from diffsight.data.views import augmented_view
from diffsight.errors import InputError


def picture(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def coordinates(width, height):
    """An image that says in red and green where each of its pixels was."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=2))


def values(view):
    return view.add(1).mul(127.5).round().int()


@pytest.mark.parametrize("resize", RESIZES)
def test_view_zero_is_the_image(resize):
    transform = ImageTransform(size=16, resize=resize, pad=2, grayscale=True)
    assert torch.equal(augmented_view(picture(), transform, image_id="a", view=0, seed=3), transform(picture()))


def test_a_view_does_not_depend_on_what_was_asked_before():
    transform = ImageTransform(size=16)
    there = {(id, view): augmented_view(picture(), transform, image_id=id, view=view) for id in "ab" for view in (1, 2)}
    back = {key: augmented_view(picture(), transform, image_id=key[0], view=key[1]) for key in reversed(list(there))}
    assert all(torch.equal(there[key], back[key]) for key in there)
    others = [*there.values(), augmented_view(picture(), transform, image_id="a", view=1, seed=1)]
    assert len({view.numpy().tobytes() for view in others}) == 5


def test_views_are_the_same_on_every_machine():
    # A stored feature is worth nothing if a new numpy draws other views.
    image = coordinates(200, 150)
    view = values(augmented_view(image, ImageTransform(size=150), image_id="x/1.png", view=7, seed=1))
    assert view[:, 0, 0].tolist() == [12, 2, 0]


def test_bytes_that_are_no_text_may_be_in_an_id():
    augmented_view(picture(), ImageTransform(size=8), image_id="caf\udce9.png", view=1)


def corners(resize, size, image, views=600, **options):
    """Which source pixel is at the upper left and at the upper right of each view."""
    transform = ImageTransform(size=size, resize=resize, interpolation="box")
    seen = [augmented_view(image, transform, image_id="a", view=view, **options) for view in range(1, views)]
    return [(values(view)[:2, 0, 0].tolist(), values(view)[:2, 0, -1].tolist()) for view in seen]


def test_half_of_the_views_are_mirrored():
    mirrored = [left[0] > right[0] for left, right in corners("shortest", 40, coordinates(50, 50))]
    assert 0.43 < np.mean(mirrored) < 0.57


def test_without_flips_all_else_stays():
    transform = ImageTransform(size=20)
    straight, mirrored = 0, 0
    for view in range(1, 60):
        free = augmented_view(picture(), transform, image_id="a", view=view)
        upright = augmented_view(picture(), transform, image_id="a", view=view, flip=False)
        straight += torch.equal(free, upright)
        mirrored += torch.equal(free, upright.flip(2))
    assert straight + mirrored == 59
    assert min(straight, mirrored) > 10


@pytest.mark.parametrize("resize", RESIZES)
def test_scales_and_places_reach_both_ends(resize):
    # A view of 40 pixels covers from 40 down to 40 · 40/50 = 32 of these 40.
    spans, lefts, tops, ends = [], [], [], []
    for (left, top), (right, _) in corners(resize, 40, coordinates(40, 40), flip=False):
        spans.append(right - left)
        lefts.append(left)
        tops.append(top)
        ends.append(right)
    assert (min(spans), max(spans)) == (31, 39)
    assert (min(lefts), max(lefts), min(ends), max(ends)) == (0, 8, 31, 39)
    assert (min(tops), max(tops)) == (0, 8)
    assert 34.5 < np.mean(spans) < 35.5


@pytest.mark.parametrize("resize", ["shortest", "adm", "crop_first"])
def test_crops_reach_both_ends_of_the_long_side(resize):
    seen = corners(resize, 40, coordinates(120, 40), flip=False)
    assert min(left for (left, _), _ in seen) <= 2
    assert max(right for _, (right, _) in seen) >= 117


def test_all_scales_are_equally_likely(monkeypatch):
    transform = ImageTransform(size=8, resize="adm")
    sides = []
    adm = SCALERS["adm"]
    monkeypatch.setitem(SCALERS, "adm", lambda image, side, method: sides.append(side) or adm(image, side, method))
    for view in range(1, 1201):
        augmented_view(picture(), transform, image_id="a", view=view)
    counts = np.bincount(sides, minlength=11)
    assert counts[:8].sum() == 0
    assert len(counts) == 11
    assert counts[8:].min() > 340


def test_adm_halves_with_boxes_first():
    # Blocks of 4×4 of one value: halved twice, nothing is left to interpolate when the view has the size of the image.
    small = np.random.default_rng(1).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    image = Image.fromarray(small.repeat(4, 0).repeat(4, 1))
    transform = ImageTransform(size=10, resize="adm")
    views = [augmented_view(image, transform, image_id="a", view=view, flip=False) for view in range(1, 40)]
    assert any(torch.equal(view, transform(Image.fromarray(small))) for view in views)


@pytest.mark.parametrize("resize", RESIZES)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    size=st.integers(1, 40),
    pad=st.integers(0, 3),
    view=st.integers(0, 2**70),
)
@settings(max_examples=25, deadline=None)
def test_any_image_gives_the_same_shape(resize, width, height, size, pad, view):
    transform = ImageTransform(size=size, resize=resize, pad=pad)
    got = augmented_view(picture(width, height), transform, image_id="a", view=view)
    assert got.shape == (3, transform.output_size, transform.output_size)
    assert got.dtype == torch.float32
    assert got.abs().max() <= 1


def test_padding_and_luminance_are_the_transforms():
    plain = augmented_view(picture(), ImageTransform(size=12), image_id="a", view=1)
    padded = augmented_view(picture(), ImageTransform(size=12, pad=2), image_id="a", view=1)
    assert torch.equal(padded, torch.nn.functional.pad(plain, (2, 2, 2, 2), mode="replicate"))
    grey = augmented_view(picture(), ImageTransform(size=12, grayscale=True), image_id="a", view=1)
    assert torch.equal(grey[0], grey[2])


def test_other_modes_are_made_rgb():
    grey = picture().convert("L")
    transform = ImageTransform(size=12)
    got = augmented_view(grey, transform, image_id="a", view=1)
    assert torch.equal(got, augmented_view(grey.convert("RGB"), transform, image_id="a", view=1))


@pytest.mark.parametrize(("name", "value"), [("view", -1), ("view", True), ("seed", -1)])
def test_refused(name, value):
    with pytest.raises(InputError, match=name):
        augmented_view(picture(), ImageTransform(size=8), **{"image_id": "a", "view": 1, name: value})
