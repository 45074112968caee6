"""The card of a synthetic set: what it is, how it was made, what is missing, and how to read it."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffsight.backbones.cards import cards
from diffsight.synthesis.filters import REASONS

_SHOWN = 200  # Classes of larger sets are in dataset.json alone.


def readme(card: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
    """The text of ``README.md``.

    Args:
        card: What ``dataset.json`` holds.
        rows: The rows of the manifest, of which examples are shown.
        notes: Sentences to be said beside the rest.
    """
    settings, model = card["settings"], card["model"]
    classes = [entry["name"] for entry in card["classes"]]
    known = cards().get(model["name"])
    licence = f", whose licence is {known.licence}" if known else ""
    sampler = settings["sampler"]
    parts = [
        f"# Synthetic images of {_listed(classes)}",
        f"{card['images']:,} images of {len(classes)} classes, drawn by {model['name']}{licence}. **None is a "
        "photograph**: each shows what the model draws for a prompt, which can be wrong, and what it learnt, which can "
        "be biased.",
        *(f"> {note}" for note in notes),
        "## How they were made",
        f"From class names alone, after Shipard et al., arXiv:2302.03298; no real image chose anything. Sampler "
        f"{sampler['name']} with {sampler['steps']} steps, seed {settings['seed']}, "
        f"{'as large as drawn' if not settings['resize'] else 'resized to ' + settings['resize']} "
        f"({rows[0]['width']}×{rows[0]['height']} pixels). Weights {model.get('weights', '')[:16]}…, "
        f"{model['dtype']}, diffsight {card['version']}.",
        _table(
            ["trick", "images", "guidance", "example"],
            [_example(name, count, rows) for name, count in card["tricks"].items()],
        ),
        "## What is in them",
        _classes(card),
        _dropped(card),
        "Nothing was drawn over: no safety checker replaced pictures, and no watermark was put in. Every PNG says in "
        "its comment that it is synthetic.",
        "## How to read them",
        _reading(card),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _example(name: str, count: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    of_trick = [row for row in rows if row["trick"] == name]
    scales = [row["guidance_scale"] for row in of_trick]
    low, high = min(scales), max(scales)
    return [name, f"{count:,}", f"{low:g}" if low == high else f"{low:g} to {high:g}", _code(of_trick[0]["prompt"])]


def _classes(card: Mapping[str, Any]) -> str:
    if len(card["classes"]) > _SHOWN:
        return f"The {len(card['classes'])} classes are listed in `dataset.json`."
    entries = [[entry["name"], _code(entry["folder"]), f"{entry['images']:,}"] for entry in card["classes"]]
    return _table(["class", "folder", "images"], entries)


def _dropped(card: Mapping[str, Any]) -> str:
    if not card["dropped"]:
        return f"{card['drawn']:,} images were drawn, and all of them are kept."
    said = "; ".join(f"{count:,} {REASONS.get(reason, reason)}" for reason, count in card["dropped"].items())
    lost = f" {card['missing']:,} are missing: they were given up." if card["missing"] else ""
    return f"{card['drawn']:,} images were drawn. Dropped, and drawn again with other noise: {said}.{lost}"


def _reading(card: Mapping[str, Any]) -> str:
    where = "`images/FOLDER/NUMBER.png`" if card["format"] == "folder" else "webdataset's shards `shards/NUMBER.tar`"
    return (
        f"The images are in {where}. `manifest.parquet` has a row for each: file, class, prompt, guidance scale, seed, "
        "trick and all else that it was made from.\n\n"
        "```python\n"
        "from diffsight.synthesis.dataset import read_synthetic\n"
        "from diffsight.synthesis.generator import recreate\n\n"
        'images = read_synthetic("THIS FOLDER")\n'
        "images.classes, images.labels, images.image(0)\n"
        'recreate("THIS FOLDER", 0)  # draws it again: on the same machine it is the same to the bit\n'
        "```"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in row) + " |" for row in cells)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text.replace('`', '’')}`"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more classes" if len(names) > 5 else "")
