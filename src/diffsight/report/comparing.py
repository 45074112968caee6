"""Several runs side by side: one table, accuracy against cost, and paired differences on shared images."""

from collections.abc import Sequence
from itertools import combinations
from string import ascii_uppercase
from typing import Any

from diffsight.errors import InputError
from diffsight.evaluation.metrics.paired import compare_answers, read_answers
from diffsight.report import charts, describing
from diffsight.report.blocks import Block, Cell, Chart, Column, Section, Table, Text
from diffsight.report.matches import main_measure
from diffsight.report.numbers import interval, plural, rate, share
from diffsight.report.reading import Reading

MOST = len(ascii_uppercase)
_ALL_PAIRS = 6  # Of more runs, each is only compared with the first.


def summary_of(reading: Reading) -> dict[str, Any]:
    """A run in a few JSON values."""
    metrics = reading.metrics or {}
    speed = metrics.get("speed") or {}
    if reading.kind == "recognition":
        measure, value = metrics["metric"], metrics[metrics["metric"]]
        counts = {"images": metrics["images"], "coverage": metrics["coverage"]}
        calls = metrics["calls"]["mean"]
    else:
        measure, value = main_measure(reading) or ("accuracy", None)
        results = metrics.get("results") or {}
        counts = {"queries": reading.done, "coverage": results.get("coverage")}
        calls = metrics.get("calls", {}).get("per_query")
    return {
        "run": str(reading.run.path),
        "kind": reading.kind,
        "task": reading.task,
        "model": reading.model,
        "method": describing.method(reading),
        "protocol": describing.protocol(reading),
        "finished": reading.finished,
        "measure": measure,
        "value": value and {key: value[key] for key in ("value", "low", "high")},
        **counts,
        "failed": len(reading.failures),
        "ties": metrics.get("ties", (metrics.get("results") or {}).get("ties")),
        "calls": calls,
        "seconds": speed.get("seconds_per_image", speed.get("seconds_per_query")),
        "fingerprint": reading.run.manifest.fingerprint,
    }


def differences(readings: Sequence[Reading]) -> list[str]:
    """Why the runs' numbers are not of the same question; empty where they are."""
    found = []
    for what, get in (
        ("tasks", lambda one: (one.task, one.fields["task"].get("version"))),
        ("images or queries", _asked),
        ("classes", lambda one: tuple(one.fields.get("classes", ()))),
    ):
        if len({get(reading) for reading in readings}) > 1:
            found.append(what)
    if not all(reading.finished for reading in readings):
        found.append("share of what is done")
    return found


def _asked(reading: Reading) -> str:
    return str((reading.fields.get("data") or {}).get("ids") or (reading.fields.get("queries") or {}).get("content"))


def comparison_sections(readings: Sequence[Reading], paired: Sequence[dict[str, Any]], *, prefix: str) -> list[Section]:
    """Table, charts and paired differences of several runs of one kind.

    Args:
        readings: The runs.
        paired: From `paired_differences`.
        prefix: Of all ids, unique in the page.
    """
    rows = [summary_of(reading) for reading in readings]
    blocks: list[Block] = []
    if unlike := differences(readings):
        blocks.append(
            Text(f"The runs differ in their {' and '.join(unlike)}: compare their numbers with care.", "warning")
        )
    blocks.append(_table(rows))
    sections = [Section(id=f"{prefix}-table", title="Side by side", blocks=blocks)]
    if charted := _charts(rows, prefix):
        sections.append(Section(id=f"{prefix}-cost", title="Accuracy against cost", blocks=charted))
    if paired:
        sections.append(Section(id=f"{prefix}-paired", title="Paired differences", blocks=[_paired_table(paired)]))
    return sections


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    per = "image" if rows[0]["kind"] == "recognition" else "query"
    timed = any(row["seconds"] for row in rows)
    shared = {key: rows[0][key] for key in ("task", "model", "method", "protocol")}
    shared = {key: value for key, value in shared.items() if all(row[key] == value for row in rows)}
    told = [key for key in ("task", "model", "method", "protocol") if key not in shared]
    columns = [
        Column("run", number=False),
        Column(rows[0]["measure"].replace("top1", "accuracy").replace("_", " ")),
        Column("95 % interval"),
        Column("0 % to 100 %", number=False),
        Column(f"calls / {per}"),
        *([Column(f"ms / {per}")] if timed else []),
        Column("coverage"),
        Column("failed"),
        *(Column(key, number=False) for key in told),
    ]
    cells = []
    for letter, row in zip(ascii_uppercase, rows, strict=False):
        value = row["value"]
        cells.append(
            [
                f"{letter} · {row['run']}" + ("" if row["finished"] else " (unfinished)"),
                share(value and value["value"]),
                interval(value),
                Cell(span=(value["low"], value["value"], value["high"])) if value else "",
                rate(row["calls"]),
                *([rate(row["seconds"] and 1000 * row["seconds"])] if timed else []),
                share(row["coverage"]),
                f"{row['failed']:,}",
                *(row[key] for key in told),
            ]
        )
    caption = f"{plural(len(rows), 'run')} with 95 % intervals"
    if shared:
        caption += ". All alike: " + "; ".join(f"{key} {value}" for key, value in shared.items())
    return Table(caption=caption, columns=columns, rows=cells, wide=True)


