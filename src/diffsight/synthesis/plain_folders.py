"""Image sets of other people: folders of classes without a description, and names that a task spells in its own way.

Nobody can see of a picture that it was generated, and a plain folder does not say it. So it counts as real, unless the
user says otherwise; then that it is the user's word stands in the card of the network and beside every number.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffsight.data.torchvision_sets import TORCHVISION
from diffsight.errors import InputError, nearest
from diffsight.synthesis.training_set import TrainingSet, plain_name

log = logging.getLogger(__name__)


def folders_of(source: str) -> tuple[str, ...]:
    """What the class folders of a known data set are called, in the order of its labels; none if as the classes.

    Args:
        source: As `open_source` takes it.
    """
    scheme, _, name = source.partition(":")
    if scheme not in ("torchvision", "spatial"):
        return ()
    known = TORCHVISION.get(name.partition("-")[0] if scheme == "spatial" else name)
    return () if known is None else known.folders or ()


def as_classes(found: TrainingSet, names: Sequence[str], *, folders: Sequence[str] = (), of: str) -> TrainingSet:
    """Give the classes of a set the names and the order of others, such as those of a task.

    Spelling may differ in case, spaces and what is no letter or digit, where that leaves no doubt: ``AnnualCrop`` is
    ``annual crop``. Two folders of one class are joined. How many images each class has is logged; those that have none
    can come from another set.

    Args:
        found: Images of some of the classes.
        names: The classes.
        folders: Other names of the same classes, such as those of the folders of a data set.
        of: Whose classes they are, for errors.

    Raises:
        InputError: If a class of the set is none of them.
    """
    places = [_place(name, [*enumerate(names), *enumerate(folders)]) for name in found.class_names]
    if strangers := [name for name, place in zip(found.class_names, places, strict=True) if place is None]:
        deeper = " If the folders of the classes lie deeper, name the folder around them." if len(places) == 1 else ""
        raise InputError(
            f"{found.source.name} has {strangers[0]!r}, which is no class of {of}. "
            f"{nearest(strangers[0], [*names, *folders])} Rename the folder, or take it away.{deeper}"
        )
    order = np.array(places)
    targets = (
        found.probabilities() @ np.eye(len(names), dtype=np.float32)[order] if found.soft else order[found.targets]
    )
    counts = np.bincount(targets.argmax(axis=1) if found.soft else targets, minlength=len(names))
    _report(found.source.name, counts, names, of)
    labels = None if found.soft else tuple(targets.tolist())
    source = replace(found.source, labels=labels, class_names=tuple(names))
    return replace(found, source=source, class_names=tuple(names), targets=targets)


def _place(name: str, known: Sequence[tuple[int, str]]) -> int | None:
    """The label whose name is spelt so, or more loosely so; none if there is more than one."""
    for spelling in (str, plain_name, _joined):
        labels = {label for label, other in known if spelling(other) == spelling(name)}
        if labels:
            return labels.pop() if len(labels) == 1 else None
    return None


def _joined(name: str) -> str:
    return re.sub(r"\W", "", plain_name(name))


def _report(source: str, counts: np.ndarray, names: Sequence[str], of: str) -> None:
    there = counts[counts > 0]
    log.info(
        "%s: %s images of %d of the %d classes of %s, %s to %s of each",
        source, f"{counts.sum():,}", len(there), len(names), of, f"{there.min():,}", f"{there.max():,}",
    )  # fmt: skip
    if len(there) < len(names):
        lacking = [name for name, count in zip(names, counts, strict=True) if not count]
        log.warning("%s has no image of %s", source, ", ".join(map(repr, lacking)))
