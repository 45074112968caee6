"""Pictures of numbers as inline SVG: colours are the page's variables, so that they follow light and dark."""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from diffsight.evaluation.metrics.accuracy import wilson

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What matplotlib draws with stands for a variable of the style sheet.
COLOURS: Mapping[str, str] = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--panel)",
    "#110101": "var(--c1)",
    "#110202": "var(--c2)",
    "#110303": "var(--c3)",
    "#110404": "var(--c4)",
    "#110505": "var(--c5)",
}
INK, SOFT, LINE, PANEL, *SERIES = COLOURS
MARKS = ("o", "s", "D", "^", "v", "P", "X")
_STYLE: Mapping[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.5,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
_NAMESPACES = re.compile(r"\{[^}]*\}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
# Given in `style` attributes, which the page's security policy does not allow; each is an attribute as well.
_DROPPED = ("font-family", "-inkscape-font-specification")


@contextmanager
def drawing(width: float = 4.9, height: float = 3.1, *, rows: int = 1) -> Iterator[tuple["Figure", Any]]:
    """A figure in the page's style, and its axes.

    Args:
        width: In inches.
        height: In inches.
        rows: How many axes, one above the other, with the same horizontal axis.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = dict(_STYLE)
    with rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(rows, 1, sharex=True)


def to_svg(figure: "Figure", *, name: str, label: str) -> str:
    """Write a figure as SVG for use inside a page, without styles, scripts or links.

    Args:
        figure: In the page's style.
        name: Of the picture, unique in the page: ids begin with it.
        label: What is seen, for those who cannot see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())  # noqa: S314 - our own
    for parent in list(root.iter()):
        for child in list(parent):
            if _NAMESPACES.sub("", child.tag) in ("metadata", "style"):
                parent.remove(child)
    for node in root.iter():
        node.tag = _NAMESPACES.sub("", node.tag)
        old = {_NAMESPACES.sub("", key): value for key, value in node.attrib.items()}
        node.attrib.clear()
        node.attrib.update(_attributes(old, name))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib.update({"class": "chart", "role": "img", "aria-label": label})
    return ElementTree.tostring(root, encoding="unicode")


def _attributes(old: Mapping[str, str], name: str) -> dict[str, str]:
    """Attributes without styles, with the page's colours, and with ids that are unique in it."""
    new = {key: value for key, value in old.items() if key not in ("style", "space")}
    for declaration in old.get("style", "").split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":
            size = re.search(r"[\d.]+px", value)
            new["font-size"] = size[0] if size else "10px"
        elif key and key not in _DROPPED:
            new[key] = value
    for key, value in new.items():
        if key == "id":
            new[key] = f"{name}-{value}"
        elif key == "href":
            new[key] = f"#{name}-{value.removeprefix('#')}"
        else:
            new[key] = COLOURS.get(value, _REFERENCE.sub(rf"url(#{name}-\1)", value))
    return new


def reliability(bins: Sequence[Mapping[str, Any]], ece: float, *, name: str) -> str:
    """How often images of a stated confidence are right.

    Args:
        bins: Of a run's metrics.
        ece: Their expected calibration error.
        name: Unique in the page.
    """
    total = sum(one["images"] for one in bins)
    found = [wilson(round(one["accuracy"] * one["images"]), one["images"]) for one in bins]
    with drawing(4.9, 4.0) as (figure, axes):
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 3)), label="as sure as right")
        axes.errorbar(
            [one["confidence"] for one in bins],
            [one["accuracy"] for one in bins],
            [[one.value - one.low for one in found], [one.high - one.value for one in found]],
            color=SERIES[0],
            marker="o",
            markersize=6,
            linestyle="",
            elinewidth=1.2,
            label="accuracy in a bin",
        )
        axes.bar(
            [one["low"] for one in bins],
            [0.13 * one["images"] / max(one["images"] for one in bins) for one in bins],
            [one["high"] - one["low"] for one in bins],
            bottom=-0.16,
            align="edge",
            color=SERIES[1],
            linewidth=0,
            label=f"share of the {total:,} images",
        )
        axes.set(xlim=(0, 1.01), ylim=(-0.17, 1.02), xlabel="confidence", ylabel="accuracy")
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        _percent(axes.xaxis)
        _percent(axes.yaxis)
        _legend(figure, axes)
        said = f"Reliability diagram: accuracy against stated confidence; expected calibration error {ece:.3f}."
        return to_svg(figure, name=name, label=said)


