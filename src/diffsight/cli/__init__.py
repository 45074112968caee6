"""The command line. Nothing heavy is imported before a command needs it, so that ``--help`` answers at once."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from diffsight.cli import classify, doctor, evaluate, ls, output, rescore
from diffsight.errors import DiffsightError

# What Typer raises for wrong options; of its family only BadParameter has a public name in every version.
_UsageError = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="diffsight",
    add_completion=False,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(classify.classify)
app.command()(evaluate.evaluate)
app.command()(rescore.rescore)
app.command("ls")(ls.ls)
app.command()(doctor.doctor)


@app.callback()
def _diffsight(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Recognise images with a pre-trained diffusion model: the class whose prompt denoises an image best.

    Results go to stdout, messages and progress to stderr. Exit codes: 0 all well, 2 a wrong command or something that
    it needs is missing, 3 finished but some images failed, 130 interrupted.
    """
    if version:
        import diffsight

        output.show(f"diffsight {diffsight.__version__}")
    elif context.invoked_subcommand is None:
        output.show(context.get_help())


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
            return app(chosen, prog_name="diffsight", standalone_mode=False) or 0
        except DiffsightError as error:
            return output.refuse(str(error))
        except _UsageError as error:
            context = getattr(error, "ctx", None)
            text = " ".join(getattr(error, "format_message", error.__str__)().split()).rstrip(".")
            return output.refuse(f"{text}. See '{context.command_path if context else 'diffsight'} --help'.")
