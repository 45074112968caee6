"""Parts of a labelled set: a few images of each class, a share of them, some held out. Stratified and seeded.

Each class is shuffled by itself, by random numbers that numpy guarantees; so a part depends on the labels and the seed,
not on the version of numpy, and the images of one class do not decide about those of another. Queries of matching have
no classes: `few_shot_queries` keeps their images apart instead.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Integer
from numpy.typing import NDArray

from diffsight.data.queries import Query, picture_identity
from diffsight.diffusion.noise import key_of
from diffsight.errors import InputError

STREAM = "splits-philox4x64-1"

Labels = Sequence[int] | Integer[np.ndarray, " m"]


def few_shot(
    labels: Labels, *, per_class: int, seed: int, class_names: Sequence[str] | None = None
) -> Int[np.ndarray, " n"]:
    """Take the same number of images from each class.

    With the same seed, more per class contain fewer, and so does a larger `fraction`.

    Args:
        labels: Class index of each image.
        per_class: How many of each class that occurs.
        seed: Chooses among the possible parts.
        class_names: What to call the classes in errors.

    Returns:
        Positions in ``labels``, ascending.

    Raises:
        InputError: If a class has fewer images, naming it, or an argument makes no sense.
    """
    if isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1:
        raise InputError(f"per_class must be a whole number of at least 1; got {per_class!r}.")
    classes = _shuffled(labels, seed=seed, purpose="part")
    label, members = min(classes.items(), key=lambda item: len(item[1]))
    if len(members) < per_class:
        name = f" ({class_names[label]!r})" if class_names is not None and label < len(class_names) else ""
        raise InputError(
            f"Class {label}{name} has {len(members)} images, fewer than the {per_class} per class that were asked for. "
            "Ask for fewer, or leave the class out."
        )
    return _ascending([members[:per_class] for members in classes.values()])


def fraction(labels: Labels, *, share: float, seed: int) -> Int[np.ndarray, " n"]:
    """Take a share of the images of each class, as in the protocols with 1 % and 10 % of the labels.

    The number is rounded for each class (halves up) and is at least one, so that the share of all images can differ
    from ``share`` where classes are small. With the same seed, a larger share contains a smaller.

    Args:
        labels: Class index of each image.
        share: Over 0, up to 1.
        seed: Chooses among the possible parts.

    Returns:
        Positions in ``labels``, ascending.

    Raises:
        InputError: If an argument makes no sense.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be over 0 and at most 1 (0.01 is 1 %); got {share!r}.")
    classes = _shuffled(labels, seed=seed, purpose="part")
    return _ascending([members[: max(1, _rounded(share * len(members)))] for members in classes.values()])


def hold_out(labels: Labels, *, share: float, seed: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """Divide images into those to train on and those to choose settings with.

    Of each class with at least two images, some are held out (the rounded share, at least one) and some are left. The
    only image of a class stays for training.

    Args:
        labels: Class index of each image.
        share: Of each class that is held out, between 0 and 1.
        seed: Chooses among the possible divisions; independent of `few_shot` and `fraction` with the same seed.

    Returns:
        Positions in ``labels`` for training and for validation, each ascending.

    Raises:
        InputError: If no class has two images, or an argument makes no sense.
    """
    if not 0 < share < 1:
        raise InputError(f"share must be between 0 and 1 (0.1 holds out 10 %); got {share!r}.")
    train: list[NDArray[np.int64]] = []
    validation: list[NDArray[np.int64]] = []
    for members in _shuffled(labels, seed=seed, purpose="hold out").values():
        held = min(max(1, _rounded(share * len(members))), len(members) - 1)
        validation.append(members[:held])
        train.append(members[held:])
    if not any(len(held) for held in validation):
        raise InputError("No class has two images, so that none can be held out; choose settings with other images.")
    return _ascending(train), _ascending(validation)


def few_shot_queries(
    queries: Sequence[Query], *, count: int, seed: int
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " k"]]:
    """Take a few queries to train on, and test on those that share no image with them.

    Queries that show an image of the training part without being in it are in neither part; where images are used many
    times, as in ComVG, those can be most. An image is a file, whole or in parts and links resolved, or the pixels of a
    picture; a copy in another file counts as another image. With the same seed, more queries contain fewer.

    Args:
        queries: Of any form.
        count: How many to train on.
        seed: Chooses among the possible parts.

    Returns:
        Positions in ``queries`` for training and for testing, each ascending.

    Raises:
        InputError: If there are not more queries than ``count``, none would be left to test on, or an argument makes
            no sense.
        ImageError: If a picture cannot be read.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InputError(f"count must be a whole number of at least 1; got {count!r}.")
    check_seed(seed)
    if count >= len(queries):
        raise InputError(f"There are {len(queries)} queries; {count} to train on leave none to test on. Ask for fewer.")
    # A picture in memory can be in many queries: it is looked at once.
    pictures = {id(image): image for query in queries for image in query.images}
    known = {key: picture_identity(image) for key, image in pictures.items()}
    images = [frozenset(known[id(image)] for image in query.images) for query in queries]
    order = random_order(len(queries), f"queries {seed}")
    seen = frozenset().union(*(images[place] for place in order[:count].tolist()))
    rest = [place for place in order[count:].tolist() if images[place].isdisjoint(seen)]
    if not rest:
        raise InputError(
            f"Each of the other {len(queries) - count} queries shares an image with the {count} to train on, and none "
            "is left to test on. Ask for fewer, or give queries of more images."
        )
    return _ascending([order[:count]]), np.sort(np.array(rest, dtype=np.int64))


def check_seed(seed: int) -> None:
    """Refuse what is no seed.

    Raises:
        InputError: If it is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"A seed must be a whole number of at least 0; got {seed!r}.")


def _shuffled(labels: Labels, *, seed: int, purpose: str) -> dict[int, NDArray[np.int64]]:
    """The positions of each class in random order, classes ascending."""
    check_seed(seed)
    array = np.asarray(labels)
    if array.size == 0:
        raise InputError("There are no labels to split.")
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"Labels must be whole numbers in one row; got {array.dtype} of shape {array.shape}.")
    order = np.argsort(array, kind="stable")
    values, starts = np.unique(array[order], return_index=True)
    groups = zip(values.tolist(), np.split(order, starts[1:]), strict=True)
    return {label: members[random_order(len(members), f"{purpose} {seed} {label}")] for label, members in groups}


def random_order(count: int, address: str) -> NDArray[np.int64]:
    """The random order of an address. The raw words are sorted, for numpy may change how its generators shuffle."""
    return np.argsort(np.random.Philox(key=key_of(f"{STREAM} {address}".encode())).random_raw(count), kind="stable")


def _rounded(number: float) -> int:
    # 0.07 * 100 is 7.000000000000001, and 0.35 * 10 is 3.5: what rounding errors left must not decide.
    return math.floor(round(number, 9) + 0.5)


def _ascending(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.sort(np.concatenate(parts))
