"""The page: one HTML file without scripts and without anything from elsewhere."""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from diffsight.errors import InputError, RunError
from diffsight.report import describing, matches
from diffsight.report.blocks import Part
from diffsight.report.comparing import MOST, comparison_sections, differences, paired_differences, summary_of
from diffsight.report.numbers import plural
from diffsight.report.pictures import open_images
from diffsight.report.reading import Reading, read_run
from diffsight.report.recognition import recognition_sections
from diffsight.store.disk import make, put

LARGEST = 5_000_000  # bytes
SHOWN = 18
SUFFIXES = (".html", ".htm")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Report:
    """A page and what it says.

    Attributes:
        html: The page.
        runs: Each run in a few JSON values.
        differences: What keeps the runs from being compared; empty where nothing does.
        paired: Differences of pairs of runs on the images that both have.
    """

    html: str
    runs: list[dict[str, Any]]
    differences: list[str]
    paired: list[dict[str, Any]]


def make_report(
    runs: Sequence[Path | str], *, data: Path | None = None, shown: int = SHOWN, title: str | None = None
) -> Report:
    """Make the page of one run, or of several side by side.

    Args:
        runs: Directories of 'diffsight evaluate' or of 'diffsight match run'; also unfinished ones.
        data: Where the images lie, for the galleries: the folder that was evaluated, or where data sets lie; by default
            where the run's command says.
        shown: Images in a gallery at most; fewer with many runs, so that the page stays below 5 MB.
        title: Of the page.

    Raises:
        RunError: If one is no run, is damaged, or has nothing to report.
        InputError: If there is no run, a run is there twice, there are too many, they are of two kinds, or Jinja2 or
            matplotlib is not installed.
    """
    check_packages()
    readings = [read_run(run) for run in _distinct(runs)]
    kinds = {reading.kind for reading in readings}
    if len(kinds) > 1:
        raise InputError(
            "Runs that classify images and runs that match images with texts have no number in common. Make a page for "
            "each kind."
        )
    letters = ascii_uppercase if len(readings) > 1 else ("",)
    # Fewer images, then none, until the page is small enough.
    for most in sorted({min(shown, -(-4 * SHOWN // len(readings))), min(shown, 4), 0}, reverse=True):
        parts = [
            _part(reading, letter, data=data, shown=most) for letter, reading in zip(letters, readings, strict=False)
        ]
        current = [part[1] for part in parts]
        pages = [part[0] for part in parts]
        paired = paired_differences(current)
        if len(current) > 1:
            heading = f"{plural(len(current), 'run')} side by side"
            sections = comparison_sections(current, paired, prefix="all")
            pages.insert(0, Part(id="all", title=heading, subtitle="", sections=sections))
        html = render(pages, title=title or _title(current))
        if len(html.encode()) <= LARGEST:
            return Report(
                html=html,
                runs=[summary_of(reading) for reading in current],
                differences=differences(current) if len(current) > 1 else [],
                paired=paired,
            )
    raise InputError(f"The page would be larger than {LARGEST / 1e6:.0f} MB even without images. Report fewer runs.")


def write_report(report: Report, out: Path | str, *, replace: bool = False) -> int:
    """Write the page, whole or not at all.

    Args:
        report: From `make_report`.
        out: The file.
        replace: Whether a file that is there may be replaced.

    Returns:
        Its size in bytes.

    Raises:
        InputError: If the name is no page's, the file exists, or it cannot be written.
    """
    out = check_out(out, replace=replace)
    content = report.html.encode()
    try:
        make(out.resolve().parent)
        put(out, content)
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error.strerror or error}. Give another place.") from error
    return len(content)


def check_out(out: Path | str, *, replace: bool = False) -> Path:
    """Refuse a place for the page before the work is done.

    Raises:
        InputError: If the name does not end in .html, it is a directory, it exists, or it cannot be written there.
    """
    out = Path(out)
    if out.is_dir():
        raise InputError(f"{out} is a directory. Give a file for the page, such as {out / 'report.html'}.")
    if out.suffix.lower() not in SUFFIXES:
        raise InputError(f"{out} is no page: its name must end in .html.")
    if out.exists() and not replace:
        raise InputError(f"{out} exists. Give another name, or --force to replace it.")
    parent = next(folder for folder in (out.resolve().parent, *out.resolve().parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise InputError(
            f"{out} cannot be written: {parent} is not a folder that you may write to. Give another place."
        )
    return out


def check_packages() -> None:
    """Refuse to begin without the packages that a page needs.

    Raises:
        InputError: If Jinja2 or matplotlib is not installed.
    """
    if missing := [name for name in ("jinja2", "matplotlib") if find_spec(name) is None]:
        raise InputError(f"A report needs {' and '.join(missing)}. Install it: pip install 'diffsight[report]'.")


def render(parts: Sequence[Part], *, title: str) -> str:
    """Write parts as a page. All text is escaped; only charts are taken as they are."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("diffsight.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = files("diffsight.report").joinpath("templates", "style.css").read_text("utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template("page.html").render(
        title=title,
        parts=parts,
        style=style,
        policy=policy,
    )


def _part(reading: Reading, letter: str, *, data: Path | None, shown: int) -> tuple[Part, Reading]:
    """A run's part of the page, and the reading with all that could be known of it."""
    prefix = f"run-{letter.lower()}" if letter else "run"
    if reading.recognition is not None:
        images = open_images(reading, data)
        sections = recognition_sections(reading, reading.recognition, images, prefix=prefix, shown=shown)
    else:
        task = matches.open_task(reading, data)
        reading = matches.with_metrics(reading, task)
        sections = matches.matching_sections(reading, task, prefix=prefix, shown=shown)
    heading = f"{reading.task} with {reading.model}"
    subtitle = f"{describing.protocol(reading)} · {reading.run.path}"
    return Part(
        id=prefix, title=f"{letter} · {heading}" if letter else heading, subtitle=subtitle, sections=sections
    ), reading


def _title(readings: Sequence[Reading]) -> str:
    tasks = list(dict.fromkeys(reading.task for reading in readings))
    if len(readings) == 1:
        return f"{tasks[0]} with {readings[0].model} · diffsight"
    return f"{plural(len(readings), 'run')} on {', '.join(tasks[:3])}{'…' if len(tasks) > 3 else ''} · diffsight"


def _distinct(runs: Sequence[Path | str]) -> list[Path]:
    paths = [Path(run) for run in runs]
    if not paths:
        raise InputError("Give at least one run.")
    if len(paths) > MOST:
        raise InputError(f"{len(paths)} runs are too many for a page; give at most {MOST}.")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise InputError(f"{path} is there twice. Give every run once.")
        seen.add(path.resolve())
        if not path.exists():
            raise RunError(
                f"There is no run {path}. Give the directory of 'diffsight evaluate' or 'diffsight match run'."
            )
    return paths
