"""Everything that decides a matching score, as one value; the preset of the paper; from settings to a scorer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import Backbone, ReadsText
from diffsight.diffusion.noise import NoiseBank
from diffsight.diffusion.weighting import by_name
from diffsight.errors import InputError, nearest
from diffsight.matching.attention import AttentionProbe, Pooling, find_attention_layers
from diffsight.matching.scores import PMI, Hybrid, Score, score_from_dict
from diffsight.scoring.elimination import Exhaustive, Policy, check_count
from diffsight.scoring.racing import Forecast
from diffsight.scoring.scorer import Scorer

# From how many candidates on it pays to drop some early; below, all draws cost little more.
MANY = 16
TOKENS = ("content", "content+end", "all")


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchSettings:
    """How to match, apart from the model.

    Attributes:
        score: What is compared.
        draws: Draws for each pair where nothing is dropped.
        policy: When a candidate is out. None: all draws for fewer than 16 candidates, `Forecast` from there on.
        timesteps: First and last noise level to look at, as shares of the schedule.
        weighting: Timestep weights of errors by name, as in `diffsight.Settings`.
        pooling: How attention becomes a number.
        layers: Attention layers by name; None for those of He et al.'s code.
        tokens: Which tokens the attention is pooled over: ``content``, ``content+end``, or ``all`` with padding, as
            published.
        seed: Of the noise. All images and texts see the same draws, so that any two scores can be compared.
        batch_leak: None, always, unless published numbers of He et al. are to be explained. Else how many queries make
            a batch whose attention is averaged, as their code does (16 in its commands): **scores then share
            information between queries, and are not valid**; see `diffsight.matching.leak`. The right candidate of a
            query counts as its first one, wherever it stands.
    """

    score: Score = field(default_factory=PMI)
    draws: int = 32
    policy: Policy | None = None
    timesteps: tuple[float, float] = (0.0, 1.0)
    weighting: str = "uniform"
    pooling: Pooling = field(default_factory=Pooling)
    layers: tuple[str, ...] | None = None
    tokens: str = "content"
    seed: int = 0
    batch_leak: int | None = None

    def __post_init__(self) -> None:
        low, high = self.timesteps
        if not 0 <= low < high <= 1:
            raise InputError(
                f"timesteps are the first and last share of the schedule, such as (0.4, 1.0); got {self.timesteps}."
            )
        if self.tokens not in TOKENS:
            raise InputError(f"Unknown tokens {self.tokens!r}. {nearest(self.tokens, TOKENS)}")
        Exhaustive(num_draws=self.draws)
        if self.batch_leak is not None:
            _check_leak(self.batch_leak, self.score, self.policy)

    def policy_for(self, candidates: int) -> Policy:
        """The policy for a set of candidates."""
        if self.policy is not None:
            return self.policy
        return Exhaustive(num_draws=self.draws) if candidates < MANY or self.batch_leak else Forecast()

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values, for a run's fingerprint."""
        return {
            "score": self.score.to_dict(),
            "draws": self.draws,
            "policies": {str(count): self.policy_for(count).to_dict() for count in (2, MANY)},
            "timesteps": list(self.timesteps),
            "weighting": self.weighting,
            "pooling": {
                "pool": self.pooling.pool,
                "temperature": self.pooling.temperature,
                "per_token": self.pooling.per_token,
            },
            "layers": list(self.layers) if self.layers is not None else None,
            "tokens": self.tokens,
            "seed": self.seed,
            **({} if self.batch_leak is None else {"batch_leak": self.batch_leak}),
        }


def match_preset(name: str) -> MatchSettings:
    """Settings by name.

    Args:
        name: ``"discffusion"``: the score that He et al.'s code computes (2305.10722): attention over all tokens
            without division by their number, of both the text and the empty text, plus the gain of the error's norm,
            at 30 timesteps from 10 to 989. The latent is the posterior's mean; the authors sample it anew for every
            candidate. Their average of the attention over a batch is a fault and not part of it; ``batch_leak`` of
            `MatchSettings` has it.

    Raises:
        InputError: If there is no such preset.
    """
    if name != "discffusion":
        raise InputError(f"Unknown matching preset {name!r}. {nearest(name, ['discffusion'])}")
    return MatchSettings(
        score=Hybrid(null="average"),
        draws=30,
        policy=Exhaustive(num_draws=30, spacing="midpoint"),
        timesteps=(0.01, 0.99),
        pooling=Pooling(per_token=False),
        tokens="all",
    )


def _check_leak(size: int, score: Score, policy: Policy | None) -> None:
    """Refuse a leak of what is not shared in the published code."""
    check_count("batch_leak", size, least=2)
    if not score.needs_attention:
        raise InputError(
            f"batch_leak shares attention between queries, and the score {score.name!r} has none. Use the preset "
            "'discffusion', or the score 'attention' or 'hybrid'."
        )
    if not (policy is None or isinstance(policy, Exhaustive)):
        raise InputError(f"batch_leak measures all candidates at all draws; leave out the policy {policy.name!r}.")


def levels_of(settings: MatchSettings, policy: Policy, backbone: Backbone) -> Int[Tensor, " draws"]:
    """The schedule's level of each draw of a policy."""
    low, stop = level_range(settings, backbone)
    return low + policy.grid(stop - low)


def level_range(settings: MatchSettings, backbone: Backbone) -> tuple[int, int]:
    """The first level of the schedule to look at, and the one after the last; at least one."""
    count = len(backbone.schedule)
    low, stop = (round(share * count) for share in settings.timesteps)
    low = min(low, count - 1)
    return low, max(stop, low + 1)


def weights_of(
    settings: MatchSettings, levels: Int[Tensor, " draws"], backbone: Backbone
) -> Float[np.ndarray, " draws"]:
    """Weight of each draw's error in eps-space, with mean 1."""
    values = by_name(settings.weighting, backbone.schedule).to("eps", backbone.schedule).values[levels].numpy()
    return values / values.mean()


def make_scorer(
    backbone: Backbone, settings: MatchSettings, texts: Sequence[str], levels: Int[Tensor, " draws"]
) -> Scorer:
    """Encode texts, and the empty text as the last member of the condition.

    Raises:
        InputError: If the score needs attention and the model has none, or a layer is unknown.
        PromptError: If a text is too long.
    """
    condition = backbone.condition(tuple(texts)).with_null()
    probe = attention_probe(backbone, settings, (*texts, "")) if settings.score.needs_attention else None
    return Scorer(
        backbone=backbone,
        condition=condition,
        levels=levels,
        bank=NoiseBank(seed=settings.seed, shared=True),
        probe=probe,
    )


def attention_probe(backbone: Backbone, settings: MatchSettings, texts: Sequence[str]) -> AttentionProbe:
    """What reads the attention between images and these texts.

    Raises:
        InputError: If the model has no attention to text, or a layer is unknown.
    """
    if not isinstance(backbone, ReadsText):
        raise InputError(f"{backbone.name} reads no text as tokens, so it has no attention to read. Use another score.")
    tokens = backbone.tokens(texts)
    counted = {
        "content": tokens.counted(),
        "content+end": tokens.content | tokens.end,
        "all": torch.ones_like(tokens.content),
    }[settings.tokens]
    layers = find_attention_layers(backbone.network, settings.layers)
    return AttentionProbe(layers=layers, pooling=settings.pooling, tokens=counted)


def with_score(settings: MatchSettings, score: Score | str) -> MatchSettings:
    """The same settings with another score, given as such or by name."""
    return replace(settings, score=score_from_dict({"name": score}) if isinstance(score, str) else score)
