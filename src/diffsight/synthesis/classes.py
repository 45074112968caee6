"""The classes of a synthetic set: what they are called, and in which folder the images of each go.

A folder gets the class's name with underscores for spaces, so that ``folder:`` gives the names back. A name that is no
safe name of a folder everywhere is refused, and is written ``FOLDER=NAME``: ``t-shirt=T-shirt/top``.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from diffsight.errors import PromptError

# What Windows reserves, so that a set can be copied there.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_LONGEST = 120


@dataclass(frozen=True, slots=True)
class Classes:
    """Names of classes, and of their folders; a label is an index into both.

    Attributes:
        names: What prompts say.
        folders: Where images go.

    Raises:
        PromptError: If there are fewer than two, names are empty or alike, or a folder is shared or no safe name.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.folders):
            raise PromptError(f"There are {len(self.names)} class names and {len(self.folders)} folders.")
        if len(self.names) < 2:
            found = f"only {self.names[0]!r}" if self.names else "none"
            raise PromptError(f"A set to train a classifier on needs at least two classes; got {found}.")
        for name, folder in zip(self.names, self.folders, strict=True):
            if not name.strip():
                raise PromptError("The name of a class is empty.")
            if reason := _unsafe(folder):
                raise PromptError(
                    f"The class {name!r} cannot have the folder {folder!r}: {reason}. Name another one before it: "
                    f"FOLDER={name}"
                )
        _refuse_alike("Class names", self.names, self.names)
        _refuse_alike("Folders of classes", self.folders, self.names)

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Self:
        """Take names as users write them: ``NAME`` or ``FOLDER=NAME``; white space is made single.

        Raises:
            PromptError: As the class itself.
        """
        if isinstance(texts, str):
            raise PromptError(f"Class names must be a list; got the text {texts!r}.")
        names, folders = [], []
        for text in texts:
            folder, equals, name = text.partition("=")
            name = " ".join((name if equals else text).split())
            names.append(name)
            folders.append(folder.strip() if equals else name.replace(" ", "_"))
        return cls(tuple(names), tuple(folders))

    @classmethod
    def of_task(cls, names: Sequence[str]) -> Self:
        """Take the names of a known data set as they are; what no folder can be called becomes a hyphen.

        Raises:
            PromptError: As the class itself.
        """
        return cls(tuple(names), tuple(_FORBIDDEN.sub("-", name).replace(" ", "_") for name in names))


def _unsafe(folder: str) -> str | None:
    """Why no folder should have this name, or None."""
    if not folder.strip():
        return "it is empty"
    if found := _FORBIDDEN.search(folder):
        sort = "a path separator" if found[0] in "/\\" else "a character that file systems forbid"
        return f"{found[0]!r} is {sort}"
    if folder.startswith((".", "__MACOSX")) or folder != folder.strip() or folder.endswith("."):
        return "such names are hidden, or change on other systems"
    if _RESERVED.fullmatch(folder):
        return "Windows reserves that name"
    try:
        length = len(folder.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return f"it has {length} bytes, over {_LONGEST}" if length > _LONGEST else None


def _refuse_alike(what: str, texts: Sequence[str], names: Sequence[str]) -> None:
    """Refuse what text encoders and file systems do not tell apart: case, spaces and underscores, composed letters."""
    seen: dict[str, str] = {}
    for text, name in zip(texts, names, strict=True):
        key = " ".join(unicodedata.normalize("NFKC", text).casefold().replace("_", " ").split())
        if key in seen:
            raise PromptError(
                f"{what} must differ by more than case, spaces and underscores: {seen[key]!r} = {name!r}."
            )
        seen[key] = name
