"""What is learnt on features: heads by name, trained together, used, and kept."""

from diffsight.features.heads.specs import (
    CNN,
    HEADS,
    MLP,
    Attention,
    DifFormer,
    HeadSpec,
    Linear,
    Logistic,
    Neighbours,
    head_from_dict,
)

__all__ = [
    "CNN",
    "HEADS",
    "MLP",
    "Attention",
    "DifFormer",
    "HeadSpec",
    "Linear",
    "Logistic",
    "Neighbours",
    "head_from_dict",
]
