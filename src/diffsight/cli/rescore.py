"""``diffsight rescore``: other settings on a run's stored errors, without the model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsight.cli import options, output
from diffsight.errors import InputError

if TYPE_CHECKING:
    from diffsight.evaluation.learned_weights import LearnedWeights
    from diffsight.evaluation.metrics.paired import PairedComparison


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
    vote: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Let the draws vote: majority, or weighted by timestep (default: none, errors are averaged).",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(
            metavar="X", help="Of the probabilities, p ~ exp(-X * error) (default: from the scatter of the draws)."
        ),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Probabilities fitted to the labels of the run's other images: temperature or platt "
            "(default: none, from the scatter of the draws).",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Timestep weights that were learnt (default: none).")
    ] = None,
    learn_to: Annotated[
        Path | None,
        typer.Option(
            "--learn-weights",
            metavar="FILE",
            help="Learn timestep weights from this run's labels, keep them in FILE, and score the images that they "
            "were not learnt from (default: none are learnt).",
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of the weights to learn: buckets, 20 parts of time; or cubic, a polynomial (default: buckets).",
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose error the learnt weights multiply: eps, or x0 as in Clark & Jaini (default: eps).",
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(metavar="X", help="Of each class's labelled images, how many to learn from (default: 0.5)."),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Also tell the difference to another run as it is, image by image; may be the same run (default: "
            "none; with learnt weights the run with its own).",
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Score a run again with other settings, without the model.

    What is not given stays as it was in the run, and nothing in the run is changed. With --learn-weights or --weights
    the result is not zero-shot, and says so.
    """
    with output.interruptible("The run is as it was."):
        from diffsight.evaluation.metrics.paired import compare_answers, read_answers
        from diffsight.evaluation.rescoring import Changes, rescore_run

        options.check_names(loss=loss, weighting=weighting, ensemble=ensemble)
        if draws is not None and policy is None:
            raise InputError("--draws belongs to a policy: name it, too, for example --policy exhaustive.")
        asked = options.make_policy(policy, draws).to_dict() if policy is not None else None
        given: dict[str, Any] = {"loss": loss, "ensemble": ensemble, "policy": asked, "vote": vote, "scale": scale}
        given["calibration"] = calibration
        learnt = _weights(run, weights, learn_to, weighting, loss=loss, form=form, space=space, share=share)
        changes = Changes(weighting=weighting, weights=learnt, **given)
        again = rescore_run(run, changes, name="re-scored")
        other = None
        if against is not None:
            other = read_answers(against)
        elif learnt is not None:
            given["loss"] = learnt.loss
            unlearnt = Changes(**given)
            other = rescore_run(run, unlearnt, name="with the run's own weights").answers
        compared = None if other is None or not again.answers.labels else compare_answers(again.answers, other)
        if learnt is not None and learn_to is not None:
            from diffsight.evaluation.learned_weights import save_weights

            save_weights(learnt, learn_to)
    metrics = again.metrics
    if as_json:
        shown: dict[str, Any] = {"run": str(run), "metrics": metrics}
        if learnt is not None:
            shown["weights"] = {k: v for k, v in learnt.to_dict().items() if k != "images"} | {
                "file": str(learn_to or weights),
                "images": len(learnt.images),
            }
        if compared is not None:
            shown["against"] = compared.to_dict()
        output.show_json(shown)
    else:
        _show(metrics, learnt, compared, learn_to)
    return 3 if metrics["failed"] else 0


def _weights(
    run: Path,
    weights: Path | None,
    learn_to: Path | None,
    weighting: str | None,
    *,
    loss: str | None,
    form: str | None,
    space: str | None,
    share: float | None,
) -> "LearnedWeights | None":
    """The learnt weights that were asked for: read from their file, or learnt now."""
    if learn_to is None:
        options_of = {"--form": form, "--space": space, "--share": share}
        if idle := [name for name, value in options_of.items() if value is not None]:
            raise InputError(f"{idle[0]} says how weights are learnt: give --learn-weights FILE, too.")
        if weights is None:
            return None
    from diffsight.evaluation.learned_weights import learn_weights, load_weights

    if weighting is not None:
        raise InputError(f"Give learnt weights or --weighting {weighting}, not both.")
    if weights is not None and learn_to is not None:
        raise InputError("--learn-weights learns weights, --weights reads them: give one of the two.")
    if weights is not None:
        return load_weights(weights)
    return learn_weights(
        run, form=form or "buckets", space=space or "eps", loss=loss, share=0.5 if share is None else share
    )


def _show(
    metrics: dict[str, Any],
    learnt: "LearnedWeights | None",
    compared: "PairedComparison | None",
    learn_to: Path | None,
) -> None:
    output.show_metrics(metrics)
    if "protocol" in metrics:
        output.show(f"Labels were used: {metrics['protocol']}.")
    if learnt is not None:
        output.show(
            f"Weights ({learnt.form}, {learnt.space}) of {len(learnt.images)} images of {learnt.source} and "
            f"{learnt.draws} draws; {metrics['left_out']} of this run's images were left out."
        )
    if compared is not None:
        gap = compared.difference
        output.show(
            f"Against {compared.names[1]}, on {compared.images} images: {gap.value:+.1%} [{gap.low:+.1%}, "
            f"{gap.high:+.1%}], p = {compared.p_value:.2g}; only this one is right: {compared.first_only}, "
            f"only the other: {compared.second_only}."
        )
    if learn_to is not None:
        output.show(f"Weights: {learn_to}")
