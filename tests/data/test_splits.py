from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffsight.data.queries import Crop, Query
from diffsight.data.splits import few_shot, few_shot_queries, fraction, hold_out
from diffsight.errors import InputError

labels_of_any_kind = st.lists(st.integers(0, 5), min_size=1, max_size=60)
seeds = st.integers(0, 2**40)


def counts(labels, chosen):
    return np.bincount(np.asarray(labels)[chosen], minlength=6)


@given(labels_of_any_kind, st.integers(1, 6), seeds)
def test_few_shot_takes_as_many_of_each_class(labels, per_class, seed):
    sizes = np.bincount(labels, minlength=6)
    if sizes[sizes > 0].min() < per_class:
        with pytest.raises(InputError, match=rf"Class {np.where(sizes, sizes, 99).argmin()} has"):
            few_shot(labels, per_class=per_class, seed=seed)
        return
    chosen = few_shot(labels, per_class=per_class, seed=seed)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert counts(labels, chosen).tolist() == np.where(sizes, per_class, 0).tolist()


@given(labels_of_any_kind, st.floats(0.001, 1), seeds)
def test_fraction_is_stratified(labels, share, seed):
    chosen = fraction(labels, share=share, seed=seed)
    sizes, got = np.bincount(labels, minlength=6), counts(labels, chosen)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert (got[sizes > 0] >= 1).all()
    assert (np.abs(got - share * sizes)[share * sizes >= 0.5] <= 0.5 + 1e-6).all()


@given(labels_of_any_kind, st.floats(0.001, 0.999), seeds)
def test_hold_out_divides(labels, share, seed):
    sizes = np.bincount(labels, minlength=6)
    if sizes.max() < 2:
        with pytest.raises(InputError, match="No class has two images"):
            hold_out(labels, share=share, seed=seed)
        return
    train, validation = hold_out(labels, share=share, seed=seed)
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert train.tolist() == sorted(train)
    assert validation.tolist() == sorted(validation)
    kept, held = counts(labels, train), counts(labels, validation)
    assert (kept[sizes > 0] >= 1).all()
    assert (held[sizes > 1] >= 1).all()
    assert (held[sizes == 1] == 0).all()


@given(labels_of_any_kind, seeds)
def test_larger_parts_contain_smaller_ones(labels, seed):
    sizes = np.bincount(labels)
    nested = [few_shot(labels, per_class=count, seed=seed) for count in range(1, sizes[sizes > 0].min() + 1)]
    nested += [fraction(labels, share=1.0, seed=seed)]
    shares = [fraction(labels, share=share, seed=seed) for share in (0.01, 0.1, 0.11, 0.5, 0.9, 1)]
    for parts in (nested, shares):
        for small, large in pairwise(parts):
            assert set(small) <= set(large)


def test_a_fraction_is_contained_in_more_shots():
    labels = [0, 1] * 50
    assert set(fraction(labels, share=0.1, seed=4)) == set(few_shot(labels, per_class=5, seed=4))


def test_seeds_differ_and_held_out_images_are_independent_of_shots():
    labels = [0] * 200
    parts = [few_shot(labels, per_class=20, seed=seed) for seed in range(20)]
    assert len({part.tobytes() for part in parts}) == 20
    both = [np.intersect1d(parts[seed], hold_out(labels, share=0.1, seed=seed)[1]).size for seed in range(20)]
    assert 0.5 < np.mean(both) < 4  # 20 · 20/200 = 2 of 20 meet by chance


def test_every_image_is_as_likely():
    hits = np.zeros(10)
    for seed in range(1000):
        hits[few_shot([0] * 10, per_class=3, seed=seed)] += 1
    assert abs(hits - 300).max() < 60


def test_other_classes_do_not_matter():
    alone = few_shot([0] * 30, per_class=7, seed=1)
    beside = few_shot([0] * 30 + [1] * 40, per_class=7, seed=1)
    assert beside[:7].tolist() == alone.tolist()


def test_parts_are_the_same_on_every_machine():
    assert few_shot([0] * 20 + [1] * 20, per_class=3, seed=5).tolist() == [6, 9, 10, 24, 36, 38]
    assert hold_out([0] * 10, share=0.3, seed=5)[1].tolist() == [0, 8, 9]


def test_protocol_of_one_percent():
    labels = np.repeat(np.arange(3), [1300, 1300, 732])
    assert counts(labels, fraction(labels, share=0.01, seed=0)).tolist() == [13, 13, 7, 0, 0, 0]
    assert len(fraction([0] * 100, share=0.07, seed=0)) == 7
    assert len(fraction([0] * 3, share=0.01, seed=0)) == 1


def test_labels_may_be_any_sequence_of_whole_numbers():
    forms = ([3, 3, 7, 7], (3, 3, 7, 7), np.array([3, 3, 7, 7]), np.array([3, 3, 7, 7], np.uint8))
    assert len({tuple(few_shot(labels, per_class=1, seed=0).tolist()) for labels in forms}) == 1


def test_errors_name_the_class():
    with pytest.raises(InputError, match=r"Class 1 \('dog'\) has 1 images, fewer than the 2"):
        few_shot([0, 0, 1], per_class=2, seed=0, class_names=("cat", "dog"))


