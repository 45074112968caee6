"""PatchCamelyon, which is Clark & Jaini's Camelyon: patches of lymph nodes in two HDF5 files for each split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffsight.errors import SourceError

PCAM_NAMES = ("lymph node", "lymph node containing metastatic tumor tissue")  # CLIP's
_FILES = {"test": "test", "train": "train", "val": "valid"}


@dataclass(frozen=True, slots=True)
class Patches:
    """The patches of a file as a sequence of arrays, each read when it is asked for.

    Attributes:
        path: The file.
        count: How many there are.
    """

    path: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        with _h5py().File(self.path, "r") as file:
            return np.asarray(file["x"][index])


def read_pcam(place: Path, split: str) -> tuple[Patches, NDArray[np.int64]]:
    """Open a split: its patches, and a label for each.

    Args:
        place: The folder of the files ``camelyonpatch_level_2_split_{split}_{x,y}.h5``.
        split: ``test``, ``train`` or ``val``.

    Raises:
        SourceError: If h5py is not installed, or the files are missing or damaged.
    """
    h5py = _h5py()
    images, labels = (place / f"camelyonpatch_level_2_split_{_FILES[split]}_{part}.h5" for part in "xy")
    try:
        with h5py.File(images, "r") as file:
            shape, kind = file["x"].shape, file["x"].dtype
        with h5py.File(labels, "r") as file:
            if file["y"].size > 2**24:
                raise ValueError(f"{file['y'].size} labels")
            classes = np.asarray(file["y"]).reshape(-1).astype(np.int64)
    except (OSError, KeyError, AttributeError, ValueError, TypeError) as error:
        raise SourceError(
            f"{images} or {labels.name} is missing or damaged: {error}. Get the .h5.gz files of "
            f"https://github.com/basveeling/pcam again and unpack them to {place}."
        ) from error
    if len(shape) != 4 or shape[3] != 3 or kind != np.uint8 or len(classes) != shape[0]:
        raise SourceError(
            f"{images} holds {kind} of the shape {shape} and {labels.name} {len(classes)} labels; they must be bytes "
            "(images, height, width, 3) and a label for each. Get the files again."
        )
    return Patches(images, int(shape[0])), classes


def _h5py() -> Any:  # noqa: ANN401
    try:
        import h5py  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SourceError(
            "PatchCamelyon lies in HDF5 files, which h5py reads: pip install 'diffsight[camelyon]', or h5py alone."
        ) from error
    return h5py
