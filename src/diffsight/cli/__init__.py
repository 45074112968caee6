"""The command line. Nothing heavy is imported before a command needs it, so that ``--help`` answers at once."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from diffsight.cli import (
    classify,
    compare,
    convert,
    distil,
    diversity,
    doctor,
    evaluate,
    features,
    layers,
    ls,
    match,
    match_fit,
    networks,
    output,
    probing,
    report,
    rescore,
    robustness,
    search,
    synthesize,
    train,
    validate,
)
from diffsight.errors import DiffsightError

# What Typer raises for wrong options; of its family only BadParameter has a public name in every version.
_UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="diffsight",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(classify.classify)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(train.train)
app.command()(networks.export)
app.command()(rescore.rescore)
app.command()(robustness.robustness)
app.command()(report.report)
app.command("ls")(ls.ls)
app.command()(validate.validate)
app.command()(synthesize.synthesize)
app.command()(diversity.diversity)
app.command()(diversity.gaussian)
app.command()(distil.distil)
app.command()(convert.convert)
app.command()(layers.layers)
app.command()(doctor.doctor)

on_features = typer.Typer(rich_markup_mode=None, help="Frozen features: extract, probe, search, compare.")
on_features.command()(features.extract)
on_features.command()(probing.probe)
on_features.command()(search.search)
on_features.command()(probing.predict)
on_features.command()(features.cka)
app.add_typer(on_features, name="features")

on_match = typer.Typer(
    rich_markup_mode=None, help="Images and texts: rank one query, run a task, explain a match, learn."
)
on_match.command()(match.query)
on_match.command()(match.run)
on_match.command()(match.explain)
on_match.command()(match_fit.fit)
app.add_typer(on_match, name="match")


def _print_version(asked: bool) -> bool:
    if asked:
        import diffsight

        output.show(f"diffsight {diffsight.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _diffsight(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Recognise images with a pre-trained diffusion model: the class whose prompt denoises an image best.

    Results go to stdout, messages and progress to stderr. Exit codes: 0 all well, 2 a wrong command or something that
    it needs is missing, 3 finished but some images failed, 130 interrupted.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Instead of those of the process.

    Returns:
        The exit code.
    """
    chosen = sys.argv[1:] if arguments is None else list(arguments)
    with output.console():
        try:
            return app(chosen or ["--help"], prog_name="diffsight", standalone_mode=False) or 0
        except DiffsightError as error:
            return output.refuse(str(error))
        except _UsageError as error:
            command = error.ctx.command_path if error.ctx else "diffsight"
            text = " ".join(error.format_message().split()).rstrip(".")
            return output.refuse(f"{text}. See '{command} --help'.")
