import io
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from diffsight.data import blurring, digital, pixel_noise, weather
from diffsight.data.addressed import Draws
from diffsight.data.corruptions import (
    BLUR,
    CORRUPTIONS,
    NOISE,
    SEVERITIES,
    Corruption,
    Resolution,
    corrupt,
    parse_change,
    split_change,
)
from diffsight.errors import InputError

# Where the published severities are not ordered by distance, as the module says, and by how much a step may fall.
UNORDERED = {
    32: {"glass-blur": 0.8, "frost": 0.85, "pixelate": 0.8, "elastic-transform": 0.75},
    224: {"frost": 0.95, "fog": 0.95, "elastic-transform": 0.3},
}


@cache
def photographs(side):
    """Two photographs of scikit-learn, two squares of each."""
    squares = [
        Image.fromarray(image).crop((x, 0, x + 427, 427)) for image in load_sample_images().images for x in (0, 213)
    ]
    return tuple(np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)) for square in squares)


def flat(value, side=64):
    return np.full((side, side, 3), value, dtype=np.uint8)


def distance(a, b):
    return float(np.sqrt(((a.astype(float) - b) ** 2).mean()))


def gradient_energy(image):
    return sum(float((np.diff(image.astype(float), axis=axis) ** 2).mean()) for axis in (0, 1))


@pytest.mark.parametrize("side", [32, 224])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_grow(name, side):
    far = [
        np.mean(
            [
                distance(image, corrupt(image, name, s, image_id=str(i)))
                for i, image in enumerate(photographs(side)[::2])
            ]
        )
        for s in SEVERITIES
    ]
    least = UNORDERED[side].get(name, 1.0)
    assert all(after >= least * before for before, after in pairwise(far)), far
    assert far[0] > 1
    assert name == "elastic-transform" or far[4] > 1.1 * far[0]


@pytest.mark.parametrize("side", [32, 224])
def test_elastic_severities_crumple_more(side):
    roughness = []
    for strength, smooth, _ in digital.ELASTIC[side == 32]:
        draws = Draws(seed=0, image_id="a", purpose="elastic-transform")
        unit = 32 if side == 32 else 244
        moved = digital.local_displacement(draws, (side, side), strength=strength * unit, smooth=smooth * unit)
        roughness.append(float((np.diff(moved, axis=1) ** 2).mean()))
    assert roughness == sorted(roughness)
    assert roughness[4] > 2 * roughness[2] > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(8, 8), (1, 1), (5, 40), (28, 28), (130, 90)])
@pytest.mark.parametrize("severity", [1, 5])
def test_any_size_and_colour(name, shape, severity):
    rng = np.random.default_rng(0)
    images = [np.full((*shape, 3), colour, dtype=np.uint8) for colour in (0, 128, 255, (255, 0, 0))]
    for image in [*images, rng.integers(0, 256, (*shape, 3), dtype=np.uint8)]:
        before = image.copy()
        out = corrupt(image, name, severity, image_id="a")
        assert (out.shape, out.dtype) == (image.shape, np.uint8)
        assert (image == before).all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_same_address_same_image(name):
    image = photographs(32)[0]
    first = corrupt(image, name, 3, image_id="a")
    assert (corrupt(image, name, 3, image_id="a") == first).all()
    random = name not in ("defocus-blur", "zoom-blur", "brightness", "contrast", "pixelate", "jpeg-compression")
    assert (corrupt(image, name, 3, image_id="b") != first).any() == random
    assert (corrupt(image, name, 3, image_id="a", seed=1) != first).any() == random


@pytest.mark.parametrize("side", [32, 224])
def test_types_are_distinct(side):
    image = photographs(side)[0]
    made = {corrupt(image, name, severity, image_id="a").tobytes() for name in CORRUPTIONS for severity in (3, 5)}
    assert len(made) == 2 * len(CORRUPTIONS)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("side", [28, 224])
