"""Pictures of pictures: what each trick drew of each class."""

import io
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffsight.errors import ImageError, InputError
from diffsight.store.disk import put, writing
from diffsight.synthesis.dataset import SyntheticSet, read_synthetic

_LEAST, _MOST, _GAP, _TEXT = 64, 96, 4, 13
_COLUMNS, _ROWS = 12, 20
_INK, _PAPER, _MISSING = "#1a1a1a", "white", "#e8e8e8"


def contact_sheets(out: Path | str, *, columns: int = _COLUMNS, rows: int = _ROWS) -> dict[str, Path]:
    """Write a contact sheet of each trick into a set's directory.

    Args:
        out: The set's directory.
        columns: Images of a class.
        rows: Classes; of more, as many are shown, evenly spaced.

    Returns:
        The file of each trick.

    Raises:
        SourceError: If there is no finished set.
        RunError: If the disk refuses.
    """
    found = read_synthetic(out)
    written = {}
    for trick in sorted(set(found.rows.column("trick").to_pylist())):
        buffer = io.BytesIO()
        contact_sheet(found, trick, columns=columns, rows=rows).save(buffer, "PNG")
        written[trick] = Path(out) / f"contact-{re.sub(r'[^a-z0-9-]+', '-', trick.lower())}.png"
        with writing(written[trick]):
            put(written[trick], buffer.getvalue())
    return written


def contact_sheet(images: SyntheticSet, trick: str, *, columns: int = _COLUMNS, rows: int = _ROWS) -> Image.Image:
    """Draw a row for each class with the first images that a trick made of it, and their domain where they have one.

    Args:
        images: A set.
        trick: Name of the trick.
        columns: Images of a class.
        rows: Classes; of more, as many are shown, evenly spaced.

    Raises:
        InputError: If the set has no such trick.
    """
    tricks = np.array(images.rows.column("trick").to_pylist())
    if trick not in tricks:
        raise InputError(f"{images.path} has no image of the trick {trick!r}. It has: {', '.join(sorted({*tricks}))}.")
    domains = images.rows.column("domain").to_pylist()
    count = len(images.classes)
    shown = range(count) if count <= rows else np.unique(np.linspace(0, count - 1, rows).round().astype(int)).tolist()
    chosen = {label: np.flatnonzero((tricks == trick) & (images.labels == label))[:columns] for label in shown}
    across = max(len(numbers) for numbers in chosen.values())
    font, title = ImageFont.load_default(_TEXT), ImageFont.load_default(_TEXT + 5)
    names = {label: _short(images.classes[label]) for label in shown}
    margin = _GAP * 3 + int(max(font.getlength(name) for name in names.values()))
    labelled = any(domains[number] for numbers in chosen.values() for number in numbers)
    tile = _side(images.image(0))
    height = tile + _GAP + (_TEXT if labelled else 0)
    head = 2 * _GAP + _TEXT + 12
    heading = f"{trick}: {images.card['model']['name']}, {len(images):,} synthetic images in all"
    width = max(margin + across * (tile + _GAP) + _GAP, int(title.getlength(heading)) + 4 * _GAP)
    sheet = Image.new("RGB", (width, head + len(chosen) * height + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((2 * _GAP, _GAP + 2), heading, fill=_INK, font=title)
    small = ImageFont.load_default(9)
    for line, label in enumerate(shown):
        top = head + line * height
        pen.text((2 * _GAP, top + (tile - _TEXT) // 2), names[label], fill=_INK, font=font)
        for column, number in enumerate(chosen[label].tolist()):
            left = margin + column * (tile + _GAP)
            sheet.paste(_tile(images, number, tile), (left, top))
            if labelled:
                pen.text((left, top + tile), _fitting(domains[number], small, tile), fill=_INK, font=small)
    return sheet


def _side(image: Image.Image) -> int:
    """Side of a tile: small images keep their pixels, each as a square, and large ones are made smaller."""
    side = max(image.size)
    return min(_MOST, side * -(-_LEAST // side))


def _tile(images: SyntheticSet, number: int, side: int) -> Image.Image:
    tile = Image.new("RGB", (side, side), _MISSING)
    try:
        image = images.image(number)
    except ImageError:
        return tile
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    tile.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    return tile


def _short(name: str, limit: int = 24) -> str:
    return name if len(name) <= limit else f"{name[: limit - 1]}…"


def _fitting(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """As much of a text as fits under a tile."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
