"""The options that the commands on features share, and what they stand for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.backbones import Backbone
    from diffsight.features.extraction import Extraction
    from diffsight.features.heads.specs import HeadSpec

TaskName = Annotated[
    str,
    typer.Option("--task", metavar="TASK", help="A task of 'diffsight ls tasks', a YAML file, or a folder of images."),
]
Root = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where the data lies (default: $DIFFSIGHT_DATA, then ~/.cache/diffsight)."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAMES",
        help="Layers of 'diffsight layers', separated by commas; may be repeated (default: the papers' depth).",
    ),
]
Timesteps = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NUMBERS",
        help="Timesteps, separated by commas; may be repeated (default: one with the noise of t = 90 in ADM).",
    ),
]
PoolKind = Annotated[str, typer.Option("--pool", metavar="KIND", help="How maps are pooled: avg, max or gem.")]
Grid = Annotated[
    int, typer.Option(min=0, metavar="N", help="Side of the grid to which maps are pooled; 0 keeps whole maps.")
]
NoiseKind = Annotated[
    str,
    typer.Option(
        "--noise",
        metavar="KIND",
        help="fixed: one draw for each image; none; resample: several draws kept apart; mean: their mean.",
    ),
]
Draws = Annotated[int, typer.Option(min=1, metavar="N", help="Noise draws of each image, for resample and mean.")]
Independent = Annotated[
    bool,
    typer.Option("--independent-noise", help="Other noise at every timestep (default: the same at all of them)."),
]
Views = Annotated[
    int, typer.Option(min=1, metavar="N", help="Augmented views of each training image, the first being itself.")
]
NoFlip = Annotated[
    bool, typer.Option("--no-flip", help="Never mirror a view: for digits and text (default: mirror every second).")
]
Prompt = Annotated[str, typer.Option(metavar="TEXT", help="What the model reads with every image (default: nothing).")]
Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Where features are kept (default: $DIFFSIGHT_CACHE, then ~/.cache/diffsight/features)."
    ),
]
Storage = Annotated[str, typer.Option(metavar="NAME", help="How features are kept: fp32, or fp16 for half the disk.")]
TestShare = Annotated[
    float,
    typer.Option(metavar="X", help="Of a folder, which has no test part: the share of each class kept for testing."),
]
Figure = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Draw it: a .png, .svg or .pdf (default: no picture).")
]


def names(values: Sequence[str] | None) -> list[str] | None:
    """What was given with commas or several times, as one list; None if nothing was."""
    if values is None:
        return None
    return [name.strip() for value in values for name in value.split(",")]


def numbers(values: Sequence[str] | None) -> list[int] | None:
    """The same for whole numbers.

    Raises:
        InputError: If one is none.
    """
    found = names(values)
    if found is None:
        return None
    for text in found:
        if not text.removeprefix("-").isdecimal():
            raise InputError(f"--timesteps are whole numbers separated by commas; got {text!r}.")
    return [int(text) for text in found]


def make_plan(
    backbone: "Backbone",
    *,
    layers: Sequence[str] | None,
    timesteps: Sequence[str] | None,
    pool: str = "avg",
    grid: int = 1,
    noise: str = "fixed",
    draws: int = 1,
    independent: bool = False,
    views: int = 1,
    no_flip: bool = False,
    prompt: str = "",
    seed: int = 0,
) -> "Extraction":
    """What is to be extracted, from the options.

    Raises:
        InputError: If an option makes no sense.
    """
    from diffsight.features.extraction import plan
    from diffsight.features.noise import Noise
    from diffsight.features.pooling import Pool

    return plan(
        backbone,
        layers=names(layers),
        timesteps=numbers(timesteps),
        noise=Noise(kind=noise, draws=draws, shared=not independent, seed=seed),
        pool=Pool(pool, grid or None),
        prompt=prompt,
        views=views,
        flip=not no_flip,
    )


def make_head(name: str, settings: str | None) -> "HeadSpec":
    """A head by its name, with options as a JSON object.

    Raises:
        InputError: If there is no such head or option, or the text is no JSON object.
    """
    from diffsight.features.heads.specs import head_from_dict

    try:
        values: Any = json.loads(settings) if settings else {}
    except ValueError as error:
        raise InputError(
            f"--head-options must be a JSON object such as '{{\"pool\": 2}}'; got {settings!r}."
        ) from error
    if not isinstance(values, dict):
        raise InputError(f"--head-options must be a JSON object such as '{{\"pool\": 2}}'; got {settings!r}.")
    return head_from_dict({"name": name, **values})
