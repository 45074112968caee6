"""Write the sample photographs: the first ten test photographs of each class of Fashion-MNIST, as PNG.

    python recipes/samples.py

They are test photographs: no embedded checkpoint was trained on them.
"""

import argparse
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

# Folder names: the data set's class names without what folder names must not hold.
FOLDERS = ("t-shirt-top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle-boot")


def main() -> None:
    """Write ``OUT/CLASS/NNNNN.png``, named by the position in the test set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--out", type=Path, default=Path("src/diffsight/assets/samples"))
    args = parser.parse_args()
    images = np.frombuffer(gzip.decompress((args.data / "t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((args.data / "t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    for label, name in enumerate(FOLDERS):
        folder = args.out / name
        folder.mkdir(parents=True, exist_ok=True)
        for position in np.flatnonzero(labels == label)[:10]:
            Image.fromarray(images.reshape(-1, 28, 28)[position]).save(folder / f"{position:05d}.png", optimize=True)


if __name__ == "__main__":
    main()
