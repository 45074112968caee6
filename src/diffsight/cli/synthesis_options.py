"""What ``diffsight synthesize`` makes of its options: classes, tricks and settings."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.backbones import Backbone
    from diffsight.synthesis.bag import TrickOptions
    from diffsight.synthesis.classes import Classes
    from diffsight.synthesis.plan import SynthesisSettings
    from diffsight.synthesis.tricks import Merged, Trick

log = logging.getLogger(__name__)

ClassNames = Annotated[
    list[str] | None,
    typer.Option(
        "--classes",
        metavar="NAMES|FILE",
        help="Class names separated by commas, or a file with one per line; NAME or FOLDER=NAME (no default).",
    ),
]
ClassesFile = Annotated[
    Path | None,
    typer.Option("--classes-file", metavar="FILE", help="The same, from a file with one per line (default: none)."),
]
ClassesOfTask = Annotated[
    str | None,
    typer.Option(
        "--task", metavar="NAME", help="Instead, the classes of a task of 'diffsight ls tasks' (default: none)."
    ),
]
TrickName = Annotated[
    str, typer.Option("--trick", metavar="NAME", help="One of 'diffsight ls tricks', or several joined by '+'.")
]
PerClass = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Images of each class (default: 100, or the preset's).")
]
Domains = Annotated[
    list[str] | None,
    typer.Option(
        "--domain",
        metavar="WORDS",
        help="A kind of picture for multi-domain and satellite; may be repeated (default: the paper's ten).",
    ),
]
Form = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="What is said of class and domain (default: '{a domain} of {a class}')."),
]
OwnTemplates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="Prompt with {class} or {a class} for the trick templates; may be repeated (default: none).",
    ),
]
AliasFile = Annotated[
    Path | None, typer.Option("--aliases", metavar="FILE", help="JSON: other names of each class (default: none).")
]
Superclass = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS|FILE", help="What the classes are a type of, or JSON that says it of each (default: none)."
    ),
]
BankFile = Annotated[
    Path | None,
    typer.Option(
        "--bank",
        metavar="FILE",
        help="Prompts: one template per line, or JSON with a list for each class (default: none).",
    ),
]
SamplerName = Annotated[
    str | None,
    typer.Option("--sampler", metavar="NAME", help="ddim, dpm++ or euler (default: dpm++, of flows and EDM euler)."),
]
Steps = Annotated[int | None, typer.Option(min=1, metavar="N", help="Denoising steps (default: 20).")]
GuidanceScale = Annotated[
    str | None,
    typer.Option(
        metavar="S|LOW-HIGH",
        help="Guidance of all tricks but random-guidance: 1 is none; or a range, uniform (default: 3).",
    ),
]
WholeScales = Annotated[
    bool | None,
    typer.Option(
        "--whole-scales/--any-scales",
        help="Only whole numbers as random scales, as in the paper's code (default: any, or the preset's).",
    ),
]
Size = Annotated[
    int | None, typer.Option(min=4, metavar="N", help="Side of the images written (default: as they are drawn).")
]
Format = Annotated[
    str, typer.Option("--format", metavar="NAME", help="folder of images, or wds: webdataset's tar files.")
]
Flat = Annotated[
    float, typer.Option(min=0, metavar="D", help="Drop images whose grey levels deviate less than this; 0 keeps them.")
]
NearDuplicates = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="BITS",
        help="Drop an image that differs from another of its class in fewer of 256 bits; 0 keeps it (default: 12).",
    ),
]
Unwanted = Annotated[
    Path | None,
    typer.Option("--reject", metavar="DIR", help="Pictures that are dropped wherever they appear (default: none)."),
]
LabelCheck = Annotated[
    str | None,
    typer.Option(
        metavar="self|MODEL",
        help="Drop an image that this takes for another class: the model itself, or a CLIP or diffusion model "
        "(default: no check).",
    ),
]
MaxAttempts = Annotated[
    int, typer.Option(min=1, metavar="N", help="How often an image is drawn before it is given up.")
]


def read_class_names(names: Sequence[str] | None, file: Path | None, task: str | None) -> "Classes":
    """The classes, from ``--classes``, ``--classes-file`` or ``--task``.

    Raises:
        InputError: If not exactly one of them is given, or a name is wrong.
    """
    from diffsight.synthesis.classes import Classes

    if bool(names) + (file is not None) + (task is not None) != 1:
        raise InputError("Which classes? Give one of --classes NAMES, --classes-file FILE and --task NAME.")
    if task is not None:
        from diffsight.evaluation.task import load_task

        chosen = load_task(task)
        known = chosen.class_names
        if not known and chosen.source.startswith("folder:"):
            known = chosen.names(chosen.open().class_names)
        if not known:
            raise InputError(f"The task {task!r} takes its class names from its data. Give them with --classes.")
        return Classes.of_task(known)
    given = list(names or ())
    alone = Path(given[0]) if len(given) == 1 and "," not in given[0] else None
    if alone is not None and alone.is_file():
        file = alone
    elif alone is not None and alone.suffix:
        raise InputError(f"There is no file {alone}, and one name makes no classes: separate names by commas.")
    return Classes.parse(options.read_classes(None, file) or () if file else options.read_classes(given, None) or ())


def read_guidance(text: str | None, usual: Any) -> Any:  # noqa: ANN401 - Guidance, which imports too much
    """A guidance law from ``3`` or ``1-5``.

    Raises:
        InputError: If it is neither.
    """
    if text is None:
        return usual
    low, dash, high = text.replace(":", "-").partition("-")
    try:
        values = float(low), float(high if dash else low)
    except ValueError:
        raise InputError(f"--guidance-scale is a number or a range such as 1-5; got {text!r}.") from None
    return replace(usual, low=values[0], high=values[1])


def make_trick_options(
    usual: "TrickOptions",
    class_names: Sequence[str],
    *,
    guidance: str | None,
    whole: bool | None,
    domains: list[str] | None,
    form: str | None,
    templates: list[str] | None,
    aliases: Path | None,
    superclass: str | None,
    bank: Path | None,
) -> "TrickOptions":
    """What tricks are made with: the usual, or a preset's, and what the user says."""
    from diffsight.synthesis.banks import read_aliases, read_bank, read_superclasses

    kind: Any = superclass
    if superclass is not None and superclass.endswith(".json"):
        kind = read_superclasses(superclass, class_names)
    random = usual.random if whole is None else replace(usual.random, whole=whole)
    return replace(
        usual,
        guidance=read_guidance(guidance, usual.guidance),
        random=random,
        domains=tuple(domains) if domains else None,
        form=form,
        templates=tuple(templates) if templates else None,
        aliases=read_aliases(aliases, class_names) if aliases is not None else None,
        superclass=kind,
        bank=read_bank(bank, class_names) if bank is not None else None,
    )


