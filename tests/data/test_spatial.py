import numpy as np
import pytest

from diffsight.data.spatial import RADIUS, split_by_place
from diffsight.errors import InputError

HOW = {"share": 0.2, "cell": 100.0, "buffer": 10.0, "seed": 0}


def distances(one, other):
    """Great-circle distances in km, by the haversine formula."""
    a, b = np.radians(one)[:, None], np.radians(other)[None]
    half = np.sin((b - a) / 2) ** 2
    return 2 * RADIUS * np.arcsin(np.sqrt(half[..., 1] + np.cos(a[..., 1]) * np.cos(b[..., 1]) * half[..., 0]))


@pytest.fixture
def scattered():
    """Clusters of neighbours all over Europe, as EuroSAT has them; the classes are not alike everywhere."""
    random = np.random.default_rng(0)
    middles = np.stack([random.uniform(-10, 30, 120), random.uniform(36, 65, 120)], axis=1)
    cluster = np.repeat(np.arange(120), 25)
    places = middles[cluster] + random.normal(0, 0.08, (3000, 2))
    labels = np.where(random.random(3000) < 0.5, cluster % 5, random.integers(0, 5, 3000))
    return places, labels


def test_parts_lie_apart(scattered):
    places, labels = scattered
    split = split_by_place(places, labels, **HOW)
    parts = np.concatenate([split.train, split.test, split.left_out])
    assert sorted(parts.tolist()) == list(range(3000))
    apart = distances(places[split.train], places[split.test])
    assert apart.min() > 10
    assert (distances(places[split.left_out], places[split.test]).min(axis=1) <= 10).all()
    assert len(split.left_out) > 0
    wide = split_by_place(places, labels, **(HOW | {"buffer": 0.0}))
    assert not len(wide.left_out)
    assert wide.test.tolist() == split.test.tolist()


def test_classes_are_divided_about_evenly(scattered):
    places, labels = scattered
    split = split_by_place(places, labels, **HOW)
    for train, test, out in split.balance(labels).values():
        assert 0.1 < test / (train + test + out) < 0.3
    said = split.describe(labels, ("a", "b", "c", "d", "e"))
    assert f"{len(split.test):,} to test with in {split.cells[1]} of {split.cells[0]} cells" in said
    assert f"{len(split.left_out):,} too near" in said


def test_a_seed_decides(scattered):
    places, labels = scattered
    first, again = (split_by_place(places, labels, **HOW) for _ in range(2))
    assert first.test.tolist() == again.test.tolist()
    assert first.test.tolist() != split_by_place(places, labels, **(HOW | {"seed": 1})).test.tolist()
    order = np.random.default_rng(1).permutation(3000)
    turned = split_by_place(places[order], labels[order], **HOW)
    assert sorted(order[turned.test].tolist()) == first.test.tolist()


def test_no_cell_is_on_both_sides():
    """Neighbours half a kilometre apart along a meridian: only the edges of cells can part them."""
    north = np.degrees(np.arange(2000) * 0.5 / RADIUS) + 40
    places = np.stack([np.full(2000, 15.0), north], axis=1)
    split = split_by_place(places, np.arange(2000) % 4, **(HOW | {"buffer": 0.0}))
    side = np.zeros(2000, dtype=bool)
    side[split.test] = True
    runs = np.diff(np.flatnonzero(np.diff(side.astype(int)) != 0))
    assert (runs >= 195).all()  # 100 km are 200 images
    assert split.cells[0] in (10, 11, 12)


def test_the_date_line_and_the_poles():
    random = np.random.default_rng(0)
    places = np.stack([random.uniform(-180, 180, 500), random.uniform(-90, 90, 500)], axis=1)
    places[:4] = [[180, 0], [-180, 0], [0, 90], [0, -90]]
    split = split_by_place(places, np.arange(500) % 2, **(HOW | {"cell": 1000.0}))
    assert (0 in split.test) == (1 in split.test)
    assert distances(places[split.train], places[split.test]).min() > 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.0}, "share must be between 0 and 1"),
        ({"cell": 0.0}, "cell must be over 0 km"),
        ({"buffer": -1.0}, "buffer at least 0 km"),
        ({"seed": -1}, "A seed must be"),
        ({"cell": 41000.0}, "cannot be divided.*Take smaller cells"),
        ({"buffer": 19000.0}, "Take a smaller buffer"),
    ],
)
def test_arguments_that_make_no_sense(scattered, changes, message):
    with pytest.raises(InputError, match=message):
        split_by_place(*scattered, **(HOW | changes))


@pytest.mark.parametrize("wrong", [(181.0, 0.0), (0.0, 91.0), (float("nan"), 0.0)])
def test_places_that_are_none(scattered, wrong):
    places, labels = scattered
    places[7] = wrong
    with pytest.raises(InputError, match="Longitudes are from"):
        split_by_place(places, labels, **HOW)
    with pytest.raises(InputError, match="a place and a label for each image"):
        split_by_place(places[1:], labels, **HOW)
