from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffsight.data.splits import few_shot, fraction, hold_out
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
