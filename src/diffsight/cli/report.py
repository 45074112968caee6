"""``diffsight report``: runs as one page that can be shown around."""

from pathlib import Path
from typing import Annotated

import typer

from diffsight.cli import options, output


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of 'diffsight evaluate', or of 'diffsight match run'."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page, a name that ends in .html.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Where the pictures are: the folder that was evaluated, or where data sets lie (default: where the "
            "run's command says).",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, max=100, metavar="N", help="The most pictures of a gallery; 0 for none.")
    ] = 18,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Of the page (default: task and model).")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a page that is there (default: leave it alone).")
    ] = False,
    as_json: options.Json = False,
) -> int:
    """Show a run, or several side by side, on one page without scripts, to be read anywhere or printed.

    Numbers with intervals, cost, confusions, calibration, errors by timestep, images and failures. A run that is not
    finished is shown as such. The runs themselves are not changed.
    """
    with output.interruptible("Nothing was written."):
        from diffsight.report.page import check_out, make_report, write_report

        check_out(out, replace=force)
        page = make_report(runs, data=data, shown=images, title=title)
        size = write_report(page, out, replace=force)
    if as_json:
        output.show_json(
            {
                "page": str(out),
                "bytes": size,
                "runs": page.runs,
                "differences": page.differences,
                "paired": page.paired,
            }
        )
        return 0
    output.show(f"Page: {out} ({size / 1e6:.2f} MB)")
    for run in page.runs:
        if not run["finished"]:
            output.show(f"{run['run']} is not finished: the page says so.")
    if page.differences:
        output.show(f"The runs differ in their {' and '.join(page.differences)}: compare their numbers with care.")
    return 0
