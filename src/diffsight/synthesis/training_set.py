"""Images and what a network is to answer to each: generated ones with their description, or real ones."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from diffsight.data.readers import image_digest
from diffsight.data.sources import SCHEMES, Source, open_source
from diffsight.errors import InputError, SourceError
from diffsight.store.disk import digest
from diffsight.synthesis.dataset import SyntheticSet, read_synthetic
from diffsight.synthesis.folder import CARD, IMAGES, MANIFEST, RUN


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainingSet:
    """Images, and what a network is to answer to each.

    Attributes:
        source: The images.
        class_names: The classes.
        targets: The class of each image, or the probability of each class for each image.
        synthetic: Whether all images were generated.
        stated: Whether that is the word of the user for some of them, who has no description of theirs.
        drawn_by: The models that generated them, as far as the sets say so.

    Raises:
        InputError: If there is no image, fewer than two classes, or the targets do not fit.
    """

    source: Source
    class_names: tuple[str, ...]
    targets: Int[np.ndarray, " n"] | Float[np.ndarray, "n k"]
    synthetic: bool = False
    stated: bool = False
    drawn_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        name, classes = self.source.name, len(self.class_names)
        if repeated := [label for label in self.class_names if self.class_names.count(label) > 1]:
            raise InputError(f"{name}: two classes have the name {repeated[0]!r}.")
        if classes < 2:
            found = f" ({self.class_names[0]!r})" if classes else ""
            raise InputError(f"{name} has {classes} classes{found}; a classifier needs at least 2.")
        if not len(self.source):
            raise InputError(f"{name} has no image.")
        if len(self.targets) != len(self.source):
            raise InputError(f"{name}: {len(self.source)} images but {len(self.targets)} targets; give one for each.")
        if not self.soft:
            if self.targets.min() < 0 or self.targets.max() >= classes:
                raise InputError(f"{name}: labels are from 0 to {classes - 1}; got {self.targets.max()}.")
        elif self.targets.shape[1] != classes:
            raise InputError(f"{name}: {self.targets.shape[1]} probabilities of each image, for {classes} classes.")
        elif not ((self.targets >= 0).all() and np.allclose(self.targets.sum(axis=1), 1, atol=1e-3)):
            raise InputError(f"{name}: the probabilities of an image must be at least 0 and sum to 1.")

    @property
    def soft(self) -> bool:
        """Whether the targets are probabilities."""
        return self.targets.ndim == 2

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The class of each image, or the most probable one."""
        return self.targets.argmax(axis=1) if self.soft else self.targets

    def probabilities(self) -> Float[np.ndarray, "n k"]:
        """The targets as a row for each image, in single precision."""
        return (self.targets if self.soft else np.eye(len(self.class_names))[self.targets]).astype(np.float32)

    def with_targets(self, targets: Int[np.ndarray, " n"] | Float[np.ndarray, "n k"]) -> "TrainingSet":
        """The same images with other answers, such as the probabilities that a diffusion classifier gives them."""
        return replace(self, targets=targets)

    def fingerprint(self) -> dict[str, Any]:
        """What training depends on; reads all that is stored of the images."""
        return {
            "name": self.source.name,
            "synthetic": self.synthetic,
            "images": len(self.source),
            "ids": self.source.fingerprint(),
            "content": self.source.content(),
            "targets": digest(np.ascontiguousarray(self.targets).tobytes()),
            "soft": self.soft,
            **({"stated": True} if self.stated else {}),
            **({"drawn_by": list(self.drawn_by)} if self.drawn_by else {}),
        }


def open_training_set(
    data: str | Path,
    *,
    root: str | Path | None = None,
    split: str = "train",
    class_names: Sequence[str] | None = None,
    synthetic: bool = False,
) -> TrainingSet:
    """Open labelled images to learn from.

    Args:
        data: What ``diffsight synthesize`` wrote; or folders of classes (maybe in ``images``) that another program
            generated, beside a ``dataset.json`` with ``{"synthetic": true, "classes": [NAME, …]}``; or real images: a
            folder with one sub-folder for each class, or what `open_source` takes.
        root: Where data sets lie, if not in a standard place.
        split: Of a data set that has parts.
        class_names: What to call the classes of real images, in the order of their labels; by default as they are.
        synthetic: Whether a plain folder, which does not say what it holds, holds generated images, as those that
            Shipard et al. give away. That is then the user's word, and is said of what learns from it.

    Raises:
        SourceError: If the images are not there, or ``dataset.json`` does not fit them.
        InputError: If they have no labels, are of fewer than two classes, or are said to be synthetic and are not.
    """
    text = str(data)
    scheme = text.partition(":")[0]
    folder = Path(text.removeprefix("folder:")).expanduser()
    if ":" in text and scheme in SCHEMES and scheme != "folder":
        source = open_source(text, root=root, split=split)
        if synthetic:
            raise InputError(f"{source.name} is a known set of real images, and cannot be said to be synthetic.")
    else:
        folder = Path(root).expanduser() / folder if root is not None else folder
        if (folder / CARD).exists() or (folder / RUN / "manifest.json").exists():  # finished, or not yet
            made_here = (folder / MANIFEST).exists() or not (folder / CARD).exists()
            found = of_synthetic(read_synthetic(folder)) if made_here else _open_described(folder)
            if synthetic and not found.synthetic:
                raise InputError(f"{folder / CARD} does not say that the images are synthetic. Correct or remove it.")
            return found
        source = open_source(f"folder:{folder}")
    names = tuple(class_names or source.class_names or ())
    if source.labels is None:
        raise InputError(f"The images of {source.name} have no labels: put them into one sub-folder for each class.")
    return TrainingSet(
        source=source, class_names=names, targets=np.array(source.labels), synthetic=synthetic, stated=synthetic
    )


