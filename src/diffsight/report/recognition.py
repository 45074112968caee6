"""The report on a run that classifies images."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.report import charts, describing, stored
from diffsight.report.blocks import Block, Cell, Chart, Column, Section, Table, Text, Tile, Tiles
from diffsight.report.galleries import galleries
from diffsight.report.numbers import NOTHING, briefly, count, interval, plural, rate, share
from diffsight.report.pictures import Images
from diffsight.report.reading import Reading, Recognition

MATRIX = 30  # Classes of a confusion matrix at most.
LISTED = 200  # Classes that are listed at most.
CONFUSIONS = 30


def recognition_sections(
    reading: Reading, answers: Recognition, images: Images, *, prefix: str, shown: int
) -> list[Section]:
    """All sections of a run.

    Args:
        reading: The run.
        answers: Its answers.
        images: Where its images are.
        prefix: Of all ids, unique in the page.
        shown: Images in a gallery at most.
    """
    metrics = reading.metrics or {}
    sections = [
        Section(id=f"{prefix}-result", title="Result", blocks=[*describing.warnings(reading), headline(reading)]),
        Section(id=f"{prefix}-classes", title="Classes", blocks=_classes(answers)),
        Section(
            id=f"{prefix}-confusion",
            title="Confusions and calibration" if metrics.get("calibration") else "Confusions",
            blocks=[*_confusions(answers), *_calibration(metrics, prefix)],
        ),
        Section(id=f"{prefix}-cost", title="Cost and noise levels", blocks=_errors(reading, prefix)),
    ]
    sections += galleries(reading, answers, images, prefix=prefix, shown=shown)
    sections.append(Section(id=f"{prefix}-facts", title="What this run is", blocks=[describing.facts(reading)]))
    return [section for section in sections if section.blocks]


def headline(reading: Reading) -> Tiles:
    """Accuracy with interval, coverage, ties, calibration and cost."""
    metrics, answers = reading.metrics or {}, reading.recognition
    main = metrics["metric"]
    tiles = []
    for key, label in (("top1", "accuracy"), ("mean_per_class", "mean per class"), ("top5", "top-5 accuracy")):
        if (value := metrics[key]) is not None:
            detail = f"95 % {interval(value)}"
            if key == main and answers is not None:
                detail += f"; a guess: {1 / max(1, len(answers.classes)):.1%}"
            tiles.append(Tile(label=label, value=share(value["value"]), detail=detail, main=key == main))
    tiles.sort(key=lambda tile: not tile.main)
    if not tiles:
        tiles.append(Tile(label="accuracy", value=NOTHING, detail="the images have no labels", main=True))
    tiles += _cues(metrics.get("cue_conflict"))
    scored, failed = metrics["scored"], metrics["failed"]
    coverage = f"{scored:,} of {plural(metrics['images'], 'image')} scored, {failed:,} failed"
    tiles.append(Tile(label="coverage", value=share(metrics["coverage"]), detail=coverage))
    tiles.append(Tile(label="ties", value=count(metrics["ties"]), detail="counted as wrong"))
    calls = metrics["calls"]
    if calls["total"]:
        detail = (
            f"median {count(calls['median'])}, 95th percentile {count(calls['p95'])}; {count(calls['total'])} in all"
        )
        tiles.append(Tile(label="calls per image", value=rate(calls["mean"]), detail=detail))
    if speed := metrics.get("speed"):
        detail = f"on {speed.get('device', '?')}, with reading it"
        if (alone := speed.get("images_per_second")) is not None:
            detail += f"; the network alone {rate(alone)} images per second"
        tiles.append(Tile(label="time per image", value=briefly(speed.get("seconds_per_image")), detail=detail))
    if calibration := metrics["calibration"]:
        detail = f"expected calibration error; mean confidence {calibration['mean_confidence']:.3f}"
        tiles.append(Tile(label="ECE", value=f"{calibration['ece']:.3f}", detail=detail))
    return Tiles(tiles)


def _cues(cues: Mapping[str, Any] | None) -> list[Tile]:
    """What decided, shape or texture, if the images are cue conflicts."""
    if cues is None:
        return []
    tiles = []
    for key, detail in (
        ("shape_bias", f"of {plural(cues['shape'] + cues['texture'], 'answer')} that are one of the two"),
        ("texture_accuracy", "answers that are the texture's class; accuracy is the shape's"),
    ):
        if (value := cues[key]) is not None:
            label = key.replace("_", " ")
            tiles.append(Tile(label=label, value=share(value["value"]), detail=f"95 % {interval(value)}; {detail}"))
    return tiles


def _classes(answers: Recognition) -> list[Block]:
    """Accuracy of each class, the worst first where there are too many to list."""
    if not answers.known.any():
        return []
    rows = []
    for index, name in enumerate(answers.classes):
        here = answers.truth == index
        total, right = int(here.sum()), int(answers.right[here].sum())
        if total == 0:
            rows.append((2.0, [name, "0", NOTHING, NOTHING, NOTHING, ""]))
            continue
        found = wilson(right, total)
        wrong = answers.predicted[here & ~answers.right & ~answers.tie]
        usual = ""
        if len(wrong):
            most = np.bincount(wrong[wrong >= 0], minlength=1)
            usual = f"{answers.classes[int(most.argmax())]} ({most.max()})"
        span = Cell(span=(found.low, found.value, found.high))
        numbers = [f"{total:,}", share(found.value), f"[{found.low:.1%}, {found.high:.1%}]"]
        rows.append((found.value, [name, *numbers, span, usual]))
    caption, cut = "Accuracy of each class, with 95 % intervals (Wilson)", len(rows) > LISTED
    if cut:
        rows.sort(key=lambda row: row[0])
        caption += f"; the {LISTED} worst of {len(rows):,} classes"
    columns = [
        Column("class", number=False),
        Column("images"),
        Column("accuracy"),
        Column("95 % interval"),
        Column("0 % to 100 %", number=False),
        Column("mostly taken for", number=False),
    ]
    return [Table(caption=caption, columns=columns, rows=[row for _, row in rows[:LISTED]])]


def _confusions(answers: Recognition) -> list[Block]:
    """Which class was taken for which: a matrix, or the most frequent mistakes among many classes."""
    number = len(answers.classes)
    judged = answers.known & ~answers.tie & (answers.predicted >= 0)
    if not judged.any():
        return []
    pairs = answers.truth[judged] * number + answers.predicted[judged]
    if number > MATRIX:
        return [_most_frequent(answers, pairs)]
    counts = np.bincount(pairs, minlength=number * number).reshape(number, number)
    ties = np.bincount(answers.truth[answers.known & answers.tie], minlength=number)
    columns = [Column("true class", number=False)]
    columns += [Column(str(index + 1), title=name) for index, name in enumerate(answers.classes)]
    columns += [Column("tie")] if ties.any() else []
    rows = []
    for index, name in enumerate(answers.classes):
        total = max(1, int(counts[index].sum() + ties[index]))
        cells: list[str | Cell] = [f"{index + 1} {name}"]
        for other, value in enumerate(counts[index].tolist()):
            shade = int(np.ceil(10 * value / total)) if value else 0
            cells.append(Cell(text=str(value) if value else "·", shade=shade, right=index == other))
        rows.append([*cells, *([str(ties[index])] if ties.any() else [])])
    caption = "Images of each true class (rows) by the class that was answered (columns, by the rows' numbers)"
    return [Table(caption=caption, columns=columns, rows=rows, dense=True)]


def _most_frequent(answers: Recognition, pairs: np.ndarray) -> Table:
    number = len(answers.classes)
    kinds, counts = np.unique(pairs, return_counts=True)
    wrong = kinds // number != kinds % number
    kinds, counts = kinds[wrong], counts[wrong]
    order = np.argsort(-counts, kind="stable")[:CONFUSIONS]
    totals = np.bincount(answers.truth[answers.known], minlength=number)
    rows = [
        [
            answers.classes[kinds[place] // number],
            answers.classes[kinds[place] % number],
            f"{counts[place]:,}",
            share(float(counts[place] / totals[kinds[place] // number])),
        ]
        for place in order
    ]
    columns = [
        Column("true class", number=False),
        Column("answered", number=False),
        Column("images"),
        Column("of the class"),
    ]
    return Table(caption=f"The {len(rows)} most frequent mistakes", columns=columns, rows=rows)


def _errors(reading: Reading, prefix: str) -> list[Block]:
    """What the stored errors say: calls against accuracy, errors by timestep."""
    errors = stored.load_errors(reading)
    if isinstance(errors, str):
        return [Text(errors, "note")] if "settings" in reading.fields else []
    blocks: list[Block] = []
    if line := stored.stopped_early(errors):
        points = stored.other_policies(reading, errors)
        first = f"the first {stored.MOST_IMAGES:,} images" if len(errors.truth) > stored.MOST_IMAGES else "all images"
        caption = (
            f"What {first} would give had each been stopped after 1, 2, 3 … draws, with 95 % intervals; the last point "
            "is the run itself."
        )
        if points:
            caption += " Other policies were replayed on the stored errors."
        blocks.append(Chart(svg=charts.budget(line, points, name=f"{prefix}-budget"), caption=caption))
    rows = stored.by_timestep(errors)
    if len(rows) > 1:
        caption = (
            "Mean denoising error of the true class and of its closest rival, which is the other class that stayed in "
            "longest; below, how much larger the rival's error is (mean with 95 % interval): where it is far above 0 % "
            "the noise level tells classes apart."
        )
        if not errors.complete:
            caption += (
                f" Only of the {plural(int(rows[0]['images']), 'image')} that took the most draws: harder than the "
                "rest, which were decided earlier."
            )
        svg = charts.by_timestep(rows, loss=errors.loss, name=f"{prefix}-timesteps")
        blocks.append(Chart(svg=svg, caption=caption))
    return blocks


def _calibration(metrics: dict[str, Any], prefix: str) -> list[Block]:
    """How far the stated confidence can be believed."""
    if (found := metrics.get("calibration")) is None:
        return []
    caption = (
        f"Points on the dashed line would be perfectly calibrated; whiskers are 95 % intervals. Expected calibration "
        f"error {found['ece']:.3f} (15 bins), mean confidence {found['mean_confidence']:.3f}, accuracy "
        f"{metrics['top1']['value']:.3f}."
    )
    svg = charts.reliability(found["bins"], found["ece"], name=f"{prefix}-reliability")
    return [Chart(svg=svg, caption=caption), *_selective(metrics)]


def _selective(metrics: dict[str, Any]) -> list[Block]:
    """What is gained by leaving the least sure answers out."""
    found = (metrics.get("selective") or {}).get("accuracy_at")
    if not found:
        return []
    rows = [
        [f"surest {one['coverage']:.0%}", share(one["value"]), interval(one), Cell(span=_span(one))] for one in found
    ]
    columns = [
        Column("images", number=False),
        Column("accuracy"),
        Column("95 % interval"),
        Column("0 % to 100 %", number=False),
    ]
    return [Table(caption="Accuracy if only the surest images were answered", columns=columns, rows=rows)]


def _span(estimate: Mapping[str, float]) -> tuple[float, float, float]:
    return estimate["low"], estimate["value"], estimate["high"]
