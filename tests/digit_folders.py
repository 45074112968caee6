"""Folders of small digits: written as generated images are, or as any folder of photographs."""

import json

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

NAMES = ("number one", "number six", "number zero")
_DIGITS = (1, 6, 0)


def digits(count, *, skip=0):
    """For each class so many 8×8 pictures, in grey from 0 to 255."""
    known = load_digits()
    scaled = np.round(known.images * (255 / 16)).astype(np.uint8)
    return [scaled[known.target == digit][skip : skip + count] for digit in _DIGITS]


def write_photographs(folder, count, *, skip=0, side=16):
    """A folder for each class; ``skip`` leaves out those of another folder."""
    for name, pictures in zip(NAMES, digits(count, skip=skip), strict=True):
        place = folder / name.replace(" ", "_")
        place.mkdir(parents=True)
        for index, picture in enumerate(pictures):
            image = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
            image.save(place / f"{index:05d}.png")
    return folder


def write_generated(folder, count, *, skip=0, side=16):
    """The same as ``diffsight synthesize`` writes them."""
    write_photographs(folder / "images", count, skip=skip, side=side)
    (folder / "dataset.json").write_text(json.dumps({"synthetic": True, "classes": list(NAMES)}))
    return folder
