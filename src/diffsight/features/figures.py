"""Heat-maps as pictures, by matplotlib, which is installed with ``pip install 'diffsight[plot]'``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from diffsight.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_WRITTEN = 20  # Cells of larger maps are not labelled.


def heatmap(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str,
    across: str = "",
    down: str = "",
    colour: str = "",
) -> "Figure":
    """Draw a table of numbers in colours; NaN stays white, and small tables have their numbers written in.

    Args:
        values: The numbers.
        rows: Names of the rows.
        columns: Names of the columns.
        title: Above it.
        across: What the columns are.
        down: What the rows are.
        colour: What the numbers are.

    Raises:
        InputError: If matplotlib is not installed.
    """
    check_plotting()
    from matplotlib.figure import Figure

    width = 2.2 + 0.62 * max(4, min(len(columns), _WRITTEN))
    height = 1.6 + 0.34 * max(4, min(len(rows), _WRITTEN))
    figure = Figure(figsize=(max(width, 0.6 + 0.085 * len(title)), height), layout="constrained")
    axes = figure.add_subplot()
    shown = axes.imshow(values, cmap="viridis", aspect="auto")
    slanted = max(map(len, columns)) > 4
    axes.set_xticks(range(len(columns)), columns, rotation=45 if slanted else 0, ha="right" if slanted else "center")
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(labelsize=8 if max(values.shape) <= 40 else 5)
    axes.set(xlabel=across, ylabel=down)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(shown, ax=axes, label=colour)
    if max(values.shape) <= _WRITTEN and np.isfinite(values).any():
        middle = (np.nanmin(values) + np.nanmax(values)) / 2
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                ink = "black" if value > middle else "white"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=ink)
    return figure


def check_plotting() -> None:
    """Refuse to draw without matplotlib.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError("Pictures need matplotlib: pip install 'diffsight[plot]', or leave out the picture.") from None


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a picture.

    Raises:
        InputError: If the ending is not .png, .svg or .pdf, or the file cannot be written.
    """
    check_figure_path(path)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error


def check_figure_path(path: Path) -> None:
    """Refuse a file name that is no picture, before the work is done.

    Raises:
        InputError: If the ending is not .png, .svg or .pdf, or the folder does not exist.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is no picture: its name must end in {', '.join(SUFFIXES)}.")
    if not path.parent.is_dir():
        raise InputError(f"There is no folder {path.parent} for the picture.")
