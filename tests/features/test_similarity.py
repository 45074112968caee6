import numpy as np
import pytest

from diffsight.errors import InputError
from diffsight.features.cka import cka
from diffsight.features.extraction import plan
from diffsight.features.extractor import FeatureExtractor
from diffsight.features.figures import check_figure_path, heatmap, save_figure
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool
from diffsight.features.similarity import compare


def features(extraction, pictures):
    extractor = FeatureExtractor(extraction.backbone)
    extractor.plan_ = extraction
    return {name: column.flatten(1) for name, column in extractor.maps(pictures).items()}


def test_all_pairs_are_those_computed_one_by_one(sd, pictures):
    extraction = plan(sd, layers=["enc.1", "mid", "dec.2"], timesteps=[50, 500], pool=Pool(size=2))
    matrix = compare(extraction, pictures, images_per_batch=64)
    columns = features(extraction, pictures)
    assert matrix.names_x == matrix.names_y == extraction.columns
    assert matrix.images == 40
    for i, first in enumerate(matrix.names_x):
        for j, second in enumerate(matrix.names_y):
            assert matrix.values[i, j] == pytest.approx(cka(columns[first], columns[second]), abs=1e-6)


def test_two_models_see_the_same_images_and_noise(sd, dit, pictures):
    first, second = plan(sd, layers=["mid", "dec.2"], timesteps=[50]), plan(dit, timesteps=[50])
    matrix = compare(first, pictures, second, images_per_batch=64)
    expected = cka(features(first, pictures)["dec.2@50"], features(second, pictures)["block.0@50"])
    assert matrix.values.shape == (2, 1)
    assert matrix.values[1, 0] == pytest.approx(expected, abs=1e-6)


def test_shared_noise_makes_timesteps_look_more_alike(sd, pictures):
    shared, apart = (
        compare(plan(sd, layers=["mid"], timesteps=[600, 900], noise=Noise(shared=shared)), pictures)
        for shared in (True, False)
    )
    assert shared.values[0, 1] > apart.values[0, 1] + 0.1


def test_the_order_of_the_images_decides_nothing_but_the_batches(sd, pictures):
    extraction = plan(sd, layers=["mid", "dec.2"], timesteps=[50])
    one = compare(extraction, pictures, images_per_batch=64)
    other = compare(extraction, pictures[::-1], images_per_batch=64, batch_size=3)
    np.testing.assert_allclose(one.values, other.values, atol=1e-5)


def test_an_unreadable_image_is_left_out_on_both_sides(sd, dit, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    first, second = plan(sd, layers=["mid"], timesteps=[50]), plan(dit, timesteps=[50])
    mixed = compare(first, [*pictures[:20], broken, *pictures[20:]], second)
    assert mixed.images == 40
    np.testing.assert_allclose(mixed.values, compare(first, pictures, second).values, atol=1e-5)


def test_too_few_images_and_too_many_vectors_are_refused(sd, pictures):
    with pytest.raises(InputError, match="at least 4"):
        compare(plan(sd, layers=["mid"]), pictures[:3])
    with pytest.raises(InputError, match="one vector for each image, and there are 2"):
        compare(plan(sd, layers=["mid"], noise=Noise(kind="resample", draws=2)), pictures)


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_heat_map_is_drawn(tmp_path, suffix):
    values = np.array([[1.0, np.nan, 0.2], [0.3, 0.4, -0.1]])
    figure = heatmap(values, ["a", "b"], ["x", "y", "z"], title="T", across="across", down="down", colour="CKA")
    path = tmp_path / f"map{suffix}"
    save_figure(figure, path)
    assert path.stat().st_size > 1000
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["1.00", "0.20", "0.30", "0.40", "-0.10"]


def test_what_is_no_picture_is_refused_before_the_work(tmp_path):
    with pytest.raises(InputError, match=r"must end in \.png"):
        check_figure_path(tmp_path / "map.txt")
    with pytest.raises(InputError, match="no folder"):
        check_figure_path(tmp_path / "nowhere" / "map.png")
