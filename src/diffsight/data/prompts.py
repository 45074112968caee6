"""Class names and what is said of them: templates, prompt files in Li et al.'s format, and strict checks.

Whether a prompt fits into a model's text encoder is for the backbone to check, which knows the limit.
"""

import csv
import hashlib
import io
import json
import re
import string
import unicodedata
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from diffsight.errors import PromptError, nearest

COLUMNS = ("prompt", "classname", "classidx")

# By preset, then data set. "default" answers for every other data set; the papers' own presets have none, for what a
# paper did not do cannot be reproduced. Wrong articles ("a airplane") are the papers', and stay.
TEMPLATES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "clip": {"default": ("a photo of a {}.",)},
    "li2023": {
        "aircraft": ("a photo of a {}, a type of aircraft.",),
        "cifar10": ("a blurry photo of a {}.",),
        "cifar100": ("a blurry photo of a {}.",),
        "flowers102": ("a photo of a {}, a type of flower.",),
        "food101": ("a photo of {}, a type of food.",),
        "imagenet": ("a photo of a {}.",),
        "mnist": ("a photo of the number: '{}'.",),
        "objectnet": ("a photo of a {}.",),
        "pets": ("a photo of a {}, a type of pet.",),  # Of names with " cat" or " dog" added: see `li2023_pet_names`.
        "stl10": ("a photo of a {}.",),
    },
    "clark2023": {  # The first of CLIP's templates for each data set.
        "caltech101": ("a photo of a {}.",),
        "camelyon": ("this is a photo of {}",),
        "cars": ("a photo of a {}.",),
        "cifar10": ("a photo of a {}.",),
        "cifar100": ("a photo of a {}.",),
        "dtd": ("a photo of a {} texture.",),
        "eurosat": ("a centered satellite photo of {}.",),
        "food101": ("a photo of {}, a type of food.",),
        "imagenet": ("A bad photo of a {}.",),
        "mnist": ('a photo of the number: "{}".',),
        "pets": ("a photo of a {}, a type of pet.",),
        "stl10": ("a photo of a {}.",),
    },
}

_CATS = frozenset(
    {"abyssinian", "bengal", "birman", "bombay", "british shorthair", "egyptian mau"}
    | {"maine coon", "persian", "ragdoll", "russian blue", "siamese", "sphynx"}
)


def templates_for(preset: str, dataset: str = "default") -> tuple[str, ...]:
    """Give the templates of a preset for a data set.

    Raises:
        PromptError: If there is no such preset, or a paper's preset says nothing of the data set.
    """
    if preset not in TEMPLATES:
        raise PromptError(f"Unknown template preset {preset!r}. {nearest(preset, TEMPLATES)}")
    known = TEMPLATES[preset]
    if dataset not in known and "default" not in known:
        raise PromptError(f"The preset {preset!r} has no template for {dataset!r}. {nearest(dataset, known)}")
    return known.get(dataset, known.get("default", ()))


