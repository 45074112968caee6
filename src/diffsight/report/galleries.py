"""Images of a run: right and sure, wrong and sure, ties, failures."""

import numpy as np

from diffsight.report.blocks import Block, Column, Gallery, Picture, Section, Table, Text
from diffsight.report.numbers import plural
from diffsight.report.pictures import Images
from diffsight.report.reading import Reading, Recognition

FAILURES = 50  # Failures that are listed at most.
WITHOUT = 6  # Images in a gallery at most, if they cannot be shown.


def galleries(reading: Reading, answers: Recognition, images: Images, *, prefix: str, shown: int) -> list[Section]:
    """The sections with images, and the failures with their reasons.

    Args:
        reading: The run.
        answers: Its answers.
        images: Where its images are.
        prefix: Of all ids, unique in the page.
        shown: Images in a gallery at most; 0 leaves them out.
    """
    sections = []
    if shown and answers.ids:
        blocks: list[Block] = [] if images.read is not None else [Text(f"Without pictures: {images.reason}", "note")]
        blocks += _answers(answers, images, shown if images.read is not None else min(shown, WITHOUT))
        sections.append(Section(id=f"{prefix}-images", title="Images", blocks=blocks))
    if reading.failures:
        sections.append(Section(id=f"{prefix}-failures", title="Failures", blocks=[failure_table(reading)]))
    return sections


def failure_table(reading: Reading) -> Table:
    """What could not be scored, and why."""
    failures = reading.failures
    noun = ("image", "images") if reading.kind == "recognition" else ("query", "queries")
    caption = f"{plural(len(failures), *noun)} could not be scored"
    if len(failures) > FAILURES:
        caption += f"; the first {FAILURES} of them"
    rows = [[str(one.get("id", "?")), str(one.get("reason", "not stated"))] for one in failures[:FAILURES]]
    return Table(caption=caption, columns=[Column(noun[0], number=False), Column("reason", number=False)], rows=rows)


def _answers(answers: Recognition, images: Images, shown: int) -> list[Block]:
    confidence = np.nan_to_num(answers.confidence, nan=0.0)
    groups = (
        ("Right and sure", "the most confident right answers", answers.right),
        ("Wrong and sure", "the most confident mistakes", answers.known & ~answers.right & ~answers.tie),
        ("Ties", "several classes have exactly the same score", answers.tie),
        ("Without a label", "the most confident answers", ~answers.known & ~answers.tie),
    )
    found: list[Block] = []
    for title, note, chosen in groups:
        places = np.flatnonzero(chosen)
        order = _spread(places[np.argsort(-confidence[places], kind="stable")], answers.predicted, shown)
        if len(order):
            note = f"{note}; {len(order):,} of {len(places):,}"
            found.append(Gallery(title=title, note=note, pictures=[_picture(answers, images, i) for i in order]))
    return found


def _spread(places: np.ndarray, predicted: np.ndarray, shown: int) -> list[int]:
    """The first places, and of each answer no more than its share as long as others are there."""
    kinds: dict[int, list[int]] = {}
    for place in places.tolist():
        kinds.setdefault(int(predicted[place]), []).append(place)
    most = -(-shown // max(1, len(kinds)))
    kept = {place for group in kinds.values() for place in group[:most]}
    order = [place for place in places.tolist() if place in kept]
    order += [place for place in places.tolist() if place not in kept]
    chosen = set(order[:shown])
    return [place for place in places.tolist() if place in chosen]


def _picture(answers: Recognition, images: Images, place: int) -> Picture:
    id, truth, answer = answers.ids[place], int(answers.truth[place]), int(answers.predicted[place])
    tie, confidence = bool(answers.tie[place]), answers.confidence[place]
    said = answers.classes[answer] if answer >= 0 else "no answer"
    lines = [f"a tie, with {said}" if tie else said]
    if truth >= 0 and (tie or truth != answer):
        lines.append(f"is {answers.classes[truth]}")
    if np.isfinite(confidence):
        lines.append(f"{confidence:.1%} sure")
    good = None if truth < 0 else bool(answers.right[place])
    return Picture(uri=images.uri(id), alt=f"{id}: {', '.join(lines)}", lines=lines, good=good, title=id)
