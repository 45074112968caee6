"""Figures of the benchmarks of matching, in colours that colour-blind people can tell apart (Okabe and Ito's)."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D")
CHANCE = {"color": "0.55", "linewidth": 1, "linestyle": ":"}
_GREYS = ("-", "--", "-.")
Curves = Mapping[str, Mapping[str, Sequence[float | None]]]


def draw_tenths(tasks: Mapping[str, Curves], *, methods: Sequence[str]) -> Figure:
    """Draw accuracy against the noise levels looked at: a panel for each method.

    Args:
        tasks: By task, method and group of tests the accuracy in each tenth. Tasks after the first are dashed.
        methods: Which methods.
    """
    figure = Figure(figsize=(4.1 * len(methods) + 0.4, 4.1))
    figure.set_layout_engine("constrained", wspace=0.08)
    panels: Any = figure.subplots(1, len(methods), sharey=True, squeeze=False)
    groups: dict[str, int] = {}
    for panel, method in zip(panels[0], methods, strict=True):
        for style, curves in zip(("-", "--"), tasks.values(), strict=False):
            for group, values in curves[method].items():
                number = groups.setdefault(group, len(groups))
                places = [(place + 0.5) / len(values) for place in range(len(values))]
                shares = [float("nan") if value is None else 100 * value for value in values]
                look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 4.5, "linestyle": style}
                panel.plot(places, shares, markerfacecolor=COLOURS[number] if style == "-" else "white", **look)
        _share_axis(panel, "noise level, as share of the schedule")
        panel.set(title=method, xlim=(0, 1), xticks=[tenth / 10 for tenth in range(0, 11, 2)])
    panels[0][0].set_ylabel("accuracy, %")
    _legend(figure, list(groups), len(tasks))
    return figure


def draw_training(watched: Path, *, chance: float = 0.5) -> Figure:
    """Draw how often the true caption denoised better while the model was trained: a panel for each test.

    Args:
        watched: ``watch.jsonl`` of the recipe. Steps of a stage are counted from the last of the stage before.
        chance: What guessing gives.
    """
    rows, stages, start = [json.loads(line) for line in watched.read_text().splitlines()], [], 0
    steps: list[int] = []
    for row in rows:
        if not stages or stages[-1][0] != row["stage"]:
            start = steps[-1] if steps else 0
            stages.append((row["stage"], start))
        steps.append(start + row["step"])
    tests = list(dict.fromkeys(key.rpartition(" ")[0] for row in rows for key in row if key not in ("stage", "step")))
    across = min(3, len(tests))
    down = -(-len(tests) // across)
    figure = Figure(figsize=(2.9 * across + 0.3, 2.3 * down + 0.5), layout="constrained")
    panels: Any = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for panel, test in zip(panels.flat, tests, strict=False):
        for name, style, colour in (("seen", "-", COLOURS[0]), ("held-out", "--", COLOURS[1])):
            values = [100 * row[f"{test} {name}"] for row in rows]
            panel.plot([step / 1000 for step in steps], values, linestyle=style, color=colour, linewidth=1.5)
        for _, first in stages[1:]:
            panel.axvline(first / 1000, color="0.8", linewidth=1, zorder=0)
        _share_axis(panel, "", chance=chance)
        panel.set_title(test, fontsize=10)
    for panel in panels[-1]:
        panel.set_xlabel("thousand steps")
    for row in panels:
        row[0].set_ylabel("accuracy, %")
    handles = [
        Line2D([], [], color=COLOURS[0], label="seen combinations"),
        Line2D([], [], color=COLOURS[1], linestyle="--", label="held-out combinations"),
        Line2D([], [], **CHANCE, label="chance"),
    ]
    if len(stages) > 1:
        handles.append(Line2D([], [], color="0.8", label="a further training begins"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def draw_few_shot(
    found: Mapping[str, Mapping[str, Mapping[int, Sequence[float]]]], zero_shot: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draw accuracy against the number of examples, with its standard deviation over choices of them.

    Args:
        found: By part of the test set, by what is learnt, and by number of examples the accuracy of each choice.
        zero_shot: By part of the test set and by score the accuracy without learning.
    """
    figure = Figure(figsize=(4.1 * len(found) + 0.4, 4.3))
    figure.set_layout_engine("constrained", wspace=0.08)
    panels: Any = figure.subplots(1, len(found), sharey=True, squeeze=False)
    for panel, (part, kinds) in zip(panels[0], found.items(), strict=True):
        counts = sorted({count for curve in kinds.values() for count in curve})
        for number, (kind, curve) in enumerate(kinds.items()):
            # Side by side, or the bars would hide each other.
            places = [counts.index(count) + 0.1 * (number - (len(kinds) - 1) / 2) for count in curve]
            means = [100 * statistics.mean(values) for values in curve.values()]
            spreads = [100 * statistics.stdev(values) if len(values) > 1 else 0 for values in curve.values()]
            look = {"color": COLOURS[number], "marker": MARKERS[number], "markersize": 5, "capsize": 2.5}
            panel.errorbar(places, means, spreads, label=kind, **look)
        for style, (score, value) in zip(_GREYS, zero_shot[part].items(), strict=False):
            panel.axhline(
                100 * value, color="0.35", linewidth=1, linestyle=style, label=f"{score}, zero-shot", zorder=1
            )
        _share_axis(panel, "examples")
        panel.set_xticks(range(len(counts)), [str(count) for count in counts])
        panel.set_title(part)
    panels[0][0].set_ylabel("accuracy, %")
    handles, _ = panels[0][0].get_legend_handles_labels()
    handles.append(Line2D([], [], **CHANCE, label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _share_axis(panel: Axes, across: str, *, chance: float = 0.5) -> None:
    panel.axhline(100 * chance, **CHANCE)
    panel.grid(axis="y", color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel(across)


def _legend(figure: Figure, groups: Sequence[str], tasks: int) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=4.5, label=group)
        for colour, marker, group in zip(COLOURS, MARKERS, groups, strict=False)
    ]
    if tasks > 1:
        handles.append(Line2D([], [], color="0.3", label="seen combinations"))
        handles.append(Line2D([], [], color="0.3", linestyle="--", label="held-out combinations"))
    handles.append(Line2D([], [], **CHANCE, label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