def li2023_pet_names(breeds: Sequence[str]) -> tuple[str, ...]:
    """Say of each breed whether it is a cat or a dog, as Li et al.'s prompts do (for all but the American Bulldog)."""
    kinds = ("" if b.casefold() == "american bulldog" else " cat" if b.casefold() in _CATS else " dog" for b in breeds)
    return tuple(breed + kind for breed, kind in zip(breeds, kinds, strict=True))


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The classes that compete, and one or more prompts for each.

    Names and prompts may repeat in a set that was made by hand or with ``allow_duplicates``: see `duplicates`.

    Attributes:
        class_names: Names of the classes; a label is an index into them.
        prompts: What stands for them.
        owner: The class index of each prompt.

    Raises:
        PromptError: If there are fewer than two classes, an empty name or prompt, a class without a prompt, or a
            prompt whose class does not exist.
    """

    class_names: tuple[str, ...]
    prompts: tuple[str, ...] = field(repr=False)
    owner: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        count = len(self.class_names)
        if count < 2:
            found = f"only {self.class_names[0]!r}" if count else "none"
            raise PromptError(f"Classification needs at least two classes; got {found}.")
        for kind, texts in (("name of class", self.class_names), ("prompt", self.prompts)):
            for index, text in enumerate(texts):
                if not text.strip():
                    raise PromptError(f"The {kind} {index} is empty.")
        if len(self.prompts) != len(self.owner):
            raise PromptError(f"There are {len(self.prompts)} prompts but {len(self.owner)} owners.")
        strange = [index for index in self.owner if not 0 <= index < count]
        if strange:
            raise PromptError(f"A prompt belongs to the class {strange[0]}, and there are {count} classes.")
        owners = set(self.owner)
        without = [name for index, name in enumerate(self.class_names) if index not in owners]
        if without:
            raise PromptError(f"Classes without a prompt: {_list(without)}.")

    @classmethod
    def from_templates(cls, class_names: Iterable[str], templates: str | Iterable[str]) -> Self:
        """Put each class name into each template; the prompts of a class are neighbours.

        Args:
            class_names: At least two; white space around and inside them is made single.
            templates: Each with exactly one ``{}`` or ``{c}``; ``{{`` and ``}}`` are braces.

        Raises:
            PromptError: If names or templates are missing, empty, equal but for case and spaces, or without place
                for the name.
        """
        if isinstance(class_names, str):
            raise PromptError(f"Class names must be a list; got the text {class_names!r}.")
        templates = (templates,) if isinstance(templates, str) else tuple(templates)
        if not templates:
            raise PromptError("There is no template. The usual one is 'a photo of a {}.'.")
        for template in templates:
            _check_template(template)
        _refuse_repeated("Templates", templates)
        class_names = tuple(class_names)
        for index, name in enumerate(class_names):
            if not isinstance(name, str):
                raise PromptError(f"The name of class {index} must be text; got {name!r}.")
        names = tuple(" ".join(name.split()) for name in class_names)
        _refuse_repeated("Class names", names)
        prompts = cls(
            class_names=names,
            prompts=tuple(template.format(name, c=name) for name in names for template in templates),
            owner=tuple(index for index in range(len(names)) for _ in templates),
        )
        _refuse_repeated("Prompts", prompts.prompts)
        return prompts

    @classmethod
    def from_csv(cls, path: str | Path, *, allow_duplicates: bool = False) -> Self:
        """Read a prompt file as Li et al. have them: columns prompt, classname, classidx; one or more rows a class.

        Prompts are taken as they stand. Columns may be in any order, and others are ignored.

        Args:
            path: A UTF-8 file, with or without byte order mark.
            allow_duplicates: Accept equal names and prompts, as ImageNet's file has them. Classes with equal prompts
                always tie.

        Raises:
            PromptError: If the file cannot be read, or something in it is wrong, with the line.
        """
        names: dict[int, str] = {}
        prompts: list[str] = []
        owner: list[int] = []
        for line, prompt, name, index in _rows(Path(path)):
            if names.setdefault(index, name) != name:
                raise PromptError(f"{path}, line {line}: class {index} is {name!r} here and {names[index]!r} before.")
            prompts.append(prompt)
            owner.append(index)
        missing = [index for index in range(len(names)) if index not in names]
        if missing:
            raise PromptError(
                f"{path}: classidx must count from 0 without gaps; {_list(missing)} is missing, {max(names)} is there."
            )
        class_names = tuple(names[index] for index in range(len(names)))
        try:
            if not allow_duplicates:
                _refuse_repeated("Class names", class_names)
                _refuse_repeated("Prompts", prompts)
            return cls(class_names, tuple(prompts), tuple(owner))
        except PromptError as error:
            raise PromptError(f"{path}: {error}") from error

    def to_csv(self, path: str | Path) -> None:
        """Write what `from_csv` reads."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            rows = zip(self.prompts, self.owner, strict=True)
            writer.writerows((prompt, self.class_names[index], index) for prompt, index in rows)

    def duplicates(self) -> tuple[tuple[int, ...], ...]:
        """Groups of classes that share a prompt, and so tie whatever the image; empty in a sound set."""
        groups = _repeated(self.prompts)
        shared = ({self.owner[index] for index in group} for group in groups)
        return tuple(dict.fromkeys(tuple(sorted(classes)) for classes in shared if len(classes) > 1))

    def fingerprint(self) -> str:
        """A hash of names, prompts and owners in their order."""
        content = json.dumps([self.class_names, self.prompts, self.owner])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def _rows(path: Path) -> Iterable[tuple[int, str, str, int]]:
    """Read and check the rows of a prompt file: (line, prompt, class name, class index) each."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise PromptError(f"The prompt file {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise PromptError(f"{path} is not UTF-8 (byte {error.start}); save it as CSV in UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        found = reader.fieldnames or ()
        missing = [column for column in COLUMNS if column not in found]
        if missing:
            raise PromptError(f"{path} has no column {_list(missing)}; its first line is {','.join(found)!r}.")
        rows = 0
        for row in reader:
            rows += 1
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise PromptError(f"{where}: not {len(found)} fields. Put a prompt that has a comma into quotes.")
            prompt, name, index = (row[column] for column in COLUMNS)
            if not prompt.strip() or not name.strip():
                raise PromptError(f"{where}: the {'class name' if prompt.strip() else 'prompt'} is empty.")
            if not re.fullmatch(r"\s*[0-9]{1,9}\s*", index):
                raise PromptError(f"{where}: classidx must be a whole number from 0; got {index!r}.")
            yield reader.line_num, prompt, " ".join(name.split()), int(index)
    except csv.Error as error:
        raise PromptError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    if not rows:
        raise PromptError(f"{path} has no prompts.")


def _check_template(template: str) -> None:
    if not template.strip():
        raise PromptError("A template is empty. The usual one is 'a photo of a {}.'.")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError(f"The template {template!r} has a stray brace; write {{{{ or }}}} for a brace.") from error
    places = [(name, spec, conversion) for _, name, spec, conversion in parts if name is not None]
    if not places:
        raise PromptError(f"The template {template!r} has no place for the class name; write {{}} or {{c}} there.")
    if len(places) > 1 or places[0] not in (("", "", None), ("c", "", None)):
        raise PromptError(f"The template {template!r} must have one {{}} or {{c}}, and no other placeholder.")


def prompt_key(text: str) -> str:
    """What text encoders do not tell apart: CLIP's folds case and white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _repeated(texts: Sequence[str]) -> list[list[int]]:
    positions: defaultdict[Hashable, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        positions[prompt_key(text)].append(index)
    return [group for group in positions.values() if len(group) > 1]


def _refuse_repeated(kind: str, texts: Sequence[str]) -> None:
    groups = _repeated(texts)
    if groups:
        shown = "; ".join(" = ".join(repr(texts[index]) for index in group) for group in groups[:5])
        raise PromptError(f"{kind} must differ by more than case and spaces: {shown}{'; …' if groups[5:] else ''}.")


def _list(items: Sequence[object]) -> str:
    return ", ".join(map(repr, items[:5])) + (", …" if len(items) > 5 else "")
