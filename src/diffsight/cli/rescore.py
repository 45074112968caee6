"""``diffsight rescore``: other settings on a run's stored errors, without the model."""

from pathlib import Path
from typing import Annotated

import typer

from diffsight.cli import options, output
from diffsight.errors import InputError


def rescore(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a run of 'diffsight evaluate'.")],
    *,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help=f"{options.POLICY} (default: the run's).")] = None,
    draws: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=f"{options.DRAWS} (default: the policy's own).")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="NAME", help=f"{options.LOSS} (default: the run's).")] = None,
    weighting: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"{options.WEIGHTING} (default: the run's).")
    ] = None,
    ensemble: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"{options.ENSEMBLE} (default: the run's).")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Of the probabilities, p ~ exp(-X * error) (default: from the scatter of the draws)."
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Score a run again with other settings, without the model.

    What is not given stays as it was in the run, and nothing in the run is changed.
    """
    with output.interruptible("The run is as it was."):
        from diffsight.evaluation.rescoring import rescore as score_again

        options.check_names(loss=loss, weighting=weighting, ensemble=ensemble)
        if draws is not None and policy is None:
            raise InputError("--draws belongs to a policy: name it, too, for example --policy exhaustive.")
        asked = options.make_policy(policy, draws).to_dict() if policy is not None else None
        metrics = score_again(run, loss=loss, weighting=weighting, policy=asked, ensemble=ensemble, scale=scale)
    if as_json:
        output.show_json({"run": str(run), "metrics": metrics})
    else:
        output.show_metrics(metrics)
    return 3 if metrics["failed"] else 0
