"""From class names alone to a small network in an ONNX file, and what it says of photographs.

    python examples/class_names_to_network.py OUT PHOTOGRAPHS [PER_CLASS [EPOCHS [MODEL [NAME …]]]]

The class names are those of clothes, unless others are given. PHOTOGRAPHS has one sub-folder for each of them; they are
looked at after the training, and choose nothing. With tiny-fashion, which is in the package, it runs offline, and with
the few images and epochs that are set here it only shows the way: take 1000 and 30. For photographs of the world take
sd-1.5 or another model of `diffsight ls models`, and a GPU.
"""

import sys
from pathlib import Path

import numpy as np

from diffsight import (
    SynthesisSettings,
    TrainSettings,
    export_onnx,
    load_task,
    make_trick,
    open_source,
    open_training_set,
    recreate,
    synthesize,
    train_network,
)
from diffsight.evaluation.trained import evaluate_trained, make_trained_job
from diffsight.synthesis.classes import Classes

CLOTHES = (
    "t-shirt=T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def main(
    out: str, photographs: str, per_class: str = "3", epochs: str = "2", model: str = "tiny-fashion", *names: str
) -> None:
    """Draw, train, export, measure."""
    place = Path(out)
    settings = SynthesisSettings(
        trick=make_trick("class-prompt+random-guidance"),  # half of the images each
        per_class=int(per_class),
    )
    drawn = synthesize(model, Classes.parse(names or CLOTHES), place / "set", settings=settings, batch_size=10)
    sys.stdout.write(f"{len(drawn)} images, such as {drawn.row(0)['prompt']!r}: {drawn.files[0]}\n")
    same = np.array_equal(np.asarray(recreate(place / "set", 0)), np.asarray(drawn.image(0)))
    sys.stdout.write(f"drawn again it is {'the same to the bit' if same else 'another'}\n")

    recipe = TrainSettings(epochs=int(epochs))  # network="resnet-18"
    network = train_network(open_training_set(place / "set"), place / "network", settings=recipe).classifiers[0]
    written = export_onnx(network, place / "network.onnx")
    sys.stdout.write(f"{written.path}, {written.bytes / 1e6:.1f} MB: {network.label}\n")

    source = open_source(f"folder:{photographs}")
    metrics = evaluate_trained(make_trained_job(load_task(photographs), network), place / "run")
    sys.stdout.write(f"{metrics['top1']['value']:.0%} of {metrics['scored']} photographs of {source.name}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
