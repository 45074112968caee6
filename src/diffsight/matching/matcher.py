"""`ImageTextMatcher`: how well images and texts fit, and which candidate fits best."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from diffsight.backbones.base import Backbone
from diffsight.backbones.encoders.clip import is_clip, load_clip
from diffsight.backbones.encoders.dual import DualEncoder
from diffsight.backbones.loading import load
from diffsight.backbones.models.classes import refuse_unconditional
from diffsight.data.images import images_from
from diffsight.data.queries import Query
from diffsight.errors import DiffsightError, InputError
from diffsight.matching.adapters import Adapter, load_adapter, settings_of
from diffsight.matching.answers import Match, answer
from diffsight.matching.candidates import Candidates, applied, candidate_sets, run
from diffsight.matching.explaining import Explanation, explain
from diffsight.matching.leak import NOT_VALID, check_batches
from diffsight.matching.scores import Score
from diffsight.matching.settings import MatchSettings, with_score
from diffsight.scoring.elimination import Exhaustive, Policy

log = logging.getLogger(__name__)

TOGETHER = 64  # Queries whose requests share batches.
_PAIRS = 4096  # Pairs that are measured together in `ImageTextMatcher.score`.


class ImageTextMatcher:
    """Match images and texts with a diffusion model, zero-shot or after a few examples; or with CLIP, to compare.

    Args:
        model: A loaded backbone or `DualEncoder`, or a name, Hub repository or folder of either.
        score: ``"pmi"`` (default), ``"error"``, ``"attention"``, ``"hybrid"``, or a score with its settings. A CLIP
            model has only ``"clip"``; an adapter only the score that it was fitted for, which is then the default.
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
        InputError: If the model has no such score, or the adapter is for another one.

    References:
        He et al., Discffusion: Discriminative Diffusion Models as Few-shot Vision and Language Learners,
        https://arxiv.org/abs/2305.10722
        Krojer et al., Are Diffusion Models Vision-And-Language Reasoners?, NeurIPS 2023,
        https://arxiv.org/abs/2305.16397
    """

    def __init__(
        self,
        model: Backbone | DualEncoder | str | Path = "tiny-shapes",
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
        self._told: set[str] = set()
        if isinstance(model, DualEncoder):
            if score not in (None, "clip") or self.adapter is not None or self.settings.batch_leak is not None:
                raise InputError(
                    f"{model.name} is a CLIP model: it has the score 'clip' alone, no adapters and no batch_leak."
                )
            return
        refuse_unconditional(model)
        if score == "clip":
            raise InputError(
                f"{model.name} is a diffusion model. For CLIP's score give a CLIP model, such as "
                "'hf:openai/clip-vit-large-patch14', or 'tiny-shapes-clip' for rendered scenes."
            )
        if score is not None:
            self.settings = with_score(self.settings, score)
        if self.adapter is not None:
            self.adapter.check(model)
            self.settings = settings_of(self.adapter, self.settings, explicit=score is not None)

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
            InputError: If there is no text, or one cannot be read; `match` goes on instead. If a ``batch_leak`` is set,
                for there are no queries.
            ImageError: If an image cannot be read.
        """
        if self.settings.batch_leak is not None:
            raise InputError("batch_leak is about queries, and there are none in a table of scores. Use match.")
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

        A warning is logged, once, if the score cannot compare images and there are several.

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

        Warnings are logged, once: if the score cannot compare images and a query has several, as papers do report; and
        if ``settings.batch_leak`` makes the answers invalid.

        Args:
            queries: What to answer.
            progress: Called with (queries finished, denoiser calls so far).

        Yields:
            One answer per query, in order.

        Raises:
            InputError: If there is a ``batch_leak``, and queries of one batch differ in the number of candidates.
        """
        stream, finished, leaking = iter(queries), 0, self.settings.batch_leak
        size = TOGETHER if leaking is None else max(1, TOGETHER // leaking) * leaking
        while together := tuple(islice(stream, size)):
            invalid = NOT_VALID if leaking is not None and (finished or len(together) > 1) else None
            if leaking is not None:
                check_batches(together, leaking)
            self._warn(together, invalid)
            sets = [self._candidates(query) for query in together]
            for query, scores in zip(together, self._scores(sets), strict=True):
                yield answer(query, scores, invalid=invalid)
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
        if isinstance(self.model, DualEncoder):
            raise InputError(f"{self.model.name} is a CLIP model: there is no cross-attention to look at.")
        with applied(self.adapter, self.model.network):
            return explain(self.model, image, text, self.settings, draws=draws, adapter=self.adapter)

    @property
    def compares_images(self) -> bool:
        """Whether images can be compared for one text, and not only texts for one image."""
        return isinstance(self.model, DualEncoder) or self.settings.score.compares_images

    def policy_for(self, query: Query) -> Policy:
        """The policy for a query: every pair counts where images and texts are paired up, so none is dropped there."""
        every = Exhaustive(num_draws=self.settings.draws)
        if query.form == "grid":
            return self.settings.policy if isinstance(self.settings.policy, Exhaustive) else every
        return self.settings.policy_for(query.count)

    def max_calls(self, queries: Iterable[Query]) -> int:
        """The most calls of the denoiser that queries can need, each on its own."""
        if isinstance(self.model, DualEncoder):
            return 0
        total = 0
        for query in queries:
            policy = self.policy_for(query)
            nulls = len(query.images) if self.settings.score.needs_null else 0
            total += policy.max_calls(len(query.images) * len(query.texts)) + nulls * policy.max_draws
        return total

    def _candidates(self, query: Query) -> Candidates:
        # A query that does not say what is right has its first candidate first.
        slots = None if self.settings.batch_leak is None or query.form == "grid" else candidate_sets(query)[0]
        return Candidates(pictures=query.images, texts=query.texts, policy=self.policy_for(query), slots=slots)

    def _warn(self, queries: Sequence[Query], invalid: str | None) -> None:
        """Tell, each once, what is wrong with the answers."""
        found = {} if invalid is None else {"invalid": f"These results are {invalid}."}
        several = [query.id for query in queries if len(query.images) > 1]
        if several and not self.compares_images:
            found["images"] = (
                f"{self.settings.score} cannot compare images for one text, as query {several[0]!r} asks: it says more "
                "of an image than of how the text fits. Use the score 'pmi', or attention less that under no text."
            )
        for what in [what for what in found if what not in self._told]:
            log.warning("%s", found[what])
        self._told |= found.keys()

    def _scores(self, sets: Sequence[Candidates]) -> list[np.ndarray | str]:
        """Scores of each set, shape (images, texts), or why there are none."""
        if isinstance(self.model, DualEncoder):
            return [_clip_scores(self.model, one) for one in sets]
        results, calls = run(self.model, self.settings, sets, adapter=self.adapter, batch_size=self.batch_size)
        self.calls += calls
        return [
            result if isinstance(result, str) else result.scores.reshape(len(one.pictures), len(one.texts))
            for one, result in zip(sets, results, strict=True)
        ]


def _clip_scores(model: DualEncoder, one: Candidates) -> np.ndarray | str:
    try:
        opened = images_from(list(one.pictures))
        images = [opened[place] for place in range(len(opened))]
        return model.similarity(images, one.texts).double().cpu().numpy()
    except DiffsightError as error:
        return str(error)