def _charts(rows: Sequence[dict[str, Any]], prefix: str) -> list[Block]:
    per = "image" if rows[0]["kind"] == "recognition" else "query"
    found: list[Block] = []
    for key, scale, across in (("calls", 1, f"denoiser calls per {per}"), ("seconds", 1000, f"milliseconds per {per}")):
        points = [
            (letter, scale * float(row[key]), row["value"])
            for letter, row in zip(ascii_uppercase, rows, strict=False)
            if row[key] and row["value"]
        ]
        if len(points) > 1:
            svg = charts.scatter(points, across=across, name=f"{prefix}-{key}")
            caption = f"Accuracy with 95 % intervals against {across}; letters as in the table."
            found.append(Chart(svg=svg, caption=caption))
    return found


def paired_differences(readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Differences of pairs of finished runs on the images that both have answered, as `PairedComparison` has them.

    Returns:
        For each pair that may be compared ``letters`` and the comparison's values; of many runs only the pairs with the
        first.
    """
    answers = {}
    for letter, reading in zip(ascii_uppercase, readings, strict=False):
        if reading.kind == "recognition" and reading.finished:
            try:
                answers[letter] = read_answers(reading.run.path)
            except (InputError, KeyError):
                continue
    pairs = list(combinations(answers, 2))
    if len(answers) > _ALL_PAIRS:
        pairs = [pair for pair in pairs if pair[0] == next(iter(answers))]
    found = []
    for first, second in pairs:
        try:
            compared = compare_answers(answers[first], answers[second])
        except InputError:  # They were asked other things; the page says so above.
            continue
        found.append({"letters": [first, second], **compared.to_dict()})
    return found


def _paired_table(paired: Sequence[dict[str, Any]]) -> Table:
    rows = []
    for one in paired:
        first, second = one["letters"]
        difference = one["difference"]
        rows.append(
            [
                f"{first} − {second}",
                f"{100 * difference['value']:+.1f}",
                f"[{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]",
                f"{one['p_value']:.3f}" if one["p_value"] >= 0.001 else "< 0.001",
                f"{one['images']:,}",
                f"{one['both']:,}",
                f"{one['first_only']:,}",
                f"{one['second_only']:,}",
                f"{one['neither']:,}",
            ]
        )
    columns = [
        Column("runs", number=False),
        Column("points", title="difference in percentage points"),
        Column("95 % interval"),
        Column("p", title="two-sided, that there is no difference"),
        Column("images"),
        Column("both right"),
        Column("only first"),
        Column("only second"),
        Column("neither"),
    ]
    caption = (
        "Differences on the images that both have answered, in percentage points; p is not corrected for the number of "
        "pairs"
    )
    return Table(caption=caption, columns=columns, rows=rows)
