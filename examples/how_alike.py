"""How alike the layers of a diffusion model see images, at little noise and at much.

    python examples/how_alike.py PHOTOGRAPHS [MODEL]

1 is alike, 0 unrelated. Encoder and decoder blocks of one resolution often look alike, which shows as a cross.
"""

import sys

from diffsight import FeatureExtractor, load, open_source
from diffsight.features.cka import cka_matrix


def main(photographs: str, model: str = "tiny-fashion") -> None:
    """Take the features of all layers at two noise levels, and compare all pairs."""
    source = open_source(f"folder:{photographs}")
    backbone = load(model)
    layers = [layer.name for layer in backbone.layers]
    columns = {}
    for timestep in (20, 500):
        maps = FeatureExtractor(backbone, layers, [timestep], pool=2).maps(source)
        columns |= {name: column.flatten(1) for name, column in maps.items()}
    sys.stdout.write(f"{cka_matrix(columns)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
