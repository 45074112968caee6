"""What a denoiser tells of pairs of image and text: measured once, from which every score is computed."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int

from diffsight.backbones.encoding import Encoded
from diffsight.scoring.scorer import LOSSES, Requests, Scorer, score_within_memory

L2 = LOSSES.index("l2")  # Column of the squared error in what a Scorer gives.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Statistics:
    """What was measured of some pairs at some draws, before any weighting; float64, NaN where it was not measured.

    Attributes:
        errors: Mean squared error of eps under the text, ‖ε − ε_θ(x_t, c)‖² / D.
        null_errors: The same under the empty text.
        attention: Pooled attention under the text, one column per layer and head.
        null_attention: The same under the empty text.
        columns: ``layer/head`` of the attention's columns.
        size: D, numbers in a latent.
        times: Noise level of each draw as a share of the schedule, 0 to 1.
    """

    errors: Float[np.ndarray, "draws pairs"]
    null_errors: Float[np.ndarray, "draws pairs"]
    attention: Float[np.ndarray, "draws pairs columns"]
    null_attention: Float[np.ndarray, "draws pairs columns"]
    columns: tuple[str, ...]
    size: int
    times: Float[np.ndarray, " draws"]


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """Pairs to be measured at some draws.

    Attributes:
        images: The image of each pair.
        texts: The text of each pair.
        draws: At which draws.
    """

    images: Int[np.ndarray, " pairs"]
    texts: Int[np.ndarray, " pairs"]
    draws: Sequence[int]


@dataclass(slots=True, eq=False)
class Ledger:
    """Measures pairs when they are first asked for, and remembers them.

    Pairs of many queries share batches. The empty text of an image is measured once for all texts of the image.

    Attributes:
        scorer: The model, the texts, and the empty text as the condition's last member.
        images: Encoded images, all of them readable.
        draws: How many draws there are at most.
        batch_size: Rows per call of the model.
        calls: Calls made so far.
    """

    scorer: Scorer
    images: Sequence[Encoded]
    draws: int
    batch_size: int = 256
    calls: int = 0
    _values: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)

    @property
    def null(self) -> int:
        """The empty text's place in the condition."""
        return len(self.scorer.condition) - 1

    def measure(self, wanted: Sequence[Wanted]) -> None:
        """Make sure that pairs are known.

        Args:
            wanted: Pairs and draws of each query.
        """
        missing: dict[tuple[int, int, int], None] = {}
        for one in wanted:
            for draw in one.draws:
                for image, text in zip(one.images.tolist(), one.texts.tolist(), strict=True):
                    known = self._values.get((image, text))
                    if known is None or np.isnan(known[draw, 0]):
                        missing[image, draw, text] = None
        # Image and draw first: what is noised once serves all texts.
        rows = np.array(sorted(missing), dtype=np.int64).reshape(-1, 3)
        for start in range(0, len(rows), self.batch_size):
            self._run(rows[start : start + self.batch_size])

    def _run(self, rows: Int[np.ndarray, "b 3"]) -> None:
        slots, image = np.unique(rows[:, 0], return_inverse=True)
        chosen = [self.images[slot] for slot in slots.tolist()]
        x0 = torch.stack([one.x0 for one in chosen if one.x0 is not None])
        requests = Requests(image=image.reshape(-1), draw=rows[:, 1], arm=rows[:, 2])
        values = score_within_memory(self.scorer, x0, [one.id for one in chosen], requests).cpu().numpy()
        self.calls += len(rows)
        for (slot, draw, text), value in zip(rows.tolist(), values, strict=True):
            key = (slot, text)
            if key not in self._values:
                self._values[key] = np.full((self.draws, values.shape[1]), np.nan, np.float32)
            self._values[key][draw] = value

    def statistics(self, images: Int[np.ndarray, " pairs"], texts: Int[np.ndarray, " pairs"], draws: int) -> Statistics:
        """The first ``draws`` draws of some pairs; what was not measured is NaN."""
        blank = np.full((self.draws, len(self.scorer.losses)), np.nan, np.float32)

        def table(keys: list[tuple[int, int]]) -> np.ndarray:
            return np.stack([self._values.get(key, blank)[:draws] for key in keys], axis=1).astype(np.float64)

        pairs = table(list(zip(images.tolist(), texts.tolist(), strict=True)))
        null = table([(image, self.null) for image in images.tolist()])
        return Statistics(
            errors=pairs[:, :, L2],
            null_errors=null[:, :, L2],
            attention=pairs[:, :, len(LOSSES) :],
            null_attention=null[:, :, len(LOSSES) :],
            columns=self.scorer.losses[len(LOSSES) :],
            size=int(np.prod(self.scorer.backbone.latent_shape)),
            times=self.scorer.levels[:draws].numpy() / len(self.scorer.backbone.schedule),
        )
