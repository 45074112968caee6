"""Data sets whose classes are folders and known beforehand, as a table: ImageNet, its test sets, and others."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import scandir
from pathlib import Path

from diffsight.data import imagenet
from diffsight.errors import SourceError

_CALTECH, _SUN = 101, 397


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The classes of a set.

    Attributes:
        folders: The folder of each, in the order of the labels.
        names: What each is called in prompts.
        others: Folders that may lie there and are not looked into.
    """

    folders: tuple[str, ...]
    names: tuple[str, ...]
    others: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderSet:
    """How to open one of these data sets.

    Attributes:
        splits: For each split, where its class folders may lie in the root; the first is what errors ask for.
        classes: The classes of a copy, from the folder of its class folders.
        obtain: Where to get it, and how it must lie; for errors.
        border: Pixels at each edge that are no part of the image.
        fixed: Whether the classes are known without a copy.
        class_ids: ImageNet's labels of each class, from the same folder; None where it has no such labels.
    """

    splits: Mapping[str, tuple[str, ...]]
    classes: Callable[[Path], Classes]
    obtain: str
    border: int = 0
    fixed: bool = False
    class_ids: Callable[[Path], tuple[tuple[int, ...], ...]] | None = None


def _of_imagenet(which: str | None = None) -> Callable[[Path], Classes]:
    def classes(_: Path) -> Classes:
        chosen = [imagenet.imagenet_classes()[label] for label in imagenet.subset(which)]
        return Classes(folders=tuple(each.synset for each in chosen), names=tuple(each.name for each in chosen))

    return classes


def _numbered(_: Path) -> Classes:
    """ImageNet-V2's folders are called by the labels."""
    names = tuple(each.name for each in imagenet.imagenet_classes())
    return Classes(folders=tuple(map(str, range(len(names)))), names=names)


def _ids(which: str | None = None) -> Callable[[Path], tuple[tuple[int, ...], ...]]:
    return lambda _: tuple((label,) for label in imagenet.subset(which))


def _of_objectnet(folder: Path) -> Classes:
    mappings = folder.parent / "mappings"
    shared = imagenet.shared_objects(mappings)
    others = imagenet.object_folders(mappings).difference(shared)
    return Classes(folders=tuple(shared), names=tuple(shared.values()), others=others)


def _of_caltech(folder: Path) -> Classes:
    other = "BACKGROUND_Google"
    folders = sorted(e.name for e in scandir(folder) if e.is_dir() and e.name[0] not in "._" and e.name != other)
    if len(folders) != _CALTECH:
        raise SourceError(f"{folder} has {len(folders)} class folders and not {_CALTECH}. Unpack the archive again.")
    return Classes(folders=tuple(folders), names=_spaced(folders), others=frozenset({other}))


def _of_sun(folder: Path) -> Classes:
    path = folder / "ClassName.txt"
    try:
        lines = [line.strip().strip("/") for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"The list of the classes, {path}, cannot be read: {error}. Unpack the archive.") from error
    if len(lines) != _SUN or len(set(lines)) != _SUN or any({"", ".", ".."} & {*line.split("/")} for line in lines):
        raise SourceError(
            f"{path} must name {_SUN} folders, one a line; it has {len(lines)}. Unpack the archive again."
        )
    return Classes(folders=tuple(lines), names=_spaced(line.partition("/")[2].replace("/", " ") for line in lines))


def _spaced(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(" ".join(name.replace("_", " ").split()) for name in names)


_V2 = "imagenetv2-{split}-format-val"
CLASS_FOLDERS: Mapping[str, FolderSet] = {
    "imagenet": FolderSet(
        splits={"val": ("imagenet/val", "ILSVRC2012/val"), "train": ("imagenet/train", "ILSVRC2012/train")},
        classes=_of_imagenet(),
        fixed=True,
        class_ids=_ids(),
        obtain="sign in at https://image-net.org/download.php, which gives it to researchers, get "
        "ILSVRC2012_img_val.tar, and sort it into folders imagenet/val/n01440764, …, as "
        "torchvision.datasets.ImageNet('imagenet', 'val') does with ILSVRC2012_devkit_t12.tar.gz beside the archive.",
    ),
    "imagenet-v2": FolderSet(
        splits={
            split: (_V2.format(split=split), f"imagenet-v2/{_V2.format(split=split)}")
            for split in ("matched-frequency", "threshold0.7", "top-images")
        },
        classes=_numbered,
        fixed=True,
        class_ids=_ids(),
        obtain="unpack imagenetv2-matched-frequency.tar.gz of https://huggingface.co/datasets/vaishaal/ImageNetV2, "
        "which makes imagenetv2-matched-frequency-format-val/0, …, /999.",
    ),
    "imagenet-a": FolderSet(
        splits={"test": ("imagenet-a",)},
        classes=_of_imagenet("a"),
        fixed=True,
        class_ids=_ids("a"),
        obtain="unpack imagenet-a.tar of https://github.com/hendrycks/natural-adv-examples, which makes "
        "imagenet-a/n01498041, …",
    ),
    "imagenet-r": FolderSet(
        splits={"test": ("imagenet-r",)},
        classes=_of_imagenet("r"),
        fixed=True,
        class_ids=_ids("r"),
        obtain="unpack imagenet-r.tar of https://github.com/hendrycks/imagenet-r, which makes imagenet-r/n01443537, …",
    ),
    "imagenet-sketch": FolderSet(
        splits={"test": ("imagenet-sketch", "sketch")},
        classes=_of_imagenet(),
        fixed=True,
        class_ids=_ids(),
        obtain="unpack ImageNet-Sketch.zip of https://github.com/HaohanWang/ImageNet-Sketch, which makes "
        "sketch/n01440764, …",
    ),
    "objectnet": FolderSet(
        splits={"test": ("objectnet-1.0/images", "objectnet/images")},
        classes=_of_objectnet,
        class_ids=lambda folder: imagenet.objects_as_labels(folder.parent / "mappings"),
        border=2,
        obtain="agree to its conditions at https://objectnet.dev/download.html and unpack objectnet-1.0.zip, which "
        "makes objectnet-1.0/images and objectnet-1.0/mappings.",
    ),
    "caltech101": FolderSet(
        splits={"test": ("caltech101/101_ObjectCategories", "101_ObjectCategories")},
        classes=_of_caltech,
        obtain="unpack 101_ObjectCategories.tar.gz of https://data.caltech.edu/records/mzrjq-6wc02 to "
        "caltech101/101_ObjectCategories/accordion, …, where torchvision has it, too.",
    ),
    "sun397": FolderSet(
        splits={"test": ("SUN397",)},
        classes=_of_sun,
        obtain="unpack SUN397.tar.gz of https://vision.princeton.edu/projects/2010/SUN/, which makes "
        "SUN397/ClassName.txt and SUN397/a/abbey, …, where torchvision has it, too.",
    ),
}


def known_names(source: str) -> tuple[str, ...] | None:
    """The class names of a source of these sets, where they are known without a copy of it; else None."""
    scheme, _, name = source.partition("@")[0].partition(":")
    known = CLASS_FOLDERS.get(name) if scheme == "class-folders" else None
    return known.classes(Path()).names if known is not None and known.fixed else None
