from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from diffsight.errors import InputError
from diffsight.zero_shot.voting import vote_shares


def test_by_hand():
    errors = np.array([[1.0, 2.0, 3.0], [2.0, 1.0, 1.0], [9.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    # Votes: class 0; classes 1 and 2, half each; class 1; a third each.
    assert vote_shares(errors) == pytest.approx(np.array([4 / 3, 11 / 6, 5 / 6]) / 4)
    assert vote_shares(errors, np.array([1.0, 0.0, 3.0, 0.0])) == pytest.approx([1 / 4, 3 / 4, 0])


@given(arrays.arrays(float, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.integers(0, 3)))
def test_votes_are_counted(errors):
    votes = Counter()
    for row in errors:
        best = [index for index, error in enumerate(row) if error == min(row)]
        votes.update({index: 1 / len(best) for index in best})
    shares = vote_shares(errors)
    assert shares == pytest.approx([votes[index] / len(errors) for index in range(errors.shape[1])])
    assert shares.sum() == pytest.approx(1)
    assert vote_shares(errors, np.full(len(errors), 0.3)) == pytest.approx(shares)
    assert vote_shares(np.exp(errors)) == pytest.approx(shares)  # only the order within a draw counts


def test_eliminated_classes_cannot_be_voted_for():
    with pytest.raises(InputError, match="exhaustive"):
        vote_shares(np.array([[1.0, 2.0], [1.0, np.nan]]))
    with pytest.raises(InputError, match="exhaustive"):
        vote_shares(np.zeros((0, 2)))
    with pytest.raises(InputError, match="weight 0"):
        vote_shares(np.ones((2, 2)), np.zeros(2))
