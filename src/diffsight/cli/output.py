"""What the commands say: results on stdout as plain tables or JSON, everything else on stderr."""

import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from diffsight.evaluation.runner import Estimate

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def console() -> Iterator[None]:
    """Send diffsight's log to stderr as plain lines, and keep quiet what the libraries would say."""
    for library in ("TRANSFORMERS", "DIFFUSERS", "HF_HUB"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A file name need not be text in the terminal's encoding.
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    ours = logging.getLogger("diffsight")
    level = ours.level
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """End a command at Ctrl-C with a line that says how to go on, and the exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        log.error("\nInterrupted. %s", advice)
        raise typer.Exit(130) from None


def refuse(message: str) -> int:
    """Say on stderr why a command cannot be done, and give the exit code for that."""
    typer.echo(f"diffsight: {message}", err=True)
    return 2


def show(text: str) -> None:
    """Write a result to stdout. A reader that has had enough (``| head``) is no error."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show_json(value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write a result to stdout as one JSON document."""
    show(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a result to a file, whole or not at all.

    Raises:
        RunError: If the disk refuses.
    """
    from diffsight.store.disk import make, put, to_json, writing

    with writing(path):
        make(path.resolve().parent)
        put(path, to_json(dict(values), "A result", indent=2).encode())


def table(rows: Sequence[Sequence[str]], *, align: str = "", indent: str = "") -> str:
    """Line up columns, two spaces apart.

    Args:
        rows: Cells; the last cell of a row may be as long as it likes.
        align: ``<`` or ``>`` for each column; to the left where it says nothing.
        indent: Before every row.
    """
    cleaned = [[plain(cell) for cell in row] for row in rows]
    columns = max(map(len, cleaned), default=0)
    align = align.ljust(columns, "<")
    # A row that is shorter than the others ends in a remark, which has no say in the width of its column.
    cells = [row if len(row) == columns else row[:-1] for row in cleaned]
    widths = [max((len(row[i]) for row in cells if i < len(row)), default=0) for i in range(columns)]
    lines = ("  ".join(f"{cell:{align[i]}{widths[i]}}" for i, cell in enumerate(row)) for row in cleaned)
    return "\n".join(f"{indent}{line}".rstrip() for line in lines)


def plain(text: str) -> str:
    """Text for one line of a terminal: line breaks and control characters of file names are written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def duration(seconds: float) -> str:
    """A time that a person can read: ``12.3 s``, ``4 min 05 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


@dataclass(slots=True)
class Pace:
    """How fast it goes, counted from the first report: a run that is continued does not start at 0."""

    total: int
    images: int = 0
    calls: int = 0
    started: float | None = None

    def update(self, images: int, calls: int = 0) -> str | None:
        """Calls per second, or images where there are no calls, and the time left; None while nothing was done."""
        now = time.monotonic()
        if self.started is None:
            self.images, self.calls, self.started = images, calls, now
        elapsed = max(now - self.started, 1e-9)
        done, spent = images - self.images, calls - self.calls
        if not (done or spent):
            return None
        speed = f"{spent / elapsed:,.0f} calls/s" if calls else f"{done / elapsed:,.1f}/s"
        left = f"{duration((self.total - images) * elapsed / done)} left" if done else "time left not known yet"
        return f"{speed}, {left}"


@contextmanager
def progress(total: int, what: str = "images") -> Iterator[Callable[[int, int], None]]:
    """Report progress on stderr: a bar on a terminal, elsewhere a line about every ten seconds.

    Args:
        total: Images.
        what: What to call them.

    Yields:
        What to call with (images finished, denoiser calls so far).
    """
    pace = Pace(total)
    if sys.stderr.isatty():
        from tqdm import tqdm

        form = "{n}/{total} " + what + " |{bar}| {desc}"
        with tqdm(total=total, leave=False, file=sys.stderr, bar_format=form) as bar:

            def draw(images: int, calls: int) -> None:
                bar.set_description_str(pace.update(images, calls) or "time left not known yet", refresh=False)
                bar.update(images - bar.n)

            yield draw
        return
    last = time.monotonic()

    def write(images: int, calls: int) -> None:
        nonlocal last
        speed = pace.update(images, calls)
        if speed and images < total and time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            spent = f", {calls:,} calls" if calls else ""
            log.info("%s of %s %s%s, %s", images, total, what, spent, speed)

    yield write


@contextmanager
def stages() -> Iterator[Callable[[str, int, int, int], None]]:
    """Report the progress of work that is done in stages, each with images of its own.

    Yields:
        What to call with (what the images are, images finished, all images, denoiser calls so far).
    """
    current, draw = "", None
    with ExitStack() as stack:

        def report(what: str, images: int, total: int, calls: int) -> None:
            nonlocal current, draw
            if draw is None or what != current:
                stack.close()
                current, draw = what, stack.enter_context(progress(total, what))
            draw(images, calls)

        yield report


def show_estimate(estimate: "Estimate", *, disk: str, as_json: bool) -> None:
    """Print what a command would cost, as extrapolated from its first images."""
    seconds = estimate.seconds if estimate.calls else 0.0
    if as_json:
        show_json(
            {
                "dry_run": True,
                "images": estimate.images,
                "calls": round(estimate.calls),
                "calls_per_image": estimate.calls_per_image,
                "calls_per_second": estimate.calls_per_second,
                "seconds": seconds,
                "disk": disk,
                "pilot_images": estimate.pilot_images,
            }
        )
        return
    rows = [
        ("images", f"{estimate.images:,}"),
        ("calls", f"{estimate.calls:,.0f} ({estimate.calls_per_image:,.1f} per image)"),
        ("time", f"{duration(seconds)} ({estimate.calls_per_second:,.0f} calls/s, loading not counted)"),
        ("disk", disk),
    ]
    show(table(rows))
    show(f"Extrapolated from {estimate.pilot_images} images that were really scored. Nothing was written.")


def show_metrics(metrics: Mapping[str, Any]) -> None:
    """Print a run's metrics as a table; the metric that the task reports is marked."""
    calls, calibration = metrics["calls"], metrics["calibration"]
    names = {"top1": "accuracy", "top5": "top-5 accuracy", "mean_per_class": "mean per class"}
    rows = [
        (name, _share(metrics[key]) + (" *" if key == metrics["metric"] else ""))
        for key, name in names.items()
        if metrics[key] is not None
    ]
    rows = rows or [("accuracy", "not known: the images have no labels")]
    if (cues := metrics.get("cue_conflict")) is not None:
        rows.append(("shape accuracy", _known(cues["shape_accuracy"])))
        rows.append(("texture accuracy", _known(cues["texture_accuracy"])))
        decided = f"of {cues['shape'] + cues['texture']} answers that are one of the two"
        rows.append(("shape bias", f"{_known(cues['shape_bias'])} {decided}"))
    rows.append(("calls per image", f"{calls['mean']:,.1f} (median {calls['median']:,.0f}, 95 % {calls['p95']:,.0f})"))
    if (seconds := metrics.get("speed", {}).get("seconds_per_image")) is not None:
        rows.append(("time per image", f"{1000 * seconds:,.3g} ms on {metrics['speed']['device']}, with reading it"))
    rows.append(("coverage", f"{metrics['scored']} of {metrics['images']} images, {metrics['failed']} failed"))
    rows.append(("ties", str(metrics["ties"])))
    if calibration is not None:
        rows.append(("ECE", f"{calibration['ece']:.3f} (mean confidence {calibration['mean_confidence']:.3f})"))
    show(table(rows))
    if metrics["value"] is not None:
        show("* what this task reports. In brackets: 95 % intervals.")


def _known(value: Mapping[str, float] | None) -> str:
    return "not known" if value is None else _share(value)


def _share(value: Mapping[str, float]) -> str:
    return f"{value['value']:.1%} [{value['low']:.1%}, {value['high']:.1%}]"
