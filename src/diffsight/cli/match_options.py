"""The options that the commands of ``diffsight match`` share, and what they stand for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.matching.matcher import ImageTextMatcher

MatchModel = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="NAME",
        help="A diffusion model, or a CLIP model to compare: a name of 'diffsight ls models', hf:ORG/REPO[@REVISION], "
        "or a folder.",
    ),
]
ScoreName = Annotated[
    str | None,
    typer.Option("--score", metavar="NAME", help="pmi, error, attention or hybrid (default: the adapter's, or pmi)."),
]
MatchPreset = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="A paper's settings to the letter: discffusion.")
]
MatchDraws = Annotated[
    int | None, typer.Option("--draws", min=1, metavar="N", help="Draws (timestep and noise) of a pair (default: 32).")
]
Timesteps = Annotated[
    str | None,
    typer.Option(metavar="LOW,HIGH", help="First and last noise level, as shares of the schedule (default: 0,1)."),
]
AttentionLayers = Annotated[
    str | None,
    typer.Option(
        "--layers", metavar="NAMES", help="Attention layers, such as down.2.0,mid.0 (default: those of the paper)."
    ),
]
BatchLeak = Annotated[
    int | None,
    typer.Option(
        "--reproduce-batch-leak",
        min=2,
        metavar="N",
        help="NOT VALID, only to explain published numbers: average attention over each N queries, as the code of "
        "2305.10722 does (16 in its commands), so that scores share information (default: never).",
    ),
]
AdapterFile = Annotated[
    Path | None, typer.Option("--adapter", metavar="FILE", help="What 'diffsight match fit' learnt (default: nothing).")
]


def make_settings(
    *,
    score: str | None,
    preset: str | None,
    draws: int | None,
    timesteps: str | None,
    layers: str | None,
    seed: int,
    batch_leak: int | None = None,
) -> Any:  # noqa: ANN401 - MatchSettings, which is not imported here
    """All settings of matching, before any model is loaded.

    Raises:
        InputError: If a value makes no sense, or a preset is given together with what it fixes.
    """
    from dataclasses import replace

    from diffsight.matching.settings import MatchSettings, match_preset, with_score

    asked = {"score": score, "draws": draws, "timesteps": timesteps, "layers": layers}
    if preset is not None:
        if surplus := [f"--{name}" for name, value in asked.items() if value is not None]:
            raise InputError(f"--preset {preset} fixes that already: leave out {' and '.join(surplus)}, or --preset.")
        return replace(match_preset(preset), seed=seed, batch_leak=batch_leak)
    settings = MatchSettings(seed=seed)
    if draws is not None:
        settings = replace(settings, draws=draws)
    if layers is not None:
        settings = replace(settings, layers=tuple(name.strip() for name in layers.split(",")))
    if timesteps is not None:
        try:
            low, high = (float(part) for part in timesteps.split(","))
        except ValueError:
            raise InputError(f"--timesteps are two numbers such as 0.4,1; got {timesteps!r}.") from None
        settings = replace(settings, timesteps=(low, high))
    if batch_leak is not None:
        settings = replace(settings if score is None else with_score(settings, score), batch_leak=batch_leak)
    return settings


def load_matcher(
    model: str,
    score: str | None,
    settings: Any,  # noqa: ANN401 - MatchSettings
    adapter: Path | None,
    batch_size: int | None,
    device: str | None,
    dtype: str | None,
) -> "ImageTextMatcher":
    """Load a diffusion model or CLIP.

    Raises:
        ModelError: If it cannot be loaded, or the adapter was fitted for another one.
        InputError: If the score is unknown, or not one of this model or this adapter.
    """
    from diffsight.backbones.encoders.clip import is_clip, load_clip
    from diffsight.matching.adapters import load_adapter, settings_of
    from diffsight.matching.matcher import ImageTextMatcher
    from diffsight.matching.settings import with_score

    # What contradicts itself is refused before a model is loaded.
    asked = settings if score in (None, "clip") else with_score(settings, score)
    learnt = None if adapter is None else load_adapter(adapter)
    if learnt is not None and score != "clip":
        settings_of(learnt, asked, explicit=score is not None)
    if is_clip(model):
        return ImageTextMatcher(load_clip(model, device=device, dtype=dtype), score, settings=settings, adapter=learnt)
    backbone = options.load_model(model, device, dtype)
    rows = options.batch_rows(backbone, batch_size)
    return ImageTextMatcher(backbone, score, settings=settings, adapter=learnt, batch_size=rows)
