"""The options that several commands share, and what they stand for."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffsight.errors import InputError, nearest

if TYPE_CHECKING:
    from diffsight.backbones import Backbone
    from diffsight.evaluation.task import Task
    from diffsight.scoring.elimination import Policy
    from diffsight.zero_shot.settings import Settings

POLICY = "When a class is out: forecast, exhaustive, staged, t-test, race or pooled-race"
DRAWS = "The most draws (timestep and noise) of an image"
LOSS = "l1, l2, huber, or kl for models with learned variance"
WEIGHTING = "Timestep weights: uniform, snr, vdm, exp or vlb"
ENSEMBLE = "How the prompts of a class become one score: mean, min, mixture or embedding"

Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A model of 'diffsight ls models', hf:ORG/REPO[@REVISION], a folder in diffusers' format, or "
        "a model file (.yaml).",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A paper's settings to the letter, from 'diffsight ls presets' (default: none, the best we can show).",
    ),
]
PolicyName = Annotated[str | None, typer.Option("--policy", metavar="NAME", help=f"{POLICY} (default: forecast).")]
Draws = Annotated[int | None, typer.Option(min=1, metavar="N", help=f"{DRAWS} (default: the policy's own).")]
Loss = Annotated[str | None, typer.Option(metavar="NAME", help=f"{LOSS} (default: l2).")]
WeightingName = Annotated[
    str | None, typer.Option("--weighting", metavar="NAME", help=f"{WEIGHTING} (default: uniform).")
]
EnsembleName = Annotated[str | None, typer.Option("--ensemble", metavar="NAME", help=f"{ENSEMBLE} (default: mean).")]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="Prompt with {} for the class name; may be repeated (default: of preset or task, or 'a photo of a {}.').",
    ),
]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the noise.")]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Denoiser rows per step; does not change results (default: by the model's size)."
    ),
]
Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: the GPU if there is one).")
]
Dtype = Annotated[
    str | None, typer.Option(metavar="NAME", help="fp32, bf16 or fp16 (default: bf16 on a GPU that has it, else fp32).")
]
Compile = Annotated[
    str | None,
    typer.Option(
        "--compile",
        metavar="MODE",
        help="torch.compile the denoiser: default, reduce-overhead or max-autotune; for long runs (default: do not).",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="Only the first N images (default: all).")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables (default: tables).")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only print what it would cost, after scoring up to 8 images (default: do it)."),
]


def load_model(name: str, device: str | None, dtype: str | None, *, compile: str | None = None) -> "Backbone":
    """Load a model; only a download may show a progress bar.

    Args:
        name: Of the model.
        device: Where it runs.
        dtype: In which precision.
        compile: A mode of torch.compile, see `speed_up`.

    Raises:
        ModelError: If it cannot be loaded.
        InputError: If the device, dtype or mode does not exist.
    """
    from diffsight.backbones import cards, load

    known = cards().get(name)
    if not (name.startswith("hf:") or (known and known.repo)):
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers obeys it, too, for "Loading weights".
    backbone = load(name, device=device, dtype=dtype)
    if compile is None:
        return backbone
    from diffsight.backbones.speed import speed_up

    return speed_up(backbone, compile=compile)


def check_templates(backbone: "Backbone", templates: Sequence[str] | None) -> None:
    """Refuse templates for a model that reads no text.

    Raises:
        InputError: Then.
    """
    if templates and backbone.class_names:
        raise InputError(f"{backbone.name} takes class ids and reads no text: leave out --template.")


def batch_rows(backbone: "Backbone", asked: int | None) -> int:
    """Denoiser rows per step: what the user said, else as many as fit ordinary memory, 256 for small latents.

    A GPU that runs out of memory halves its batches by itself; a CPU would start to swap, so it gets fewer.
    """
    if asked is not None:
        return asked
    channels, height, width = backbone.latent_shape
    budget = 2**17 if backbone.device.type == "cpu" else 2**20
    return max(1, min(256, budget // (channels * height * width)))


def make_policy(name: str | None, draws: int | None) -> "Policy":
    """The policy of that name with its most draws replaced.

    Args:
        name: None for the default policy.
        draws: None for the policy's own.

    Raises:
        InputError: If there is no such policy, or it cannot do with so few draws.
    """
    from diffsight.scoring.policies import policy_from_dict
    from diffsight.zero_shot.settings import Settings

    policy = Settings().policy if name is None else policy_from_dict({"name": name})
    if draws is None:
        return policy
    settings = policy.to_dict()
    if "num_draws" in settings:
        return policy_from_dict(settings | {"num_draws": draws})
    if draws < 2:
        raise InputError(f"The policy {policy.name!r} needs at least 2 draws. Use --policy exhaustive with --draws 1.")
    if "samples" in settings:
        usual = settings["samples"]
        return policy_from_dict(settings | {"samples": [max(1, count * draws // usual[-1]) for count in usual]})
    return policy_from_dict(settings | {"max_draws": draws, "min_draws": min(settings["min_draws"], draws)})


def make_settings(
    *,
    preset: str | None,
    policy: str | None,
    draws: int | None,
    loss: str | None,
    weighting: str | None,
    ensemble: str | None,
    seed: int,
) -> "Settings":
    """All settings of the score, before any model is loaded.

    Raises:
        InputError: If a name is unknown, or a preset is given together with what it fixes.
    """
    from diffsight.zero_shot.settings import Settings
    from diffsight.zero_shot.settings import preset as paper

    asked = {"policy": policy, "draws": draws, "loss": loss, "weighting": weighting, "ensemble": ensemble}
    if preset is not None:
        if surplus := [f"--{name}" for name, value in asked.items() if value is not None]:
            raise InputError(f"--preset {preset} fixes that already: leave out {' and '.join(surplus)}, or --preset.")
        return replace(paper(preset).settings, seed=seed)
    check_names(loss=loss, weighting=weighting, ensemble=ensemble)
    usual = Settings()
    return Settings(
        policy=make_policy(policy, draws),
        loss=loss or usual.loss,
        weighting=weighting or usual.weighting,
        ensemble=ensemble or usual.ensemble,
        seed=seed,
    )


def check_names(*, loss: str | None, weighting: str | None, ensemble: str | None) -> None:
    """Refuse unknown names before anything is loaded.

    Raises:
        InputError: If there is one; the message says what was probably meant.
    """
    from diffsight.diffusion.weighting import BY_NAME
    from diffsight.scoring.scorer import LOSSES
    from diffsight.zero_shot.settings import ENSEMBLES

    asked = {"loss": (loss, (*LOSSES, "kl")), "weighting": (weighting, BY_NAME), "ensemble": (ensemble, ENSEMBLES)}
    for option, (name, known) in asked.items():
        if name is not None and name not in known:
            raise InputError(f"Unknown {option} {name!r}. {nearest(name, known)}")


def read_classes(names: Sequence[str] | None, file: Path | None) -> tuple[str, ...] | None:
    """Class names from ``--classes`` (separated by commas) or ``--classes-file`` (one per line), None without either.

    Raises:
        InputError: If both are given, or the file cannot be read.
    """
    if names and file:
        raise InputError("Give --classes or --classes-file, not both.")
    if names:
        return tuple(name.strip() for part in names for name in part.split(","))
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The file of classes {file} cannot be read: {error}.") from error
    return tuple(line.strip() for line in lines if line.strip())


def trained_on(model: str) -> "Task | None":
    """The task whose classes an embedded model has seen in training, or None for other models."""
    from diffsight.backbones.cards import cards
    from diffsight.evaluation.task import load_task

    card = cards().get(model)
    return None if card is None or card.trained_on is None else load_task(card.trained_on)


def honesty(model: str, task: str | None = None) -> str | None:
    """What has to be said beside the numbers of an embedded model; None for other models, and on tasks but its own."""
    from diffsight.backbones.cards import cards
    from diffsight.backbones.cards import honesty as said_of

    card = cards().get(model)
    other = task is not None and (card is None or card.trained_on != task)
    return None if other else said_of(model)
