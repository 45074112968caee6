"""Images of a run, opened again for its galleries: small copies, as ``data:`` URIs."""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffsight.data.sources import Source, open_source
from diffsight.errors import DiffsightError, ImageError
from diffsight.evaluation.task import load_task
from diffsight.report.reading import Reading

LARGEST = 96
_SHARP = 48  # An image that is smaller than this is kept as it is, without loss.


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Where a gallery's images come from.

    Attributes:
        read: Gives the image of an id; None where they are not there.
        reason: Why they are not.
    """

    read: Callable[[str], Image.Image] | None
    reason: str = ""

    def uri(self, id: str) -> str | None:
        """A small copy of an image, or None where it is not there any more or cannot be read."""
        if self.read is None:
            return None
        try:
            return data_uri(self.read(id))
        except (ImageError, OSError, KeyError):
            return None


def data_uri(image: Image.Image) -> str:
    """An image of at most 96 pixels as a ``data:`` URI."""
    image = image.convert("RGB")
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= _SHARP:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(buffer, "JPEG", quality=85, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def open_images(reading: Reading, data: Path | None) -> Images:
    """Find the images that a run was made of, by what its manifest and its command say.

    They are only used if they have the ids and labels of the run.

    Args:
        reading: The run.
        data: The folder that was evaluated, or where data sets lie, if not where the run's command says.
    """
    recorded = reading.fields.get("data", {})
    name, count = str(recorded.get("source", "")), int(recorded.get("images", 0))
    problems = []
    for attempt in _attempts(name, reading, data):
        try:
            source = attempt()
            if source is None or len(source) < count:
                continue
            source = source if len(source) == count else source.select(range(count))
            if source.fingerprint() == recorded.get("ids"):
                return Images(source.read)
            problems.append("The images that are there now have other ids or labels than those of the run.")
        except (DiffsightError, OSError) as error:
            problems.append(str(error))
    reason = problems[0] if problems else f"The data {name!r} were not found again."
    return Images(None, f"{reason} Give their place with --data to see the images here.")


def option(reading: Reading, name: str) -> str | None:
    """What the command that began the run gave for an option, or None."""
    command = [str(word) for word in reading.run.sessions[0].get("command", ())]
    for place, word in enumerate(command):
        if word == name and place + 1 < len(command):
            return command[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _attempts(name: str, reading: Reading, data: Path | None) -> list[Callable[[], Source | None]]:
    scheme, _, rest = name.partition(":")
    root = option(reading, "--root")
    if scheme != "folder":
        known, _, split = rest.rpartition("/")
        roots = [data] if data is not None else [Path(root) if root else None]
        return [lambda root=root: open_source(f"{scheme}:{known}", root=root, split=split) for root in roots]
    if data is not None:
        return [lambda: open_source(f"folder:{data.resolve()}")]
    task = option(reading, "--task")
    return [] if task is None else [lambda: _folder_of(task, root)]


def _folder_of(task: str, root: str | None) -> Source | None:
    chosen = load_task(task)
    return open_source(chosen.source, root=root) if chosen.source.startswith("folder:") else None
