"""ImageNet's 1,000 classes, and which of them the sets have that were made to test it on.

`imagenet.csv` has them in the order of their labels, which is that of the synsets: the synset, the name, and whether
ImageNet-A and ImageNet-R have the class. Synsets and both subsets are timm's (``imagenet_synsets.txt``,
``imagenet_a_synsets.txt``, ``imagenet_r_synsets.txt``; Apache-2.0). The names are CLIP's, which Li et al. ask with, as
open_clip 3.3.0 has them (``IMAGENET_CLASSNAMES``; MIT), but for two: CLIP calls class 744 ``missile`` like 657, and 836
``sunglasses`` like 837, so that the two of each pair tie whatever the image. They are ``projectile`` and ``sunglass``
here, as in torchvision.

What ObjectNet shares with ImageNet is read from the mapping files that come with the images.
"""

import csv
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from diffsight.errors import SourceError, nearest

_LARGEST = 2**22  # bytes of a mapping file; ObjectNet's have at most tens of thousands


class ImageNetClass(NamedTuple):
    """A class of ImageNet.

    Attributes:
        synset: Its number in WordNet, which names its folder.
        name: What it is called in prompts.
        a: Whether ImageNet-A has it.
        r: Whether ImageNet-R has it.
    """

    synset: str
    name: str
    a: bool
    r: bool


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All classes, in the order of their labels."""
    text = files("diffsight.data").joinpath("imagenet.csv").read_text("utf-8")
    rows = csv.DictReader(text.splitlines())
    return tuple(ImageNetClass(row["synset"], row["name"], row["a"] == "1", row["r"] == "1") for row in rows)


def subset(of: str | None = None) -> tuple[int, ...]:
    """Labels in ImageNet of the classes of ImageNet-A (``"a"``) or ImageNet-R (``"r"``); without a name, all."""
    return tuple(label for label, known in enumerate(imagenet_classes()) if of is None or getattr(known, of))


def shared_objects(mappings: Path) -> dict[str, str]:
    """ObjectNet's classes that ImageNet has as well: from the name of a folder to what it holds.

    Args:
        mappings: The folder of that name in ObjectNet.

    Raises:
        SourceError: If a mapping file is missing or damaged.
    """
    names = _texts(mappings / "folder_to_objectnet_label.json")
    shared = _texts(mappings / "objectnet_to_imagenet_1k.json")
    folders = {name: folder for folder, name in names.items()}
    if strangers := [name for name in shared if name not in folders]:
        raise SourceError(
            f"{mappings}: objectnet_to_imagenet_1k.json has {strangers[0]!r} and folder_to_objectnet_label.json has no "
            f"folder of it. {nearest(strangers[0], folders)} Unpack both files again."
        )
    return {folders[name]: name for name in sorted(shared)}


def object_folders(mappings: Path) -> frozenset[str]:
    """The names of all of ObjectNet's folders; raises SourceError as `shared_objects`."""
    return frozenset(_texts(mappings / "folder_to_objectnet_label.json").keys())


def objects_as_labels(mappings: Path) -> tuple[tuple[int, ...], ...]:
    """ImageNet's labels of each class of `shared_objects`: one or several.

    Raises:
        SourceError: If a mapping file is missing or damaged.
    """
    shared = _texts(mappings / "objectnet_to_imagenet_1k.json")
    label_of = {number: int(label) for label, number in _json(mappings / "pytorch_to_imagenet_2012_id.json").items()}
    words = _read(mappings / "imagenet_to_label_2012_v2").splitlines()
    numbers = {line.strip(): number for number, line in enumerate(words)}

    def labels(name: str) -> Iterator[int]:
        for part in shared[name].split("; "):
            label = label_of.get(numbers.get(part, -1), -1)
            if not 0 <= label < len(imagenet_classes()):
                raise SourceError(
                    f"{mappings}: {name!r} is ImageNet's {part!r}, of which imagenet_to_label_2012_v2 and "
                    "pytorch_to_imagenet_2012_id.json do not say the label. Unpack the files again."
                )
            yield label

    return tuple(tuple(labels(name)) for name in shared_objects(mappings).values())


def _texts(path: Path) -> Mapping[str, str]:
    values = _json(path)
    if wrong := [key for key, value in values.items() if not isinstance(value, str)]:
        raise SourceError(f"{path}: {wrong[0]!r} must be a text; got {values[wrong[0]]!r}. Unpack the file again.")
    return values


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not JSON: {error}. Unpack the file again.") from error
    if not isinstance(values, dict) or not values:
        raise SourceError(f"{path} must be a mapping of names; got {str(values)[:40]!r}. Unpack the file again.")
    return values


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise SourceError(f"{path} has over {_LARGEST:,} bytes, too many for a mapping file.")
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise SourceError(
            f"{path} is missing: which classes ObjectNet shares with ImageNet is read from it. Unpack all of ObjectNet."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read: {error}.") from error