def make_fitting_trick(
    spec: str, trick_options: "TrickOptions", backbone: "Backbone", class_names: Sequence[str]
) -> tuple["Trick | Merged", list[str]]:
    """The trick that was asked for, without those of the paper's domains that the model cannot read.

    Returns:
        The trick, and what has to be said of it: in the log now, and on the set's card.

    Raises:
        InputError: If there is no such trick, or an option does not fit it.
        PromptError: If a template, domain or alias is wrong.
    """
    from diffsight.synthesis.bag import make_trick
    from diffsight.synthesis.plan import fit_domains

    fitting, left_out = fit_domains(spec, trick_options, backbone, class_names)
    if not left_out:
        return make_trick(spec, fitting), []
    note = (
        f"Of the paper's ten domains, {', '.join(left_out)} are left out: with them {backbone.name} cannot read the "
        "prompts of all classes to their ends."
    )
    log.warning("%s --domain chooses others.", note)
    return make_trick(spec, fitting), [note]


def make_settings(
    *,
    preset: str | None,
    sampler: str | None,
    steps: int | None,
    size: int | None,
    antialias: bool,
    per_class: int | None,
) -> tuple["SynthesisSettings", "TrickOptions", str]:
    """Settings without trick and filters, what tricks are usually made with, and the model if none is named.

    Raises:
        InputError: If a preset is unknown, or given together with what it fixes.
    """
    from diffsight.backbones.sampling import Sampler
    from diffsight.synthesis.bag import TrickOptions
    from diffsight.synthesis.plan import PAPER_TRICKS, SynthesisSettings
    from diffsight.synthesis.plan import preset as paper

    usual = Sampler()
    if preset is None:
        chosen = Sampler(name=sampler or usual.name, steps=steps or usual.steps)
        settings = SynthesisSettings(sampler=chosen, size=size, antialias=antialias, per_class=per_class or 100)
        return settings, TrickOptions(), "tiny-fashion"
    found = paper(preset)
    asked = {"sampler": sampler, "steps": steps, "size": size, "no-antialias": None if antialias else True}
    if surplus := [f"--{name}" for name, value in asked.items() if value is not None]:
        raise InputError(f"--preset {preset} fixes that already: leave out {' and '.join(surplus)}, or --preset.")
    settings = SynthesisSettings(
        sampler=found.sampler, size=found.size, antialias=found.antialias, per_class=per_class or found.per_class
    )
    return settings, PAPER_TRICKS, found.model
