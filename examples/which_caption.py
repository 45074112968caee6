"""Which caption fits which picture, which picture fits which caption, and where the model looked for each word.

    python examples/which_caption.py OUT [PICTURES [MODEL]]

PICTURES is a folder of files that are named as what they show: "a red circle.png". Without it four scenes are drawn, of
the kind that tiny-shapes knows, which is in the package and runs offline. For photographs of the world take sd-1.5 or
another model of `diffsight ls models`. OUT gets a picture with a heat-map for each word of the first caption.
"""

import sys
from pathlib import Path

import numpy as np

from diffsight import ImageTextMatcher
from diffsight.data.scenes import caption, draw, random_scene
from diffsight.matching.figures import draw_explanations


def draw_scenes(folder: Path) -> Path:
    """Draw four scenes of two things, and name them by their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for _ in range(4):
        scene = random_scene(rng, differs=("shape", "colour"))
        draw(scene).save(folder / f"{caption(scene.things, ('shape', 'colour'))}.png")
    return folder


def main(out: str, pictures: str | None = None, model: str = "tiny-shapes") -> None:
    """Score every picture with every caption, and explain one."""
    folder = Path(pictures) if pictures else draw_scenes(Path(out) / "pictures")
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in (".png", ".jpg", ".jpeg"))
    captions = [file.stem for file in files]

    matcher = ImageTextMatcher(model)  # the score "pmi" compares captions, and pictures too
    scores = matcher.score(files, captions)
    for name, best in zip(captions, scores.argmax(axis=1), strict=True):
        sys.stdout.write(f"the picture of {name!r} fits best: {captions[best]!r}\n")
    for name, best in zip(captions, scores.argmax(axis=0), strict=True):
        sys.stdout.write(f"the caption {name!r} fits best: the picture of {captions[best]!r}\n")

    figure = Path(out) / "words.png"
    draw_explanations([matcher.explain(files[0], captions[0])], files[0], figure)
    sys.stdout.write(f"{figure}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
