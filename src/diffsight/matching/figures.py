"""A picture of an explanation: the image, and a heat-map for each word."""

from pathlib import Path
from typing import Any

import numpy as np

from diffsight.data.images import images_from
from diffsight.errors import InputError
from diffsight.matching.explaining import Explanation
from diffsight.store.disk import make


def draw_explanation(explanation: Explanation, image: Any, path: Path | str) -> None:  # noqa: ANN401 - one image
    """Draw where each word looked, and what the caption explains.

    Words differ in how much attention they get, and places in how much of it goes to words at all. Both are taken out,
    as factors: red is where a word gets more than its share, blue is less.

    Args:
        explanation: From `ImageTextMatcher.explain`.
        image: The image that was explained.
        path: Where the picture goes; its ending chooses the format.

    Raises:
        InputError: If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("A figure needs matplotlib. Install it: pip install 'diffsight[plot]'.") from error
    picture = images_from(image)[0]
    height, width = explanation.maps.shape[1:]
    words = list(zip(explanation.words[1:-1], explanation.maps[1:-1], strict=True))
    shares = np.log2(np.stack([found for _, found in words]))
    shares -= shares.mean(axis=0)
    shares -= shares.mean(axis=(1, 2), keepdims=True)
    panels = 2 + len(words)
    columns = min(panels, 7)
    rows = -(-panels // columns)
    figure = Figure(figsize=(1.6 * columns, 1.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    shown = picture.resize((8 * width, 8 * height))
    axes[0].imshow(shown)
    axes[0].set_title("image", fontsize=8)
    limit = float(np.abs(explanation.gain).max()) or 1.0
    axes[1].imshow(explanation.gain, cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes[1].set_title("error explained", fontsize=8)
    for axis, (word, _), relative in zip(axes[2:], words, shares, strict=False):
        axis.imshow(np.asarray(shown.convert("L")), cmap="gray", extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        axis.imshow(relative, cmap="RdBu_r", vmin=-1, vmax=1, alpha=0.7, interpolation="bilinear")
        axis.set_title(word, fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    path = Path(path)
    make(path.resolve().parent)
    figure.savefig(path, dpi=120)