def budget(line: Sequence[Mapping[str, float]], points: Sequence[tuple[str, Mapping[str, float]]], *, name: str) -> str:
    """Accuracy against calls.

    Args:
        line: ``calls``, ``value``, ``low`` and ``high`` of the run, stopped earlier and earlier.
        points: The same of other policies, with their names.
        name: Unique in the page.
    """
    with drawing(4.9, 3.3) as (figure, axes):
        calls = [one["calls"] for one in line]
        axes.fill_between(
            calls, [o["low"] for o in line], [o["high"] for o in line], color=SERIES[0], alpha=0.18, linewidth=0
        )
        axes.plot(calls, [one["value"] for one in line], color=SERIES[0], marker="o", label="this run, stopped early")
        for (policy, one), colour, mark in zip(points, SERIES[1:], MARKS[1:], strict=False):
            error = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
            axes.errorbar(
                one["calls"], one["value"], error, color=colour, marker=mark, linestyle="", elinewidth=1, label=policy
            )
        _log_axis(axes, [*calls, *(one["calls"] for _, one in points)])
        _percent(axes.yaxis)
        axes.set(xlabel="denoiser calls per image", ylabel="accuracy")
        _legend(figure, axes)
        first, last = line[0], line[-1]
        said = (
            f"Accuracy rises from {first['value']:.1%} at {first['calls']:,.0f} calls per image to {last['value']:.1%} "
            f"at {last['calls']:,.0f}."
        )
        return to_svg(figure, name=name, label=said)


def by_timestep(rows: Sequence[Mapping[str, float]], *, loss: str, name: str) -> str:
    """Denoising errors of the true class and of its closest rival at each noise level.

    Args:
        rows: ``timestep``, ``own``, ``other``, ``margin``, ``low`` and ``high`` (the margin's interval, relative).
        loss: What the errors are.
        name: Unique in the page.
    """
    steps = [one["timestep"] for one in rows]
    with drawing(4.9, 4.6, rows=2) as (figure, (above, below)):
        above.plot(steps, [one["own"] for one in rows], color=SERIES[0], label="true class")
        above.plot(
            steps, [one["other"] for one in rows], color=SERIES[1], linestyle=(0, (5, 2)), label="closest other class"
        )
        above.set(ylabel=f"error ({loss})", yscale="log" if min(one["own"] for one in rows) > 0 else "linear")
        _numbers(above.yaxis)
        _legend(figure, above)
        below.axhline(0, color=SOFT, linewidth=1)
        below.fill_between(
            steps, [o["low"] for o in rows], [o["high"] for o in rows], color=SERIES[2], alpha=0.22, linewidth=0
        )
        below.plot(steps, [one["margin"] for one in rows], color=SERIES[2], marker="o", markersize=3.5)
        _percent(below.yaxis)
        below.set(xlabel="timestep (left: little noise)", ylabel="how much larger")
        best = max(rows, key=lambda one: one["margin"])
        said = (
            "Denoising error by timestep of the true class and its closest rival, and their difference, which is "
            f"largest, {best['margin']:.1%} of the error, near timestep {best['timestep']:.0f}."
        )
        return to_svg(figure, name=name, label=said)


def scatter(points: Sequence[tuple[str, float, Mapping[str, float]]], *, across: str, name: str) -> str:
    """Accuracy with intervals against a cost, each run by its letter.

    Args:
        points: Letter, cost (positive), and ``value``, ``low`` and ``high``.
        across: What the cost is.
        name: Unique in the page.
    """
    with drawing(4.9, 3.4) as (figure, axes):
        for number, (letter, cost, one) in enumerate(points):
            colour, mark = SERIES[number % len(SERIES)], MARKS[number % len(MARKS)]
            error = [[max(one["value"] - one["low"], 0)], [max(one["high"] - one["value"], 0)]]
            axes.errorbar(cost, one["value"], error, color=colour, marker=mark, elinewidth=1.2, markersize=7)
            axes.annotate(letter, (cost, one["value"]), (8, 6), textcoords="offset points", weight="bold", color=INK)
        _log_axis(axes, [cost for _, cost, _ in points])
        _percent(axes.yaxis)
        axes.set(xlabel=across, ylabel="accuracy")
        said = "; ".join(f"{letter}: {one['value']:.1%} at {cost:,.3g}" for letter, cost, one in points)
        return to_svg(figure, name=name, label=f"Accuracy against {across}. {said}.")


def _legend(figure: "Figure", axes: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Above the axes, where nothing is drawn."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2 if len(labels) > 1 else 1, fontsize=9)


def _percent(axis: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Write shares as percentages, with a decimal only where it is needed."""
    from matplotlib.ticker import PercentFormatter

    low, high = axis.get_view_interval()
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else 1))


def _numbers(axis: Any) -> None:  # noqa: ANN401 - matplotlib's
    """Write numbers out, also on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def _log_axis(axes: Any, values: Sequence[float]) -> None:  # noqa: ANN401 - matplotlib's
    """A logarithmic axis for numbers that differ by factors."""
    from matplotlib.ticker import LogLocator

    low, high = min(values), max(values)
    if low <= 0:
        return
    axes.set_xscale("log")
    spare = max((high / low) ** 0.08, 1.12)
    axes.set_xlim(low / spare, high * spare)
    subs = (1, 2, 5) if high / low > 4 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.xaxis.set_major_locator(LogLocator(10, subs=subs if high / low < 500 else (1,), numticks=12))
    _numbers(axes.xaxis)
