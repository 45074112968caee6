"""`fit_adapter`: from a few queries with known answers to an adapter."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffsight.backbones.base import Backbone, Condition, ReadsText
from diffsight.backbones.encoders.dual import DualEncoder
from diffsight.backbones.models.classes import refuse_unconditional
from diffsight.data.queries import Query
from diffsight.errors import InputError
from diffsight.matching import scores
from diffsight.matching.adapters import Adapter, model_identity, with_prompt
from diffsight.matching.candidates import Candidates, Prepared, candidate_sets, prepare
from diffsight.matching.contest import measured
from diffsight.matching.lora import injected, lora_state
from diffsight.matching.options import FitOptions, fit_options
from diffsight.matching.settings import MatchSettings, level_range, weights_of
from diffsight.matching.statistics import L2, Statistics
from diffsight.matching.training import Example, Trainer
from diffsight.matching.weighing import Weighted, features_of, fit_weights
from diffsight.scoring.elimination import Exhaustive
from diffsight.scoring.scorer import LOSSES, Scorer

log = logging.getLogger(__name__)
Progress = Callable[[int, int, float | None], None]

_TOGETHER = 16  # Queries measured between two reports of progress.


def fit_adapter(
    backbone: Backbone,
    queries: Sequence[Query],
    *,
    options: FitOptions | str = "weights",
    settings: MatchSettings | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> Adapter:
    """Learn from queries whose answers are known. The model is left as it was.

    Args:
        backbone: The model.
        queries: One image and texts, or one text and images, with the right candidate; or as many images as texts, of
            which each row and each column is learnt from. One with an image or text that cannot be read is left out
            and logged; ``notes["failed"]`` counts them.
        options: What is learnt and how; or a name that `fit_options` knows.
        settings: As they will be matched with. Its score is what a prompt or lora makes better; weights are a score of
            their own.
        batch_size: Rows per call of the model; does not change results. Training takes fewer where memory ends.
        progress: Called with what is done, all there is to do, and the loss: steps; or for weights queries that are
            measured, with a loss once they are fitted.

    Raises:
        InputError: If there is no query, one has no right candidate, none can be read, or the model has not what is to
            be learnt.
        ModelError: If PEFT is missing for lora, or the device has too little memory.
        NumericsError: If training diverges.
    """
    options = fit_options(options) if isinstance(options, str) else options
    settings, queries = settings or MatchSettings(), tuple(queries)
    if settings.batch_leak is not None:
        raise InputError("Queries are learnt from one by one, and nothing leaks between them: leave out batch_leak.")
    policy = settings.policy if isinstance(settings.policy, Exhaustive) else Exhaustive(num_draws=settings.draws)
    _check(backbone, queries, options, policy.num_draws)
    weighs = options.kind == "weights"
    score = Weighted(((0.0,) * (1 + options.attention),)) if weighs else settings.score
    ready = prepare(
        backbone,
        replace(settings, score=score),
        [Candidates(pictures=query.images, texts=query.texts, policy=policy) for query in queries],
        batch_size=batch_size,
    )
    failures = dict(ready.failures)
    examples = {
        place: Example(images=field.images, texts=field.texts, sets=candidate_sets(queries[place]))
        for field, place in zip(ready.fields, ready.places, strict=True)
    }
    measured_of: dict[int, Statistics] = {}
    if weighs:
        measured_of = dict(zip(examples, _measure(ready, policy.num_draws, score, progress), strict=True))
        bad = [place for place, one in measured_of.items() if not np.isfinite(features_of(one)).all()]
        failures |= dict.fromkeys(bad, "the network gave a value that is not finite; try --dtype fp32")
        examples = {place: one for place, one in examples.items() if place not in bad}
    for place, why in sorted(failures.items()):
        log.warning("Query %s is not learnt from: %s", queries[place].id, why)
    if not examples:
        raise InputError(f"None of {len(queries)} queries can be learnt from. {next(iter(failures.values()))}")
    learnt: dict[str, Any] = {}
    if weighs:
        statistics, sets = [measured_of[place] for place in examples], [one.sets for one in examples.values()]
        learnt["weights"], loss = fit_weights(statistics, sets, options)
        if progress is not None:
            progress(len(ready.fields), len(ready.fields), loss)
    else:
        learnt, loss = _train(backbone, ready, list(examples.values()), options, settings, progress)
    notes = {"examples": len(examples), "failed": len(failures), "seed": options.seed, "loss": loss}
    notes |= {"rank": options.rank, "alpha": options.scale} if options.kind == "lora" else {}
    notes |= {"options": options.to_dict()}
    return Adapter(
        kind=options.kind, model=model_identity(backbone), settings=settings.to_dict(), notes=notes, **learnt
    )


def _check(backbone: Backbone, queries: Sequence[Query], options: FitOptions, draws: int) -> None:
    """Refuse what cannot be learnt, before anything is computed."""
    weighs = options.kind == "weights"
    if isinstance(backbone, DualEncoder):
        raise InputError(f"{backbone.name} is a CLIP model, which has no adapters. Give a diffusion model.")
    refuse_unconditional(backbone)
    if not queries:
        raise InputError("There is no query to learn from. Give at least one, with its right candidate.")
    unknown = [query.id for query in queries if query.form != "grid" and query.positive is None]
    if unknown:
        raise InputError(
            f"{len(unknown)} of {len(queries)} queries have no positive, such as {unknown[0]!r}: nothing can be learnt "
            "from them. Say which candidate is right, or leave them out."
        )
    if not isinstance(backbone, ReadsText) and (options.kind == "prompt" or (weighs and options.attention)):
        raise InputError(
            f"{backbone.name} reads no text as tokens: there is no attention to weigh, and no prompt. Fit 'lora', or "
            "'weights' with attention=False, which weighs the gain of the error by noise level."
        )
    if weighs and options.bands > draws:
        raise InputError(f"{draws} draws cannot fill {options.bands} bands. Take fewer bands, or more draws.")


def _measure(ready: Prepared, draws: int, score: scores.Score, progress: Progress | None) -> list[Statistics]:
    found: list[Statistics] = []
    while len(found) < len(ready.fields):
        found += measured(ready.ledger, ready.fields[len(found) : len(found) + _TOGETHER], draws, score)
        if progress is not None:
            progress(len(found), len(ready.fields), None)
    return found


def _train(
    backbone: Backbone,
    ready: Prepared,
    examples: Sequence[Example],
    options: FitOptions,
    settings: MatchSettings,
    progress: Progress | None,
) -> tuple[dict[str, Any], float]:
    """Train a prompt or low-rank matrices: what was learnt, by its name in `Adapter`, and the loss."""
    scorer, levels = ready.ledger.scorer, level_range(settings, backbone)

    def score(under_text: Tensor, under_null: Tensor | None, weights: Tensor) -> Tensor:
        columns, size = scorer.losses[len(LOSSES) :], math.prod(backbone.latent_shape)
        return differentiable(settings.score, under_text, under_null, weights, columns=columns, size=size)

    def trained(parameters: Sequence[nn.Parameter], now: Callable[[], Scorer]) -> float:
        return Trainer(
            scorer=now,
            parameters=parameters,
            images=ready.ledger.images,
            examples=examples,
            score=score,
            needs_null=settings.score.needs_null,
            weights=weights_of(settings, torch.arange(*levels), backbone),
            levels=levels,
            options=options,
            batch_size=ready.ledger.batch_size,
        ).train(progress=progress)

    if options.kind == "prompt":
        prompt = nn.Parameter(start_of_prompt(scorer.condition, options.tokens, options.seed))
        loss = trained([prompt], lambda: replace(scorer, condition=with_prompt(scorer.condition, prompt)))
        return {"prompt": prompt.detach().cpu()}, loss
    with injected(backbone.network, rank=options.rank, alpha=options.scale, seed=options.seed) as parameters:
        loss = trained(parameters, lambda: scorer)
        return {"lora": lora_state(backbone.network)}, loss


def start_of_prompt(condition: Condition, tokens: int, seed: int) -> Float[Tensor, "tokens width"]:
    """The mean of all tokens of the texts, and a little noise by which the new tokens differ; fp32."""
    states = condition.tensors["encoder_hidden_states"].detach().float().flatten(0, 1)
    noise = torch.randn(tokens, states.shape[1], generator=torch.Generator().manual_seed(seed)).to(states.device)
    return states.mean(0) + 0.02 * states.std() * noise


def differentiable(
    score: scores.Score,
    pairs: Float[Tensor, "draws pairs columns"],
    null: Float[Tensor, "draws pairs columns"] | None,
    weights: Float[Tensor, "draws pairs"],
    *,
    columns: tuple[str, ...],
    size: int,
) -> Float[Tensor, "draws pairs"]:
    """`Score.per_draw` in torch, which has a gradient.

    Args:
        score: What is compared.
        pairs: What a scorer gives under the text.
        null: The same under the empty text; None where it is equal for all candidates and is left out.
        weights: Of each draw's error.
        columns: Names of the attention's columns.
        size: Numbers in a latent.

    Raises:
        InputError: If the score is none of those by name.
    """

    def gain(power: float) -> Tensor:
        under_text, under_null = (0 if x is None else (x[..., L2] * size) ** power for x in (pairs, null))
        return weights * (under_null - under_text)

    def attention(kind: str) -> Tensor:
        shares = torch.as_tensor(scores.layer_shares(columns), dtype=pairs.dtype, device=pairs.device)
        under_text = pairs[..., len(LOSSES) :] @ shares
        if kind == "ignore":
            return under_text
        under_null = 0 if null is None else null[..., len(LOSSES) :] @ shares
        return under_text - under_null if kind == "subtract" else (under_text + under_null) / 2

    match score:
        case scores.PMI():
            return gain(1.0) / size
        case scores.DenoisingError():
            return -weights * pairs[..., L2]
        case scores.Attention():
            return attention(score.null)
        case scores.Hybrid():
            return score.alpha * attention(score.null) + score.beta * gain(0.5)
    raise InputError(f"The score {score.name!r} has no gradient. Use one of {', '.join(scores.SCORES)}.")
