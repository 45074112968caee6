"""The page of a comparison of methods: one table, accuracy against cost, recommendations, agreement, paired runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from diffsight.errors import InputError, RunError
from diffsight.report import charts
from diffsight.report.blocks import Block, Cell, Chart, Column, Part, Section, Table, Text
from diffsight.report.comparing import comparison_sections, paired_differences
from diffsight.report.numbers import NOTHING, duration, plural, rate, share
from diffsight.report.page import check_packages, render
from diffsight.report.reading import Reading, read_run

PAGE = "comparison.html"


def comparison_page(result: Mapping[str, Any], out: Path) -> str:
    """Make the page of what `diffsight.evaluation.comparing.running.compare` gives.

    Args:
        result: That.
        out: The comparison's directory, for its runs.

    Raises:
        InputError: If Jinja2 or matplotlib is not installed.
        RunError: If a run is damaged.
    """
    check_packages()
    rows = result["rows"]
    name = result["task"]["name"]
    images = plural(result["data"]["images"], "test image")
    first: list[Block] = [Text(f"{line}", "warning") for line in result["notes"]]
    if not result["labelled"]:
        first.append(Text("The images have no labels, so no accuracy is known.", "warning"))
    first.append(_table(rows, labelled=result["labelled"]))
    if charted := _charts(rows):
        first += charted
    sections = [
        Section(id="compare-table", title="Methods", blocks=first),
        Section(id="compare-advice", title="Recommendation", blocks=[_advice(result["recommendations"])]),
    ]
    if failed := [row for row in rows if row["failure"] is not None]:
        cells = [[_title(row), str(row["labels"]), row["failure"]] for row in failed]
        columns = [Column("method", number=False), Column("labels"), Column("reason", number=False)]
        table = Table(caption="Methods without a result", columns=columns, rows=cells)
        sections.append(Section(id="compare-failed", title="Failures", blocks=[table]))
    if len(result["agreement"]["keys"]) > 1:
        sections.append(Section(id="compare-agreement", title="Agreement", blocks=[_agreement(result)]))
    sections.append(Section(id="compare-protocols", title="What was learnt from", blocks=[_protocols(rows)]))
    parts = [Part(id="compare", title=f"{name}: methods compared", subtitle=images, sections=sections)]
    if len(readings := _readings(rows, out)) > 1:
        paired = paired_differences(readings)
        own = comparison_sections(readings, paired, prefix="runs")
        parts.append(
            Part(id="runs", title="Their runs", subtitle="the first seed of each method, paired by image", sections=own)
        )
    return render(parts, title=f"{name}: methods compared · diffsight")


def _readings(rows: Sequence[Mapping[str, Any]], out: Path) -> list[Reading]:
    runs = [out / row["runs"][0] for row in rows if row["runs"]][: len(ascii_uppercase)]
    found = []
    for run in runs:
        try:
            found.append(read_run(run))
        except (InputError, RunError):  # The row's own numbers are in the table above.
            continue
    return found


def _title(row: Mapping[str, Any]) -> str:
    """Method and model; of a folder only its name."""
    model = row["model"]
    if model and not model.startswith("hf:"):
        start = "timm:" if model.startswith("timm:") else ""
        model = start + Path(model.removeprefix(start)).name
    return f"{row['method']} · {model}" if model else row["method"]


def _table(rows: Sequence[Mapping[str, Any]], *, labelled: bool) -> Table:
    """All rows; what no row has, or all rows have alike, is no column."""
    spread = any(row["sd"] is not None for row in rows)
    partial = any(row["coverage"] not in (None, 1.0) for row in rows)
    memory = any(row["memory"] is not None for row in rows)
    columns = [
        Column("method", number=False),
        Column("labels"),
        *([Column("accuracy"), Column("95 % interval")] if labelled else []),
        *([Column("± over seeds")] if spread else []),
        *([Column("0 % to 100 %", number=False)] if labelled else []),
        *([Column("coverage")] if partial else []),
        Column("calls"),
        Column("ms"),
        Column("GFLOPs"),
        *([Column("peak GB")] if memory else []),
        Column("before"),
        Column("protocol", number=False),
    ]
    cells = []
    for letter, row in _lettered(rows):
        bad, known = row["failure"] is not None, row["value"] is not None
        span = Cell(span=(row["low"], row["value"], row["high"])) if known else ""
        cells.append(
            [
                f"{letter} · {_title(row)}" + (" (failed)" if bad else ""),
                f"{row['labels']:,}",
                *([share(row["value"]), _interval(row)] if labelled else []),
                *([share(row["sd"])] if spread else []),
                *([span] if labelled else []),
                *([share(row["coverage"])] if partial else []),
                rate(row["calls"]),
                rate(None if row["seconds"] is None else 1000 * row["seconds"]),
                rate(None if row["flops"] is None else row["flops"] / 1e9),
                *([rate(None if row["memory"] is None else row["memory"] / 1e9)] if memory else []),
                duration(row["once"]["seconds"]) if row["once"].get("seconds") else NOTHING,
                row["protocol"],
            ]
        )
    caption = "Labels are those of each class. Denoiser calls, milliseconds and GFLOPs are for one image"
    caption += ", peak GB of CUDA memory" if memory else ""
    caption += "; before is the time that was spent before the first image, such as on training"
    caption += "" if partial else ". All images were scored"
    return Table(caption=caption, columns=columns, rows=cells, wide=True)


def _interval(row: Mapping[str, Any]) -> str:
    return NOTHING if row["low"] is None else f"[{row['low']:.1%}, {row['high']:.1%}]"


def _lettered(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Rows with A to Z, and AA on where there are more."""
    count = len(ascii_uppercase)
    return [
        ((ascii_uppercase[number // count - 1] if number >= count else "") + ascii_uppercase[number % count], row)
        for number, row in enumerate(rows)
    ]


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    found: list[Block] = []
    for key, scale, across in (("seconds", 1e3, "milliseconds per image"), ("flops", 1e-9, "GFLOPs per image")):
        points = [
            (letter, scale * row[key], {end: row[end] for end in ("value", "low", "high")})
            for letter, row in _lettered(rows)
            if row[key] and row["value"] is not None
        ]
        if len(points) > 1:
            svg = charts.scatter(points, across=across, name=f"compare-{key}")
            found.append(Chart(svg=svg, caption=f"Accuracy with 95 % intervals against {across}; letters as above."))
    return found


def _advice(advice: Sequence[Mapping[str, Any]]) -> Block:
    if not advice:
        return Text("No method has a result, so nothing can be recommended.", "warning")
    columns = [Column("labels / class"), Column("take", number=False), Column("because", number=False)]
    rows = [[f"{one['labels']:,}", one["method"], one["reason"]] for one in advice]
    return Table(
        caption="With so many labels, the cheapest method that is as good as the best", columns=columns, rows=rows
    )


def _agreement(result: Mapping[str, Any]) -> Table:
    agreed = result["agreement"]
    letters = {row["key"]: letter for letter, row in _lettered(result["rows"])}
    columns = [Column("", number=False), *(Column(letters[key]) for key in agreed["keys"])]
    rows = [
        [letters[key], *(_alike(value, itself=key == other) for other, value in zip(agreed["keys"], line, strict=True))]
        for key, line in zip(agreed["keys"], agreed["pairs"], strict=True)
    ]
    return Table(
        caption="Images with the same answer in percent; letters as above", columns=columns, rows=rows, dense=True
    )


def _alike(value: float | None, *, itself: bool) -> Cell:
    if itself:
        return Cell(text="·")
    return Cell(text=NOTHING if value is None else f"{100 * value:.0f}", shade=round(10 * (value or 0)))


def _protocols(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [Column("method", number=False), Column("labels / class"), Column("protocol", number=False)]
    cells = [[f"{letter} · {_title(row)}", f"{row['labels']:,}", row["said"]] for letter, row in _lettered(rows)]
    return Table(caption="What each method has learnt from", columns=columns, rows=cells)
