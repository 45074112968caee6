"""The report on a run that matches images and texts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffsight.data.decoding import open_image
from diffsight.data.queries import Crop, Query
from diffsight.errors import DiffsightError
from diffsight.evaluation.match_tasks import MatchTask, load_match_task
from diffsight.evaluation.matching import match_metrics
from diffsight.matching.answers import Match
from diffsight.report import describing
from diffsight.report.blocks import Block, Cell, Column, Gallery, Picture, Section, Table, Text, Tile, Tiles
from diffsight.report.galleries import failure_table
from diffsight.report.numbers import NOTHING, briefly, count, interval, plural, rate, share
from diffsight.report.pictures import data_uri, option
from diffsight.report.reading import Reading

MEASURES = {
    "accuracy": "accuracy",
    "recall_at_5": "right among the first 5",
    "reciprocal_rank": "mean of 1 / rank",
    "text": "text score",
    "image": "image score",
    "group": "group score",
    "majority": "always the same place",
}
MOST_QUERIES = 5000  # Queries of a run at most, for its pictures to be found again.
TAGS = 100  # Kinds of queries that are listed at most.
_TEXTS = 5  # Candidates of a query that are shown at most.


def open_task(reading: Reading, data: Path | None) -> MatchTask | str:
    """The queries of a run, by what its command says; only if they are the same as then.

    Returns:
        The task, or why it is not there.
    """
    if reading.total > MOST_QUERIES:
        return f"{reading.total:,} queries are too many to look through again here."
    command = [str(word) for word in reading.run.sessions[0].get("command", ())]
    # Without a command nobody knows of how large a task this is a part.
    guessed = [] if data is None else [reading.task]
    names = [*command[2:3], reading.task] if command[:2] == ["match", "run"] else guessed
    data = data or (Path(place) if (place := option(reading, "--data")) else None)
    pictures, limit = option(reading, "--images"), option(reading, "--limit")
    problem = "The run's command does not say where its queries are."
    for name in dict.fromkeys(names):
        try:
            task = load_match_task(name, data=data, images=pictures, limit=int(limit) if limit else None)
        except (DiffsightError, OSError, ValueError) as error:
            problem = str(error)
            continue
        if len(task.queries) == reading.total and task.fingerprint() == reading.fields["queries"]["content"]:
            return task
        problem = "The queries that are there now are not those of the run."
    return problem


def with_metrics(reading: Reading, task: MatchTask | str) -> Reading:
    """The same with the metrics of what is there, if the run is unfinished and its queries are known."""
    if reading.metrics is not None or isinstance(task, str):
        return reading
    matches = _matches(reading)
    answered = replace(task, queries=tuple(query for query in task.queries if query.id in matches))
    calls = int(reading.run.progress.get("calls", 0))
    return replace(reading, metrics=match_metrics(answered, list(matches.values()), calls=calls))


def matching_sections(reading: Reading, task: MatchTask | str, *, prefix: str, shown: int) -> list[Section]:
    """All sections of a run.

    Args:
        reading: The run, with metrics if they are known.
        task: Its queries, or why they are not there.
        prefix: Of all ids, unique in the page.
        shown: Queries in a gallery at most.
    """
    first: list[Block] = [*describing.warnings(reading), headline(reading)]
    sections = [Section(id=f"{prefix}-result", title="Result", blocks=first)]
    results = (reading.metrics or {}).get("results")
    if results is not None:
        blocks: list[Block] = [_measures(results)]
        if blind := _blind((reading.metrics or {}).get("blind")):
            blocks.append(blind)
        sections.append(Section(id=f"{prefix}-measures", title="Beside chance", blocks=blocks))
        if tags := results.get("by_tag"):
            sections.append(Section(id=f"{prefix}-kinds", title="Kinds of queries", blocks=[_by_tag(tags)]))
    if shown:
        sections.append(Section(id=f"{prefix}-images", title="Queries", blocks=_queries(reading, task, shown)))
    if reading.failures:
        sections.append(Section(id=f"{prefix}-failures", title="Failures", blocks=[failure_table(reading)]))
    sections.append(Section(id=f"{prefix}-facts", title="What this run is", blocks=[describing.facts(reading)]))
    return [section for section in sections if section.blocks]


def main_measure(reading: Reading) -> tuple[str, dict[str, Any]] | None:
    """Name and value of the number that stands for a run: accuracy, or the group score of grids."""
    results = (reading.metrics or {}).get("results") or {}
    return next(((MEASURES[key], results[key]) for key in ("accuracy", "group") if results.get(key)), None)


def headline(reading: Reading) -> Tiles:
    """Accuracy beside chance, coverage, ties and cost."""
    tiles, metrics = [], reading.metrics
    if metrics is None:
        text = "finish the run, or say with --data where its queries are"
        return Tiles([Tile(label="accuracy", value=NOTHING, detail=text, main=True)])
    if main := main_measure(reading):
        label, value = main
        detail = f"95 % {interval(value)}; chance {share(value['chance'])}"
        tiles.append(Tile(label=label, value=share(value["value"]), detail=detail, main=True))
    else:
        tiles.append(Tile(label="accuracy", value=NOTHING, detail="no right answers are known", main=True))
    if results := metrics.get("results"):
        for key in ("text", "image"):
            if value := results.get(key):
                detail = f"95 % {interval(value)}; chance {share(value['chance'])}"
                tiles.append(Tile(label=MEASURES[key], value=share(value["value"]), detail=detail))
        coverage = f"{results['scored']:,} of {plural(results['queries'], 'query', 'queries')} scored"
        tiles.append(Tile(label="coverage", value=share(results["coverage"]), detail=coverage))
        tiles.append(
            Tile(label="ties", value=count(results["ties"]), detail="count as one over the number of the tied")
        )
    calls = metrics["calls"]
    if calls["total"]:
        detail = f"{count(calls['total'])} in all"
        tiles.append(Tile(label="calls per query", value=rate(calls["per_query"]), detail=detail))
    if (seconds := (metrics.get("speed") or {}).get("seconds_per_query")) is not None:
        tiles.append(Tile(label="time per query", value=briefly(seconds), detail="with reading the images"))
    return Tiles(tiles)


def _measures(results: dict[str, Any]) -> Table:
    rows = []
    for key, name in MEASURES.items():
        if value := results.get(key):
            span = Cell(span=(value["low"], value["value"], value["high"]))
            chance = share(value["chance"])
            rows.append([name, share(value["value"]), interval(value), span, chance, f"{value['queries']:,}"])
    columns = [
        Column("measure", number=False),
        Column("value"),
        Column("95 % interval"),
        Column("0 % to 100 %", number=False),
        Column("chance"),
        Column("queries"),
    ]
    return Table(caption="All measures; intervals take queries as independent", columns=columns, rows=rows)


def _blind(blind: dict[str, Any] | None) -> Block | None:
    if blind is None:
        return None
    if (value := blind.get("texts")) is None:
        return (
            Text(f"Reading the captions alone: not known. {blind['reason']}", "note") if blind.get("reason") else None
        )
    return Text(
        f"Reading the captions alone, without the images, gives {share(value['value'])} {interval(value)} where chance "
        f"is {share(value['chance'])} ({plural(value['queries'], 'query', 'queries')})."
    )


def _by_tag(tags: dict[str, Any]) -> Table:
    rows = []
    for tag, results in list(tags.items())[:TAGS]:
        value = results.get("accuracy") or results.get("group")
        if value:
            span = Cell(span=(value["low"], value["value"], value["high"]))
            rows.append(
                [tag, f"{value['queries']:,}", share(value["value"]), interval(value), span, share(value["chance"])]
            )
    columns = [
        Column("kind", number=False),
        Column("queries"),
        Column("accuracy"),
        Column("95 % interval"),
        Column("0 % to 100 %", number=False),
        Column("chance"),
    ]
    cut = f"; {TAGS} of {len(tags):,} kinds" if len(tags) > TAGS else ""
    return Table(caption=f"Accuracy by kind of query (the group score of grids){cut}", columns=columns, rows=rows)


def _matches(reading: Reading) -> dict[str, Match]:
    table = reading.run.read("matches").to_pylist() if "matches" in reading.run.tables else []
    found = [
        Match(id=row["id"], scores=np.array(row["scores"], dtype=np.float64).reshape(row["images"], row["texts"]))
        for row in table
    ]
    found += [Match(id=one["id"], scores=np.zeros((0, 0)), failure=one["reason"]) for one in reading.failures]
    return {match.id: match for match in found}


def _queries(reading: Reading, task: MatchTask | str, shown: int) -> list[Block]:
    """Queries that were answered rightly and wrongly by the largest margins."""
    if isinstance(task, str):
        return [Text(f"Without pictures: {task}", "note")]
    matches, judged = _matches(reading), []
    for query in task.queries:
        match = matches.get(query.id)
        if match is None or match.failure or query.positive is None or query.form == "grid":
            continue
        scores = match.scores.ravel()
        margin = float(scores[query.positive] - np.delete(scores, query.positive).max())
        judged.append((margin, query, scores))
    judged.sort(key=lambda one: -one[0])
    groups = (
        ("Right by far", "the largest margins of the right candidate", [one for one in judged if one[0] > 0]),
        ("Wrong by far", "the largest margins of a wrong candidate", [one for one in judged[::-1] if one[0] < 0]),
        ("Ties", "the right candidate shares its score", [one for one in judged if one[0] == 0]),
    )
    return [
        Gallery(
            title=title,
            note=f"{note}; {min(len(chosen), shown):,} of {len(chosen):,}",
            pictures=[_picture(query, scores) for _, query, scores in chosen[:shown]],
        )
        for title, note, chosen in groups
        if chosen
    ]


def _picture(query: Query, scores: np.ndarray) -> Picture:
    positive = query.positive or 0
    best = int(scores.argmax())
    if query.form == "texts":
        place, order = 0, np.argsort(-scores, kind="stable")[:_TEXTS].tolist()
        lines = [f"{'✓' if one == positive else '✗'} {query.texts[one]} ({scores[one]:+.4f})" for one in order]
    else:
        place = best
        lines = [query.texts[0], f"image {best + 1} of {query.count} chosen; right: {positive + 1}"]
    picture = query.images[place]
    try:
        uri = data_uri(picture.load() if isinstance(picture, Crop) else open_image(picture))
    except (DiffsightError, OSError):
        uri = None
    return Picture(uri=uri, alt=f"{query.id}: {lines[0]}", lines=lines, good=best == positive, title=query.id)
