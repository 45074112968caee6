"""From photographs that nobody labelled, and class names, to a small network in an ONNX file.

    python examples/distil_photographs.py OUT PHOTOGRAPHS [MOST [EPOCHS [MODEL [NAME …]]]]

A diffusion model says how probable each class is for each photograph, which is slow, and the network learns to say the
same, and is fast. Sub-folders and their names are not looked at. The class names are those of clothes, unless others
are given. Real images are learnt from, so the result is called "distilled" and not "zero-shot". With the few
photographs and epochs that are set here it only shows the way.
"""

import sys
import time
from pathlib import Path

from diffsight import Forecast, Settings, TrainSettings, load
from diffsight.evaluation.distilling import Recipe, distil, open_photographs
from diffsight.synthesis.classes import Classes
from diffsight.synthesis.export import load_onnx

CLOTHES = (
    "t-shirt=T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def main(
    out: str, photographs: str, most: str = "12", epochs: str = "2", model: str = "tiny-fashion", *names: str
) -> None:
    """Label, learn, export, use."""
    place = Path(out)
    source = open_photographs(photographs)
    source = source.select(range(0, len(source), -(-len(source) // int(most))))  # spread over all
    recipe = Recipe(
        backbone=load(model),
        classes=Classes.parse(names or CLOTHES),
        photographs=source,
        scoring=Settings(policy=Forecast(max_draws=16)),
        training=TrainSettings(epochs=int(epochs)),  # network="resnet-18"
    )
    began = time.monotonic()
    found = distil(recipe, place, export=place / "network.onnx")
    sys.stdout.write(f"{found['sources']['photographs']} photographs labelled and learnt: {found['label']}\n")
    sys.stdout.write(f"{found['export']}, {time.monotonic() - began:.0f} s\n")

    network = load_onnx(place / "network.onnx")
    for id in source.ids[:3]:
        sys.stdout.write(f"{id}: {network.predict([source.read(id)])[0]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
