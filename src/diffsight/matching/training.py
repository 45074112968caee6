"""Training what stands inside of a frozen denoiser, by gradients through it.

A step draws noise levels and noises that all candidates of a query share, and makes the right ones better than the
wrong. Sharing matters: noise and level change a score far more than another text does, and cancel in a difference.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffsight.backbones.encoding import Encoded
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ModelError, NumericsError
from diffsight.matching.losses import loudness, set_loss
from diffsight.matching.options import FitOptions
from diffsight.scoring.scorer import Requests, Scorer

CLIP = 1.0  # Norm of the gradient at most, as in He et al.'s code.
_STREAM = 2**32  # Seeds of training, apart from those of the noise that is matched with.
_LOOKED_AT = 64  # Queries by which the temperature is measured.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Example:
    """A query to learn from.

    Attributes:
        images: The image of each pair, as in a `Ledger`.
        texts: The text of each pair.
        sets: Places of the pairs that compete, the right one first; a grid has a set for each of its rows and columns.
    """

    images: Int[np.ndarray, " pairs"]
    texts: Int[np.ndarray, " pairs"]
    sets: tuple[Int[np.ndarray, " candidates"], ...]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trainer:
    """A model with parameters in it that can learn, and what they learn from.

    Attributes:
        scorer: Gives the scorer with the parameters as they are; its levels and noise are not used.
        parameters: What is trained.
        images: Encoded.
        examples: Of these images.
        score: With a gradient, from what a scorer gives under the text, under the empty text (None where it cancels
            out), and the weight of the error, all of them by draw and pair.
        needs_null: Whether the score looks at the empty text.
        weights: Timestep weight of each level, with mean 1.
        levels: First level of the schedule to look at, and the one after the last.
        options: How.
        batch_size: Rows per call of the model.
    """

    scorer: Callable[[], Scorer]
    parameters: Sequence[nn.Parameter]
    images: Sequence[Encoded]
    examples: Sequence[Example]
    score: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    needs_null: bool
    weights: Float[np.ndarray, " levels"]
    levels: tuple[int, int]
    options: FitOptions
    batch_size: int

    @torch.enable_grad()
    def train(self, *, progress: Callable[[int, int, float], None] | None = None) -> float:
        """Run all steps; the parameters have learnt afterwards.

        Args:
            progress: Called with the steps that are done, all steps, and the loss of the last one.

        Returns:
            Mean loss of the last pass over the examples.

        Raises:
            NumericsError: If the loss is no longer finite.
            ModelError: If a single row does not fit the device.
        """
        options, batch_size = self.options, self.batch_size
        generator = torch.Generator().manual_seed(options.seed)
        temperature = options.temperature or self._temperature(generator) if options.loss == "infonce" else 1.0
        optimizer = torch.optim.AdamW(self.parameters, lr=options.rate, weight_decay=options.weight_decay)
        steps = options.steps_for(len(self.examples))
        order: list[int] = []
        losses: list[float] = []
        for step in range(steps):
            order = order or torch.randperm(len(self.examples), generator=generator).tolist()
            work = self._draw(self.examples[order.pop()], step, generator)
            loss, batch_size = self._set_gradient(work, temperature, batch_size)
            nn.utils.clip_grad_norm_(self.parameters, CLIP)
            if not math.isfinite(loss):
                raise NumericsError(
                    f"The loss is not finite at step {step + 1} of {steps}. Lower the learning rate "
                    f"({options.rate:g}), or compute in fp32."
                )
            optimizer.step()
            losses.append(loss)
            if progress is not None:
                progress(step + 1, steps, loss)
        return float(np.mean(losses[-len(self.examples) :]))

    def _draw(self, example: Example, number: int, generator: torch.Generator) -> "_Work":
        """Choose levels and noises: a level from each equal part of the range, so that a few draws see all of it."""
        (low, high), draws, pairs = self.levels, self.options.draws_per_step, len(example.images)
        own = 1 if self.options.paired else pairs
        share = (torch.arange(draws)[:, None] + torch.rand(draws, own, generator=generator)) / draws
        levels = (low + (share * (high - low)).long()).clamp(max=high - 1)
        draw = np.broadcast_to(np.arange(draws * own).reshape(draws, own), (draws, pairs))
        images, texts = (np.broadcast_to(x, draw.shape) for x in (example.images, example.texts))
        wanted = [np.stack([images, draw, texts], axis=-1)]
        # Of one image and shared draws, the empty text's part is a constant in every difference.
        if self.needs_null and not (own == 1 and (images == images[0, 0]).all()):
            wanted.append(np.stack([images, draw, np.full_like(texts, len(self.scorer().condition) - 1)], axis=-1))
        rows, place = np.unique(np.concatenate(wanted).reshape(-1, 3), axis=0, return_inverse=True)
        return _Work(
            sets=example.sets,
            rows=rows,
            place=torch.from_numpy(place.reshape(-1, draws, pairs)),
            weights=torch.from_numpy(self.weights)[levels - low].float().expand(draws, pairs),
            levels=levels.flatten(),
            bank=NoiseBank(seed=_STREAM * (1 + _LOOKED_AT + number) + self.options.seed, shared=True),
        )

    def _set_gradient(self, work: "_Work", temperature: float, batch_size: int) -> tuple[float, int]:
        """Give the parameters the gradient of a query's loss; return the loss, and how many rows fit into a call.

        Candidates meet in the loss only, and there by their scores. So where rows do not fit into one call, a first
        pass gives the loss's gradient by each row's numbers, and a second one, call by call, that of the parameters.
        """
        while True:
            parts = [slice(at, at + batch_size) for at in range(0, len(work.rows), batch_size)]
            try:
                if len(parts) == 1:
                    loss = self._loss(work, self._values(work, parts[0]), temperature)
                    found = [self._gradient(loss, None)]
                else:
                    with torch.no_grad():
                        values = torch.cat([self._values(work, part) for part in parts])
                    loss = self._loss(work, values.requires_grad_(), temperature)
                    (by_row,) = torch.autograd.grad(loss, values)
                    found = [self._gradient(self._values(work, part), by_row[part]) for part in parts]
                break
            except torch.OutOfMemoryError as error:
                if batch_size == 1:
                    raise ModelError(
                        f"{self.scorer().backbone.name} does not fit the device in training: one row with its gradient "
                        "ran out of memory. Use dtype 'bf16', or fit 'weights', which needs no gradient."
                    ) from error
            torch.cuda.empty_cache()
            batch_size = max(1, min(batch_size, len(work.rows)) // 2)
        for parameter, *own in zip(self.parameters, *found, strict=True):
            # None where nothing depends on it, as on matrices behind the last layer whose attention is read.
            parameter.grad = None if own[0] is None else torch.stack([one for one in own if one is not None]).sum(0)
        return float(loss.detach()), batch_size

    def _gradient(self, outputs: Tensor, by_row: Tensor | None) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(outputs, list(self.parameters), by_row, allow_unused=True)

    def _values(self, work: "_Work", part: slice) -> Float[Tensor, "rows columns"]:
        rows = work.rows[part]
        slots, image = np.unique(rows[:, 0], return_inverse=True)
        chosen = [self.images[slot] for slot in slots.tolist()]
        x0 = torch.stack([one.x0 for one in chosen if one.x0 is not None])
        scorer = replace(self.scorer(), levels=work.levels, bank=work.bank)
        requests = Requests(image=image.reshape(-1), draw=rows[:, 1], arm=rows[:, 2])
        return scorer.score_with_gradient(x0, [one.id for one in chosen], requests)

    def _loss(self, work: "_Work", values: Float[Tensor, "rows columns"], temperature: float) -> Float[Tensor, ""]:
        scores, hinge = self._scores(work, values), self.options.loss == "hinge"
        gaps = [(scores[own[1:]] - scores[own[:1]])[None] / temperature for own in map(torch.from_numpy, work.sets)]
        margin, softness = (self.options.margin, 0.0) if hinge else (0.0, 1.0)
        return torch.cat([set_loss(gap, margin=margin, softness=softness) for gap in gaps]).mean()

    def _scores(self, work: "_Work", values: Float[Tensor, "rows columns"]) -> Float[Tensor, " pairs"]:
        under_text, *rest = values[work.place.to(values.device)]
        return self.score(under_text, rest[0] if rest else None, work.weights.to(values.device)).mean(0)

    @torch.no_grad()
    def _temperature(self, generator: torch.Generator) -> float:
        """By which the softmax fits best before training; see `loudness`."""
        gaps, squares, size = [], [], self.batch_size
        for number, example in enumerate(self.examples[:_LOOKED_AT]):
            work = self._draw(example, -1 - number, generator)
            values = torch.cat([self._values(work, slice(at, at + size)) for at in range(0, len(work.rows), size)])
            scores = self._scores(work, values).double().cpu()
            for own in (scores[torch.from_numpy(places)] for places in work.sets):
                gaps.append(own[1:] - own[0])
                squares.append((own - own.mean()).square().sum() / (len(own) - 1))
        spread = float(torch.stack(squares).mean().sqrt())
        if not 0 < spread < math.inf:
            return 1.0
        return spread / loudness(nn.utils.rnn.pad_sequence(gaps, batch_first=True, padding_value=-math.inf) / spread)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Work:
    """The rows of a query in one step, each once: image, draw and text; and where each pair's are, null last."""

    sets: tuple[Int[np.ndarray, " candidates"], ...]
    rows: Int[np.ndarray, "rows 3"]
    place: Int[Tensor, "texts_and_null draws pairs"]
    weights: Float[Tensor, "draws pairs"]
    levels: Int[Tensor, " all_draws"]
    bank: NoiseBank