def test_grey_stays_grey(name, side):
    grey = np.repeat(photographs(side)[0][..., 1:2], 3, axis=2)
    out = corrupt(grey, name, 4, image_id="a")
    assert (out == out[..., :1]).all()


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [64, 224])
def test_noise_has_the_stated_strength(side, severity):
    small, index = side == 64, severity - 1
    # Middle grey, so that little is clipped; the noise is then the same in the three channels.
    image = flat(128, side)
    noise = corrupt(image, "gaussian-noise", severity, image_id="a")[..., 0] / 255 - 128 / 255
    sigma = pixel_noise.GAUSSIAN[small][index]
    inside = np.abs(noise) < 0.49
    assert np.percentile(np.abs(noise), 50) == pytest.approx(0.6745 * sigma, rel=0.05)
    assert inside.mean() > 0.75
    photons = pixel_noise.PHOTONS[small][index]
    draws = Draws(seed=0, image_id="a", purpose="shot-noise")
    counts = pixel_noise.shot_noise(image / 255, severity, draws)[..., 0] * photons
    assert (np.abs(counts - np.rint(counts)) < 1e-9).all()
    assert counts.mean() == pytest.approx(photons * 128 / 255, rel=0.05)
    assert counts.var() == pytest.approx(photons * 128 / 255, rel=0.1)
    struck = corrupt(image, "impulse-noise", severity, image_id="a")[..., 0]
    share = pixel_noise.STRUCK[small][index]
    for value in (0, 255):
        assert (struck == value).mean() == pytest.approx(share / 2, abs=4 * np.sqrt(share / 2) / side)
    assert np.isin(struck, (0, 128, 255)).all()


def test_colour_noise_is_independent_in_the_channels():
    image = flat((100, 128, 150), 224)
    noise = corrupt(image, "gaussian-noise", 1, image_id="a").astype(float) - image
    off = np.corrcoef(noise.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(off).max() < 0.03


@pytest.mark.parametrize("name", BLUR)
@pytest.mark.parametrize("side", [32, 224])
def test_blur_keeps_the_mean_and_smooths(name, side):
    for image in photographs(side)[1:3]:
        energies = []
        for severity in (1, 5):
            out = corrupt(image, name, severity, image_id="a")
            # Zooming shows less of the border; a trail repeats it.
            assert np.abs(out.mean(axis=(0, 1)) - image.mean(axis=(0, 1))).max() < (1 if name == "defocus-blur" else 12)
            energies.append(gradient_energy(out))
        assert (side == 32 and name == "glass-blur") or energies[1] < energies[0] < gradient_energy(image)


def test_blurs_of_one_point():
    point = np.zeros((65, 65, 3))
    point[32, 32] = 1
    rows, columns = np.indices((65, 65)) - 32

    def spread(image):
        return [float((image[..., 0] * axis**2).sum()) for axis in (rows, columns)]

    # A disc of radius r has the variance r²/4 in each direction; a pixel adds 1/12.
    kernel = blurring._disc(8.0, margin=1)
    out = blurring.convolve(point, kernel / kernel.sum())
    assert out.sum() == pytest.approx(3)
    assert spread(out) == pytest.approx([16, 16], rel=0.02)
    assert spread(blurring.gaussian(point, 3.0)) == pytest.approx([9, 9], rel=0.01)
    trail = blurring.streak(point, 20, 8, 0.0)
    assert trail[:32].max() < 1e-9
    assert trail[32, :32].max() < 1e-4  # from beyond the mirror at the border
    assert (np.diff(trail[32, 33:60, 0]) < 0).all()


def test_wide_gaussian_by_its_transform_is_the_same():
    image = photographs(224)[0] / 255
    from scipy.ndimage import gaussian_filter

    expected = gaussian_filter(image, 20, mode="reflect", axes=(0, 1), truncate=8)
    assert np.abs(blurring.gaussian(image, 20) - expected).max() < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [32, 224])
def test_closed_forms(side, severity):
    image, small, index = photographs(side)[1], side == 32, severity - 1
    means = image.mean(axis=(0, 1))
    expected = means + digital.CONTRAST[small][index] * (image - means)
    assert np.abs(corrupt(image, "contrast", severity, image_id="a") - expected).max() <= 0.51
    out = corrupt(image, "brightness", severity, image_id="a").astype(float)
    value = image.max(axis=2).astype(float)
    raised = np.minimum(value + 255 * weather.BRIGHTNESS[small][index], 255)
    assert np.abs(out.max(axis=2) - raised).max() <= 0.51
    assert np.abs(out * value[..., None] - image * raised[..., None]).max() <= 0.51 * 255
    quality = digital.JPEG[small][index]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    assert (corrupt(image, "jpeg-compression", severity, image_id="a") == np.asarray(Image.open(buffer))).all()