@pytest.mark.parametrize("share", [0, -0.1, 1.5, float("nan")])
def test_shares_that_are_none(share):
    for split in (fraction, hold_out):
        with pytest.raises(InputError, match="share must be"):
            split([0, 0], share=share, seed=0)


def test_refused():
    with pytest.raises(InputError, match="share must be between"):
        hold_out([0, 0], share=1, seed=0)
    with pytest.raises(InputError, match="per_class"):
        few_shot([0, 0], per_class=0, seed=0)
    with pytest.raises(InputError, match="seed"):
        few_shot([0, 0], per_class=1, seed=-1)
    with pytest.raises(InputError, match="no labels"):
        few_shot([], per_class=1, seed=0)


def queries_of(images, prefix="q"):
    """A query for each list of images."""
    return [
        Query(id=f"{prefix}{index}", images=tuple(row), texts=("a", "b")[: 3 - min(2, len(row))])
        for index, row in enumerate(images)
    ]


def numbered(pairs):
    return queries_of([[Path(f"{number}.png") for number in row] for row in pairs])


pairs_of_images = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=2, unique=True), min_size=1, max_size=25)


@given(pairs_of_images, st.integers(1, 8), seeds)
def test_queries_to_test_on_share_no_image_with_those_to_train_on(rows, count, seed):
    try:
        train, rest = few_shot_queries(numbered(rows), count=count, seed=seed)
    except InputError:  # No query is left.
        return
    assert len(train) == count
    assert len(rest) > 0
    assert train.tolist() == sorted(set(train.tolist()))
    assert rest.tolist() == sorted(set(rest.tolist()))
    seen = {number for place in train for number in rows[place]}
    left = [place for place in range(len(rows)) if place not in train and seen.isdisjoint(rows[place])]
    assert rest.tolist() == left


@given(pairs_of_images, seeds)
def test_more_queries_contain_fewer(rows, seed):
    parts = []
    for count in range(1, len(rows)):
        try:
            parts.append(few_shot_queries(numbered(rows), count=count, seed=seed))
        except InputError:
            break
    for (small, more_left), (large, less_left) in pairwise(parts):
        assert set(small) <= set(large)
        assert set(less_left) <= set(more_left)


def test_queries_are_chosen_by_the_seed():
    rows = [[number] for number in range(30)]
    chosen = [few_shot_queries(numbered(rows), count=4, seed=seed)[0] for seed in range(20)]
    assert len({part.tobytes() for part in chosen}) == 20
    hits = np.zeros(5)
    for seed in range(500):
        hits[few_shot_queries(numbered(rows[:5]), count=2, seed=seed)[0]] += 1
    assert abs(hits - 200).max() < 60


def test_queries_are_the_same_on_every_machine():
    train, rest = few_shot_queries(numbered([[number] for number in range(8)]), count=3, seed=5)
    assert (train.tolist(), rest.tolist()) == ([2, 4, 7], [0, 1, 3, 5, 6])


def the_rest(*images):
    """Which of these share no image with the first, as far as the split can tell."""
    rows = [[image] for image in images]
    for seed in range(200):
        train, rest = few_shot_queries(queries_of([*rows, [Path("other.png")]]), count=1, seed=seed)
        if train.tolist() == [0]:
            return [place for place in rest.tolist() if place < len(images)]
    raise AssertionError("never chosen")


def test_files_are_the_same_by_where_they_lead(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "copy.png")
    (tmp_path / "link.png").symlink_to("a.png")
    path = tmp_path / "a.png"
    images = (path, tmp_path / "x" / ".." / "a.png", tmp_path / "link.png", Crop(path, (0, 0, 2, 2)))
    assert the_rest(*images, tmp_path / "copy.png") == [4]
    assert the_rest(Crop(path, (0, 0, 2, 2)), Crop(path, (2, 2, 4, 4)), path) == []


def test_pictures_are_the_same_by_their_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    opaque = Image.fromarray(np.dstack([noise, np.full((5, 4), 255, np.uint8)]))
    changed = noise.copy()
    changed[4, 3, 2] ^= 1
    images = (picture, picture.copy(), opaque, Image.fromarray(changed), Image.fromarray(noise.reshape(4, 5, 3)))
    assert the_rest(*images) == [3, 4]


def test_queries_that_cannot_be_divided():
    apart = numbered([[0], [1], [2]])
    for count in (3, 4):
        with pytest.raises(InputError, match=rf"There are 3 queries; {count} to train on leave none"):
            few_shot_queries(apart, count=count, seed=0)
    with pytest.raises(InputError, match=r"the other 2 queries shares an image with the 1 to train on"):
        few_shot_queries(numbered([[0, 1], [0, 2], [0]]), count=1, seed=0)
    with pytest.raises(InputError, match="There are 0 queries"):
        few_shot_queries([], count=1, seed=0)
    for count in (0, -1, True):
        with pytest.raises(InputError, match="count must be"):
            few_shot_queries(apart, count=count, seed=0)
    with pytest.raises(InputError, match="seed"):
        few_shot_queries(apart, count=1, seed=-1)
