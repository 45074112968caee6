"""What ``diffsight classify`` found out, as a table and as JSON."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffsight.cli import output

if TYPE_CHECKING:
    from diffsight.zero_shot.settings import Setup
    from diffsight.zero_shot.verdict import Verdict


def slug(name: str) -> str:
    """A class name as a folder may have it: ``T-shirt/top`` and ``t_shirt top`` are ``t-shirt-top``."""
    return re.sub(r"[\W_]+", "-", name.casefold()).strip("-")


@dataclass(frozen=True, slots=True)
class Picture:
    """An image file.

    Attributes:
        path: Where it is.
        name: What it is called in the table.
        folder: The sub-folder in which it was found, which may be its class.
    """

    path: Path
    name: str
    folder: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came out: one verdict and, where it is known, one true class for each picture."""

    pictures: Sequence[Picture]
    verdicts: "Sequence[Verdict]"
    classes: tuple[str, ...]
    truths: Sequence[str | None]
    seconds: float

    @property
    def failed(self) -> int:
        """How many pictures have no answer."""
        return sum(verdict.failure is not None for verdict in self.verdicts)

    @property
    def judged(self) -> list[bool]:
        """Of each scored picture with a known class, whether the answer is right; a tie is not."""
        return [
            not verdict.tie and self.classes[verdict.label] == truth
            for verdict, truth in zip(self.verdicts, self.truths, strict=True)
            if truth is not None and verdict.label is not None
        ]

    def totals(self) -> dict[str, Any]:
        """Images, cost and, if any class is known, how many are right."""
        calls, judged = sum(verdict.calls for verdict in self.verdicts), self.judged
        return {
            "images": len(self.verdicts),
            "failed": self.failed,
            "ties": sum(verdict.tie for verdict in self.verdicts),
            "calls": calls,
            "calls_per_image": calls / max(1, len(self.verdicts) - self.failed),
            "calls_per_second": calls / max(self.seconds, 1e-9),
            "seconds": self.seconds,
            "right": sum(judged) if judged else None,
            "judged": len(judged),
        }


def show(answers: Answers, top: int, meaning: str) -> None:
    """Print a table with a row per picture, then the totals.

    Args:
        answers: What to print.
        top: How many classes to name for each picture.
        meaning: What to say beside the number of right answers.
    """
    totals = answers.totals()
    places = range(1, min(top, len(answers.classes)))
    header = ["image", "label", "p"]
    for place in places:
        header += ["runner-up" if place == 1 else f"{place + 1}.", "p"]
    header += ["calls", *([""] if totals["judged"] else [])]
    rows = [header]
    for picture, verdict, truth in zip(answers.pictures, answers.verdicts, answers.truths, strict=True):
        if verdict.failure is not None:
            rows.append([picture.name, f"failed: {verdict.failure}"])
            continue
        order = _order(verdict)
        label = " = ".join(answers.classes[index] for index in verdict.tied)
        row = [picture.name, f"{label} (tie)" if verdict.tie else label, f"{verdict.probabilities[order[0]]:.3f}"]
        for place in places:
            row += [answers.classes[order[place]], f"{verdict.probabilities[order[place]]:.3f}"]
        row.append(f"{verdict.calls:,}")
        if totals["judged"]:
            right = not verdict.tie and answers.classes[order[0]] == truth
            row.append("" if truth is None else "right" if right else f"wrong, it is {truth}")
        rows.append(row)
    output.show(output.table(rows, align="<<>" + "<>" * len(places) + "><"))
    images = "1 image" if totals["images"] == 1 else f"{totals['images']:,} images"
    output.show(
        f"{images}, {totals['calls']:,} calls, {totals['calls_per_image']:,.1f} calls per image, "
        f"{totals['calls_per_second']:,.0f} calls/s, {output.duration(totals['seconds'])}"
        + (f", {totals['ties']} tied" if totals["ties"] else "")
        + (f", {totals['failed']} failed" if totals["failed"] else "")
    )
    if totals["judged"]:
        output.show(f"{totals['right']} of {totals['judged']} right; {meaning}.")


def document(answers: Answers, setup: "Setup", top: int, note: str | None) -> dict[str, Any]:
    """All of it as JSON values."""

    def entry(picture: Picture, verdict: "Verdict", truth: str | None) -> dict[str, Any]:
        ranked = [
            {"label": answers.classes[index], "probability": float(verdict.probabilities[index])}
            for index in _order(verdict)[:top]
        ]
        return {
            "image": str(picture.path),
            "label": ranked[0]["label"] if ranked else None,
            "probability": ranked[0]["probability"] if ranked else None,
            "tied": [answers.classes[index] for index in verdict.tied] if verdict.tie else [],
            "top": ranked,
            "truth": truth,
            "calls": verdict.calls,
            "failure": verdict.failure,
        }

    return {
        "model": {"name": setup.backbone.name, **setup.backbone.identity()},
        "settings": setup.settings.to_dict(),
        "classes": list(answers.classes),
        "images": [entry(*row) for row in zip(answers.pictures, answers.verdicts, answers.truths, strict=True)],
        "totals": answers.totals(),
        "note": note,
    }


def _order(verdict: "Verdict") -> list[int]:
    """Classes with the label first, then by probability; nothing for a failure."""
    return [verdict.label, *(i for i in verdict.ranking if i != verdict.label)] if verdict.label is not None else []
