"""The settings of Mukhopadhyay et al. to the letter, as their released program has them.

All are for their backbone, the unconditional 256-pixel ADM with its 37 blocks (``adm-256-uncond``). Each epoch sees
every image anew: another crop, perhaps mirrored, with another noise. That is one view for each of the 28 epochs here.
The program tests with one noise and no augmentation.

The released program is that of the second paper; what it trains for the tables of the first one is the same but for the
timestep and the grid. The attention head of the first paper is not here, because it is not known how many blocks the
one in its table has. DifFeed runs the network twice and is an estimator of its own, `DifFeedClassifier`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from diffsight.errors import InputError, nearest
from diffsight.features.heads.specs import DifFormer, HeadSpec, Linear

GD2023 = "Mukhopadhyay et al., arXiv:2307.08702"
GD2024 = "Mukhopadhyay et al., ECCV 2024, arXiv:2311.17921"
EPOCHS = 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A paper's features and head.

    Attributes:
        layers: Blocks, as the paper counts them.
        timesteps: Levels of the schedule.
        size: Side of the grid to which maps are averaged.
        views: Augmented views of each training image, each with its own noise.
        head: What is trained.
        recipe: How, a name in `recipes.RECIPES`.
        published: Top-1 accuracy on ImageNet-1k in the paper's table.
        source: Which paper.
    """

    layers: tuple[str, ...]
    timesteps: tuple[int, ...]
    size: int
    views: int = EPOCHS
    head: HeadSpec
    recipe: str
    published: float
    source: str


PRESETS: Mapping[str, Preset] = {
    "gd2023/linear-1": Preset(
        layers=("b24",),
        timesteps=(90,),
        size=1,
        head=Linear(),
        recipe="gd2024/linear",
        published=61.95,
        source=GD2023,
    ),
    "gd2023/linear-2": Preset(
        layers=("b24",),
        timesteps=(90,),
        size=2,
        head=Linear(),
        recipe="gd2024/linear",
        published=64.96,
        source=GD2023,
    ),
    "gd2024/attention": Preset(
        layers=("b24",),
        timesteps=(150,),
        size=16,
        head=DifFormer(),
        recipe="gd2024/attention",
        published=74.6,
        source=GD2024,
    ),
    "gd2024/difformer": Preset(
        layers=("b19", "b24", "b30"),
        timesteps=(90, 150, 300),
        size=16,
        head=DifFormer(),
        recipe="gd2024/difformer",
        published=76.0,
        source=GD2024,
    ),
}


def find_preset(name: str) -> Preset:
    """A preset by its name.

    Raises:
        InputError: If there is none.
    """
    if name not in PRESETS:
        raise InputError(f"Unknown preset {name!r} of features. {nearest(name, PRESETS)}")
    return PRESETS[name]
