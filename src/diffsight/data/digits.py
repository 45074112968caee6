"""scikit-learn's handwritten digits: real images with labels that are on every machine."""

import numpy as np
from jaxtyping import UInt8

from diffsight.errors import SourceError, nearest

SPLITS = ("all", "test", "train")
_WHITE = 16  # The values count the dark pixels in blocks of 4×4.
_TEST_EVERY = 5


def read_digits(split: str) -> tuple[UInt8[np.ndarray, "n 8 8"], tuple[int, ...], tuple[str, ...]]:
    """Give the images (8×8, white on black), labels and class names of a split.

    The data have no split of their own (they are the test set of UCI's Optical Recognition of Handwritten Digits). Here
    every fifth image of each class is ``test``, counted in the order of the data, and the others are ``train``; so the
    same 13 people wrote both. ``all`` is the whole set in its order.

    Args:
        split: ``train`` (1,442 images), ``test`` (355) or ``all`` (1,797).

    Raises:
        SourceError: If the split is unknown.
    """
    if split not in SPLITS:
        raise SourceError(f"sklearn:digits has no split {split!r}. {nearest(split, SPLITS)}")
    from sklearn.datasets import load_digits  # Slow, and needed only here.

    values, labels = load_digits(return_X_y=True)
    images = np.round(values.reshape(-1, 8, 8) * (255 / _WHITE)).astype(np.uint8)
    test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    chosen = np.full(len(labels), True) if split == "all" else test == (split == "test")
    return images[chosen], tuple(labels[chosen].tolist()), tuple("0123456789")