def of_synthetic(images: SyntheticSet) -> TrainingSet:
    """What `generate` or `read_synthetic` gives, to learn from."""
    return TrainingSet(
        source=images.source(),
        class_names=images.classes,
        targets=images.labels,
        synthetic=True,
        drawn_by=(str(images.card["model"]["name"]),),
    )


def join(sets: Sequence[TrainingSet]) -> TrainingSet:
    """Several sets as one, with the classes of the first; it counts as synthetic only if all of them are.

    Raises:
        InputError: If there is none, or their classes are not the same.
    """
    if not sets:
        raise InputError("There are no images to learn from. Give at least one set.")
    if len(sets) == 1:
        return sets[0]
    first = sets[0]
    places = [match_classes(first.class_names, each.class_names, of=each.source.name) for each in sets]

    def read(id: str) -> Image.Image:
        number, _, own = id.partition("/")
        return sets[int(number)].source.read(own)

    def digest_of(id: str) -> bytes:
        number, _, own = id.partition("/")
        source = sets[int(number)].source
        return source.digest(own) if source.digest is not None else image_digest(source.read, own)

    targets = [each.probabilities()[:, order] for each, order in zip(sets, places, strict=True)]
    soft = any(each.soft for each in sets)
    joined = np.concatenate(targets)
    return TrainingSet(
        source=Source(
            name=" + ".join(each.source.name for each in sets),
            ids=tuple(f"{number}/{id}" for number, each in enumerate(sets) for id in each.source.ids),
            read=read,
            digest=digest_of,
            class_names=first.class_names,
        ),
        class_names=first.class_names,
        targets=joined if soft else joined.argmax(axis=1),
        synthetic=all(each.synthetic for each in sets),
        stated=any(each.stated for each in sets),
        drawn_by=tuple(dict.fromkeys(name for each in sets for name in each.drawn_by)),
    )


def match_classes(asked: Sequence[str], known: Sequence[str], *, of: str) -> list[int]:
    """Where each of some classes is among others; spelling may differ in case and in what is no letter or digit.

    Args:
        asked: Class names.
        known: The same classes, maybe in another order.
        of: Whose the second are, for the error.

    Raises:
        InputError: If they are not the same classes.
    """
    if set(asked) == set(known):
        return [list(known).index(name) for name in asked]
    places = {plain_name(name): index for index, name in enumerate(known)}
    missing = [name for name in asked if plain_name(name) not in places]
    surplus = {plain_name(name) for name in known} - {plain_name(name) for name in asked}
    if missing or surplus or not len(asked) == len(known) == len(places):
        what = [f"no class {missing[0]!r}"] if missing else []
        what += [f"a class {known[places[min(surplus)]]!r} too many"] if surplus else []
        raise InputError(
            f"{of} has {' and '.join(what)}: {len(known)} classes ({', '.join(known[:4])}, …) for "
            f"{len(asked)} ({', '.join(asked[:4])}, …). Give data and networks of the same classes."
        )
    return [places[plain_name(name)] for name in asked]


def plain_name(name: str) -> str:
    """A class name without what file systems, data sets and prompts spell differently."""
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " "))) or name


def _open_described(folder: Path) -> TrainingSet:
    """Generated images of other programs: folders of classes beside a ``dataset.json`` that names them."""
    path = folder / CARD
    try:
        card = json.loads(path.read_bytes())
        synthetic, classes = card["synthetic"] is True, [_entry(entry) for entry in card["classes"]]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise SourceError(
            f"{path} is not the description of generated images ({error!r}). Restore it, or generate them again."
        ) from error
    images = folder / IMAGES
    source = open_source(f"folder:{images if images.is_dir() else folder}")
    if source.labels is None:
        raise SourceError(f"{folder} has no folders of classes, but {CARD} names {len(classes)}.")
    folders = list(dict.fromkeys(id.partition("/")[0] for id in source.ids))
    own = {plain_name(where): index for index, (_, where) in enumerate(classes)}
    if strangers := [name for name in folders if plain_name(name) not in own]:
        raise SourceError(f"{folder} has a folder {strangers[0]!r}, which is no class of its {CARD}. Remove it.")
    labels = np.array([own[plain_name(folders[label])] for label in source.labels])
    names = tuple(name for name, _ in classes)
    if empty := sorted(set(range(len(names))) - set(labels.tolist())):
        raise SourceError(f"{folder} has no image of {names[empty[0]]!r}. Generate the rest of them.")
    source = replace(
        source, name=f"synthetic:{folder.resolve().name}", labels=tuple(labels.tolist()), class_names=names
    )
    return TrainingSet(source=source, class_names=names, targets=labels, synthetic=synthetic)


def _entry(entry: Any) -> tuple[str, str]:  # noqa: ANN401
    """Name and folder of a class."""
    if isinstance(entry, str):
        return entry, entry
    return str(entry["name"]), str(entry.get("folder", entry["name"]))
