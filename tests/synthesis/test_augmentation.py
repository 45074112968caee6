import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from diffsight.synthesis.augmentation import augmented, augmented_batch, random_box
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.preprocessing import Preprocessing
from diffsight.synthesis.randomness import uniform_rows, uniforms


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["shift", "crop", "rotate", "none", "auto"])
def test_a_version_has_an_address(image, kind):
    how, settings = Preprocessing(size=32, scale=36), TrainSettings(augment=kind)
    versions = [augmented(image, how, settings, 0, 0, id) for id in ("a", "b", "c", "d")]
    assert torch.equal(versions[0], augmented(image, how, settings, 0, 0, "a"))
    assert all(version.shape == (3, 32, 32) and version.dtype == torch.uint8 for version in versions)
    assert len({version.numpy().tobytes() for version in versions}) == (2 if kind == "none" else 4)


def test_only_mirrored_where_nothing_else_is_asked_for(image):
    how = Preprocessing(size=32, scale=32)
    plain = how(image)
    versions = [augmented(image, how, TrainSettings(augment="none"), n) for n in range(40)]
    mirrored = [torch.equal(version, plain.flip(2)) for version in versions]
    assert 8 <= sum(mirrored) <= 32
    assert all(torch.equal(version, plain) for version, turned in zip(versions, mirrored, strict=True) if not turned)
    unturned = TrainSettings(augment="none", flip=False)
    assert all(torch.equal(augmented(image, how, unturned, n), plain) for n in range(10))


def test_a_shift_moves_the_picture(image):
    how, settings = Preprocessing(size=32, scale=32), TrainSettings(augment="shift", flip=False)
    plain = how(image)
    found = set()
    for n in range(30):
        version = augmented(image, how, settings, n)
        moves = [
            (x, y)
            for x in range(-4, 5)
            for y in range(-4, 5)
            if torch.equal(
                version[:, max(0, -y) : 32 - max(0, y), max(0, -x) : 32 - max(0, x)],
                plain[:, max(0, y) : 32 + min(0, y), max(0, x) : 32 + min(0, x)],
            )
        ]
        assert len(moves) == 1
        found.add(moves[0])
    assert len(found) > 15


@pytest.mark.parametrize(("width", "height"), [(32, 32), (60, 30), (20, 200)])
def test_boxes_have_the_law_of_torchvision(width, height):
    ours = np.array([random_box(width, height, 0.08, uniforms(40, n).tolist()) for n in range(3000)])
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        picture = torch.zeros(3, height, width)
        drawn = [RandomResizedCrop.get_params(picture, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(3000)]
    theirs = np.array([(left, top, left + w, top + h) for top, left, h, w in drawn])
    for mine, other in zip(ours.T, theirs.T, strict=True):
        assert abs(mine.mean() - other.mean()) < 0.02 * max(width, height) + 0.2
        assert abs(mine.std() - other.std()) < 0.02 * max(width, height) + 0.2
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2] <= width).all()
    assert (ours[:, 3] <= height).all()


def test_uniforms_fill_the_range():
    numbers = uniforms(20_000, "here")
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert np.array_equal(numbers[:10], uniforms(10, "here"))
    assert not np.array_equal(uniforms(10, "there"), uniforms(10, "here"))


@pytest.mark.parametrize("kind", ["shift", "none"])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("side", [7, 28])
def test_a_batch_is_changed_as_each_of_its_images(kind, flip, side):
    pictures = np.random.default_rng(0).integers(0, 256, (40, side, side, 3), dtype=np.uint8)
    how, settings = Preprocessing(size=side, scale=side), TrainSettings(augment=kind, flip=flip)
    addresses = [(3, 5, f"image {number}") for number in range(40)]
    each = [augmented(Image.fromarray(p), how, settings, *a) for p, a in zip(pictures, addresses, strict=True)]
    numbers = uniform_rows(4, [("augment", *address) for address in addresses])
    batch = augmented_batch(torch.from_numpy(pictures).permute(0, 3, 1, 2), settings, numbers)
    assert torch.equal(batch, torch.stack(each))


def test_rows_of_uniforms_are_those_of_their_addresses():
    addresses = [("a", 1), ("b", 2, "c"), ("a", 2)]
    rows = uniform_rows(7, addresses)
    assert np.array_equal(rows, np.stack([uniforms(7, *address) for address in addresses]))
    assert uniform_rows(3, []).shape == (0, 3)