def test_jpeg_gets_smaller():
    for side in (32, 224):
        sizes = []
        for quality in digital.JPEG[side == 32]:
            buffer = io.BytesIO()
            Image.fromarray(photographs(side)[0]).save(buffer, "JPEG", quality=quality)
            sizes.append(buffer.tell())
        assert sizes == sorted(sizes, reverse=True)


def test_pixelate_has_fewer_pixels():
    out = corrupt(photographs(224)[0], "pixelate", 5, image_id="a")
    assert len(np.unique(out.reshape(-1, 3), axis=0)) <= 56 * 56
    assert (out[:4, :4] == out[0, 0]).all()


def test_weather():
    image = photographs(224)[1] // 2
    for name in ("snow", "frost", "brightness"):
        assert corrupt(image, name, 3, image_id="a").mean() > image.mean() + 10
    clouds = weather.fractal(Draws(seed=0, image_id="a", purpose="fog"), (60, 90), decay=4.0)
    rough = weather.fractal(Draws(seed=0, image_id="a", purpose="fog"), (60, 90), decay=2.0)
    assert (clouds.min(), clouds.max()) == (0, 1)
    assert gradient_energy(rough) > 2 * gradient_energy(clouds)
    foggy = corrupt(photographs(224)[0], "fog", 5, image_id="a")
    assert foggy.std() < photographs(224)[0].std()
    panes = [weather.ice_crystals(Draws(seed=0, image_id=id, purpose="frost"), (224, 224)) for id in "ab"]
    assert all(0.25 < pane.mean() < 0.6 and pane.std() > 0.1 for pane in panes)
    assert abs(np.corrcoef(panes[0].ravel(), panes[1].ravel())[0, 1]) < 0.7


def test_lengths_grow_with_the_image():
    """The blur of an image of twice the size is that of the image, at twice the size."""
    large, small = photographs(448)[0], photographs(224)[0]
    for name in ("defocus-blur", "motion-blur", "zoom-blur"):
        halved = Image.fromarray(corrupt(large, name, 5, image_id="a")).resize((224, 224), Image.Resampling.BOX)
        assert distance(np.asarray(halved), corrupt(small, name, 5, image_id="a")) < 3


def test_resolution():
    image = photographs(224)[0]
    far = [distance(Resolution(side)(image), image) for side in (224, 128, 64, 32, 16)]
    assert far[0] == 0
    assert far == sorted(far)
    assert gradient_energy(Resolution(32)(image)) < 0.2 * gradient_energy(image)
    wide = image[:100]
    once = Resolution(20)(wide)
    assert once.shape == wide.shape
    assert distance(Resolution(20)(once), once) < 0.3 * distance(once, wide)
    assert Resolution(1)(image).std(axis=(0, 1)).max() == 0


def test_specs():
    for change in (Corruption("fog", 3), Corruption("fog", 3, 7), Resolution(64)):
        assert parse_change(change.spec) == change
    assert split_change("fashion-mnist@gaussian-noise:3") == ("fashion-mnist", Corruption("gaussian-noise", 3))
    assert split_change("folder:/home/me@work/photos@resolution:64") == ("folder:/home/me@work/photos", Resolution(64))
    for plain in ("fashion-mnist", "folder:/home/me@work", "folder:C:/me@a:b/photos", "me@work"):
        assert split_change(plain) == (plain, None)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("gausian-noise:3", "Did you mean 'gaussian-noise'"),
        ("gaussian_noise:3", "Did you mean 'gaussian-noise'"),
        ("fog:6", "1, 2, 3, 4 or 5; got 6"),
        ("fog:0", "got 0"),
        ("fog:thick", "not of the form fog:3"),
        ("fog:3:1:2", "not of the form fog:3"),
        ("fog:²", "not of the form fog:3"),
        ("resolution:0", "at least 1"),
        ("resolution:64:1", "not of the form resolution:64"),
    ],
)
def test_wrong_specs(spec, said):
    with pytest.raises(InputError, match=said):
        split_change(f"fashion-mnist@{spec}")


def test_wrong_values():
    image = flat(0)
    for name, severity, seed in (("fogg", 3, 0), ("fog", 3.0001, 0), ("fog", True, 0), ("fog", 3, -1)):
        with pytest.raises((InputError, TypeError)):
            Corruption(name, severity, seed)(image, image_id="a")
    assert set(NOISE) < set(CORRUPTIONS)
