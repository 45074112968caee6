"""`ImageTextMatcher`: how well images and texts fit, and which candidate fits best."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffsight.backbones.base import Backbone
from diffsight.backbones.classes import refuse_unconditional
from diffsight.backbones.clip import ClipEncoder, is_clip, load_clip
from diffsight.backbones.loading import load
from diffsight.data.images import images_from
from diffsight.data.queries import Query
from diffsight.errors import DiffsightError, InputError
from diffsight.matching.adapters import Adapter, load_adapter, settings_of
from diffsight.matching.candidates import Candidates, applied, run
from diffsight.matching.explaining import Explanation, explain
from diffsight.matching.scores import Score
from diffsight.matching.settings import MatchSettings, with_score
from diffsight.scoring.elimination import Exhaustive, Policy

TOGETHER = 64  # Queries whose requests share batches.
_PAIRS = 4096  # Pairs that are measured together in `ImageTextMatcher.score`.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Match:
    """The answer to one query.

    Attributes:
        id: The query's.
        scores: Of every image with every text, higher is better; NaN after a failure.
        best: Place of the best candidate; None after a failure, in a tie, and where images and texts are paired up.
        tied: Places of all candidates that share the first place exactly; empty unless there is a tie.
        failure: Why there is no answer, or None.
    """

    id: str
    scores: Float[np.ndarray, "images texts"]
    best: int | None = None
    tied: tuple[int, ...] = ()
    failure: str | None = None

    @property
    def order(self) -> list[int]:
        """Candidates from best to worst, for one image or one text; empty after a failure."""
        return [] if self.failure else [int(place) for place in np.argsort(-self.scores.ravel(), kind="stable")]


class ImageTextMatcher:
    """Match images and texts with a diffusion model, zero-shot or after a few examples; or with CLIP, to compare.

    Args:
        model: A loaded backbone or `ClipEncoder`, or a name, Hub repository or folder of either.
        score: ``"pmi"`` (default), ``"error"``, ``"attention"``, ``"hybrid"``, or a score with its settings. A CLIP
            model has only ``"clip"``.
        settings: Draws, timesteps, layers and the rest.
        adapter: What was learnt from examples: an `Adapter` or its file.
        batch_size: Rows per call of the model; does not change results.

    Attributes:
        model: The loaded model.
        settings: With the score that is used.
        adapter: What was learnt, or None.
        calls: Calls of the denoiser so far.

    Raises:
        ModelError: If the model cannot be loaded, or the adapter was fitted for another one.
        InputError: If the model has no such score.

    References:
        He et al., Discffusion: Discriminative Diffusion Models as Few-shot Vision and Language Learners,
        https://arxiv.org/abs/2305.10722
        Krojer et al., Are Diffusion Models Vision-And-Language Reasoners?, NeurIPS 2023,
        https://arxiv.org/abs/2305.16397
    """

    def __init__(
        self,
        model: Backbone | ClipEncoder | str | Path = "tiny-shapes",
        score: Score | str | None = None,
        *,
        settings: MatchSettings | None = None,
        adapter: Adapter | Path | str | None = None,
        batch_size: int = 256,
    ) -> None:
        if isinstance(model, str | Path):
            model = load_clip(str(model)) if is_clip(str(model)) else load(model)
        self.model = model
        self.batch_size = batch_size
        self.settings = settings or MatchSettings()
        self.adapter = load_adapter(adapter) if isinstance(adapter, str | Path) else adapter
        self.calls = 0
        if isinstance(model, ClipEncoder):
            if score not in (None, "clip") or self.adapter is not None:
                raise InputError(f"{model.name} is a CLIP model: it has the score 'clip' alone, and no adapters.")
            return
        refuse_unconditional(model)
        if score == "clip":
            raise InputError(
                f"{model.name} is a diffusion model. For CLIP's score give a CLIP model, such as "
                "'hf:openai/clip-vit-large-patch14'."
            )
        if score is not None:
            self.settings = with_score(self.settings, score)
        if self.adapter is not None:
            self.adapter.check(model)
            self.settings = settings_of(self.adapter, self.settings)

    def score(
        self,
        images: Any,  # noqa: ANN401
        texts: Sequence[str] | str,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[np.ndarray, "images texts"]:
        """How well every image fits every text, without elimination: higher is better.

        Texts of one image can be compared with every score; images of one text with ``pmi``, ``clip``, ``hybrid`` and
        ``attention`` less the empty text. The numbers are no probabilities.

        Args:
            images: In any form that `diffsight.data.images.images_from` takes.
            texts: Captions; one alone may be given as it is.
            progress: Called with (images finished, denoiser calls so far).

        Raises:
            InputError: If there is no text, or one cannot be read; `match` goes on instead.
            ImageError: If an image cannot be read.
        """
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        if not texts:
            raise InputError("There is no text to compare the images with.")
        opened = images_from(images)
        policy = self.settings.policy
        every = policy if isinstance(policy, Exhaustive) else Exhaustive(num_draws=self.settings.draws)
        rows = []
        step = max(1, _PAIRS // len(texts))
        for start in range(0, len(opened), step):
            block = tuple(opened[place] for place in range(start, min(start + step, len(opened))))
            (scores,) = self._scores([Candidates(pictures=block, texts=texts, policy=every)])
            if isinstance(scores, str):
                raise InputError(f"Images {start} to {start + len(block) - 1}: {scores}")
            rows.append(scores)
            if progress is not None:
                progress(start + len(block), self.calls)
        return np.concatenate(rows)

    def rank(
        self,
        images: Any,  # noqa: ANN401
        texts: Sequence[str] | str,
    ) -> Match:
        """Which of these texts fits the image, or which of these images fits the text; many are eliminated early.

        Args:
            images: One image and several texts, or several images and one text.
            texts: See ``images``.

        Raises:
            InputError: If there is only one candidate, one is there twice, or an image or text cannot be read.
        """
        texts = (texts,) if isinstance(texts, str) else tuple(texts)
        opened = images_from(images)
        query = Query(id="query", images=tuple(opened[place] for place in range(len(opened))), texts=texts)
        (match,) = self.match([query])
        if match.failure:
            raise InputError(match.failure)
        return match

    def match(self, queries: Iterable[Query], *, progress: Callable[[int, int], None] | None = None) -> Iterator[Match]:
        """Answer queries, many at a time. A query that cannot be answered is a `Match` with its failure.

        Args:
            queries: What to answer.
            progress: Called with (queries finished, denoiser calls so far).

        Yields:
            One answer per query, in order.
        """
        stream, finished = iter(queries), 0
        while together := tuple(islice(stream, TOGETHER)):
            sets = [Candidates(pictures=q.images, texts=q.texts, policy=self.policy_for(q)) for q in together]
            for query, scores in zip(together, self._scores(sets), strict=True):
                yield _answer(query, scores)
            finished += len(together)
            if progress is not None:
                progress(finished, self.calls)

    def explain(
        self,
        image: Any,  # noqa: ANN401
        text: str,
        *,
        draws: int = 32,
    ) -> Explanation:
        """Where each word looked, and at which noise levels the text helped.

        Args:
            image: One image.
            text: A caption of it.
            draws: Noise levels; calls are twice as many.

        Raises:
            InputError: If the model is CLIP, or has no attention to text.
            ImageError: If the image cannot be read.
            PromptError: If the text is too long.
        """
        if isinstance(self.model, ClipEncoder):
            raise InputError(f"{self.model.name} is a CLIP model: there is no cross-attention to look at.")
        with applied(self.adapter, self.model.network):
            return explain(self.model, image, text, self.settings, draws=draws, adapter=self.adapter)

    def policy_for(self, query: Query) -> Policy:
        """The policy for a query: every pair counts where images and texts are paired up, so none is dropped there."""
        every = Exhaustive(num_draws=self.settings.draws)
        if query.form == "grid":
            return self.settings.policy if isinstance(self.settings.policy, Exhaustive) else every
        return self.settings.policy_for(query.count)

    def max_calls(self, queries: Iterable[Query]) -> int:
        """The most calls of the denoiser that queries can need, each on its own."""
        if isinstance(self.model, ClipEncoder):
            return 0
        total = 0
        for query in queries:
            policy = self.policy_for(query)
            nulls = len(query.images) if self.settings.score.needs_null else 0
            total += policy.max_calls(len(query.images) * len(query.texts)) + nulls * policy.max_draws
        return total

    def _scores(self, sets: Sequence[Candidates]) -> list[np.ndarray | str]:
        """Scores of each set, shape (images, texts), or why there are none."""
        if isinstance(self.model, ClipEncoder):
            return [_clip_scores(self.model, one) for one in sets]
        results, calls = run(self.model, self.settings, sets, adapter=self.adapter, batch_size=self.batch_size)
        self.calls += calls
        return [
            result if isinstance(result, str) else result.scores.reshape(len(one.pictures), len(one.texts))
            for one, result in zip(sets, results, strict=True)
        ]


def _clip_scores(model: ClipEncoder, one: Candidates) -> np.ndarray | str:
    try:
        opened = images_from(list(one.pictures))
        images = [opened[place] for place in range(len(opened))]
        return model.similarity(images, one.texts).double().cpu().numpy()
    except DiffsightError as error:
        return str(error)


def _answer(query: Query, scores: np.ndarray | str) -> Match:
    shape = (len(query.images), len(query.texts))
    if isinstance(scores, str):
        return Match(id=query.id, scores=np.full(shape, np.nan), failure=scores)
    if query.form == "grid":
        return Match(id=query.id, scores=scores)
    winners = np.flatnonzero(scores.ravel() == scores.max())
    tied = tuple(int(place) for place in winners) if len(winners) > 1 else ()
    return Match(id=query.id, scores=scores, best=None if tied else int(winners[0]), tied=tied)
