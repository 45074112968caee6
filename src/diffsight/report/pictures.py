"""Images of a run, opened again for its galleries: small copies, as ``data:`` URIs."""

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffsight.data.corruptions import split_change
from diffsight.data.sources import Source, open_source
from diffsight.errors import DiffsightError, ImageError
from diffsight.evaluation.task import load_task
from diffsight.report.reading import Reading

LARGEST = 96
_SHARP = 48  # An image that is smaller than this is kept as it is, without loss.
_RENDERING = re.compile(r" \(rendering [0-9]+\)")  # In the names of sources whose images are made or changed here.


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
            # All images, the first ones (--limit), or those that a comparison tested on.
            asked = {failure.get("id") for failure in reading.failures}
            asked |= {*reading.recognition.ids} if reading.recognition is not None else set()
            some = [place for place, id in enumerate(source.ids) if id in asked]
            parts = [source] if len(source) == count else [source.select(range(count)), source.select(some)]
            if recorded.get("ids") in [part.fingerprint() for part in parts]:
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
    clean, change = split_change(_RENDERING.sub("", name))
    end = "" if change is None else f"@{change.spec}"
    scheme, _, rest = clean.partition(":")
    root = option(reading, "--root")
    if scheme != "folder":
        known, _, split = rest.rpartition("/") if "/" in rest else (rest, "", "test")
        where = data if data is not None else root
        return [lambda: open_source(f"{scheme}:{known}{end}", root=where, split=split)]
    if data is not None:
        return [lambda: open_source(f"folder:{data.resolve()}{end}")]
    task = option(reading, "--task")
    return [] if task is None else [lambda: _folder_of(task, root, end)]


def _folder_of(task: str, root: str | None, end: str) -> Source | None:
    """The images of a task's folder with what the run did to them, which its command need not say."""
    source, _ = split_change(load_task(task).source)
    return open_source(f"{source}{end}", root=root) if source.startswith("folder:") else None
