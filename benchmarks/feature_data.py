"""Which photograph is a crop from: a small recognition task of scikit-image's photographs, made offline."""

import hashlib
from collections.abc import Iterator
from importlib.resources import files

import numpy as np
from PIL import Image

from diffsight.data.decoding import open_image
from diffsight.data.sources import Source

NAMES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png"),
    *("hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)
SIDE = 64
PER_PHOTOGRAPH = 60


def crops(half: str) -> Source:
    """Squares of 64 pixels at random places of the left or the right half of each photograph; the halves never meet.

    Args:
        half: ``"left"`` or ``"right"``.
    """
    made = dict(_crops(half))
    return Source(
        name=f"crops/{half}",
        ids=tuple(made),
        read=lambda id: Image.fromarray(made[id]),
        labels=tuple(NAMES.index(id.partition("/")[0]) for id in made),
        class_names=tuple(name.partition(".")[0].replace("_", " ") for name in NAMES),
        digest=lambda id: hashlib.sha256(made[id].tobytes()).digest(),
    )


def _crops(half: str) -> Iterator[tuple[str, np.ndarray]]:
    for number, name in enumerate(NAMES):
        picture = np.asarray(open_image(str(files("skimage.data").joinpath(name))))
        middle = picture.shape[1] // 2
        picture = picture[:, :middle] if half == "left" else picture[:, middle:]
        rng = np.random.default_rng([number, half == "left"])
        for index in range(PER_PHOTOGRAPH):
            top, left = (int(rng.integers(0, side - SIDE + 1)) for side in picture.shape[:2])
            yield f"{name}/{index:02d}", picture[top : top + SIDE, left : left + SIDE]
