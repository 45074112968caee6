"""A picture of explanations: the image, and a heat-map for each word of each caption."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffsight.data.images import images_from
from diffsight.errors import InputError
from diffsight.matching.explaining import Explanation
from diffsight.store.disk import make

_ACROSS = 9  # panels in a row at most


def draw_explanations(explanations: Sequence[Explanation], image: Any, path: Path | str) -> None:  # noqa: ANN401
    """Draw where each word looked, and what the caption explains; each caption begins a new row.

    Words differ in how much attention they get, and places in how much of it goes to words at all. Both are taken out,
    as factors: red is where a word gets more than its share, blue is less.

    Args:
        explanations: From `ImageTextMatcher.explain`, all of the same image.
        image: The image that was explained.
        path: Where the picture goes; its ending chooses the format.

    Raises:
        InputError: If matplotlib is not installed, or there is nothing to draw.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("A figure needs matplotlib. Install it: pip install 'diffsight[plot]'.") from error
    if not explanations:
        raise InputError("There is no explanation to draw.")
    picture = images_from(image)[0]
    columns = min(_ACROSS, max(len(one.words) for one in explanations))  # without two marks, with two more panels
    lines = [-(-len(one.words) // columns) for one in explanations]
    figure = Figure(figsize=(1.5 * columns, 1.75 * sum(lines)), layout="constrained")
    axes = figure.subplots(sum(lines), columns, squeeze=False)
    for axis in axes.ravel():
        axis.set_axis_off()
    limit = max(float(np.abs(one.gain).max()) for one in explanations) or 1.0
    start = 0
    for explanation, count in zip(explanations, lines, strict=True):
        panels = iter(axes[start : start + count].ravel())
        start += count
        height, width = explanation.maps.shape[1:]
        shown = picture.resize((8 * width, 8 * height))
        _panel(next(panels), "image").imshow(shown)
        _panel(next(panels), "error explained").imshow(explanation.gain, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for axis, word, relative in zip(panels, explanation.words[1:-1], _relative(explanation), strict=False):
            _panel(axis, word).imshow(
                np.asarray(shown.convert("L")), cmap="gray", extent=(-0.5, width - 0.5, height - 0.5, -0.5)
            )
            axis.imshow(relative, cmap="RdBu_r", vmin=-1, vmax=1, alpha=0.7, interpolation="bilinear")
    path = Path(path)
    make(path.resolve().parent)
    figure.savefig(path, dpi=120)


def _relative(explanation: Explanation) -> Float[np.ndarray, "words h w"]:
    """Attention to each word over what word and place would have without one another, as a power of 2."""
    shares = np.log2(explanation.maps[1:-1])
    shares = shares - shares.mean(axis=0)
    return shares - shares.mean(axis=(1, 2), keepdims=True)


def _panel(axis: Any, title: str) -> Any:  # noqa: ANN401 - matplotlib's
    axis.set_title(title, fontsize=9)
    return axis
