"""One network while it is trained: steps, the average of its weights, and a state from which it goes on exactly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffsight.errors import NumericsError
from diffsight.synthesis.augmentation import STILL, augmented, augmented_batch, kind_of
from diffsight.synthesis.batches import Pictures, Readers
from diffsight.synthesis.networks import NetworkPlan, build_network
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.placement import Placement
from diffsight.synthesis.preprocessing import BATCH_NORMS, Normalised, Preprocessing, to_unit
from diffsight.synthesis.randomness import beta, seeded, shuffled, uniform_rows

GROUP = 256


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Part:
    """Some images, and what is to be answered to each.

    Attributes:
        pictures: All images that can be read.
        rows: Which of them.
        targets: Probability of each class for each of ``rows``.
    """

    pictures: Pictures
    rows: Int[np.ndarray, " n"]
    targets: Float[np.ndarray, "n k"]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class Measured:
    """How well held-out images are recognised.

    Attributes:
        accuracy: Share of images with a single best class, the most probable one of their target.
        loss: Mean cross-entropy with the target.
    """

    accuracy: float
    loss: float

    def beats(self, other: "Measured | None") -> bool:
        """Whether this is better: a higher accuracy, or the same with a lower loss."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


class Learner:
    """A network, its optimiser and what else changes from step to step.

    All that is random follows (seed, epoch, step or image), so that the weights and moments are all there is to keep.

    Args:
        plan: Which network.
        settings: How it is trained.
        preprocessing: What it takes.
        placement: Where.
        seed: Of all that is random.
    """

    def __init__(
        self, plan: NetworkPlan, settings: TrainSettings, preprocessing: Preprocessing, placement: Placement, seed: int
    ) -> None:
        self.settings, self.preprocessing, self.placement, self.seed = settings, preprocessing, placement, seed
        bare = build_network(plan, seed=seed)
        if settings.norm_momentum is not None:
            for norm in (module for module in bare.modules() if isinstance(module, BATCH_NORMS)):
                norm.momentum = settings.norm_momentum
        self.network = Normalised(bare, preprocessing.mean, preprocessing.std).to(placement.device)
        if placement.device.type == "cuda" and placement.amp != "no":
            # What tensor cores take; otherwise each convolution would turn its images there and back.
            self.network.to(memory_format=torch.channels_last)
        self._parallel = placement.parallel(self.network)
        self._optimizer = _optimizer(self.network, settings)
        self._scaler = placement.scaler()
        decays = settings.ema_decay is not None
        self._average = {key: value.clone() for key, value in self._floating().items()} if decays else None
        self._stacks: list[tuple[Pictures, UInt8[Tensor, "n 3 _ _"] | None]] = []

    def epoch(
        self, part: Part, epoch: int, readers: Readers, progress: Callable[[int, int], None] | None = None
    ) -> float:
        """Train on every image once.

        Args:
            part: The images.
            epoch: Which pass, from 0.
            readers: What prepares the images.
            progress: Called with steps that are done and all steps of the epoch.

        Returns:
            The mean loss, as it was during the epoch.

        Raises:
            NumericsError: If it is not finite.
        """
        device, place = self.placement.device, self.placement
        steps = self.settings.steps(len(part), place.processes)
        batches = np.array_split(shuffled(len(part), "order", self.seed, epoch), steps)
        own = [batch[place.rank :: place.processes] for batch in batches]

        self._parallel.train()
        lost = torch.zeros((), device=device)
        for step, images in enumerate(self._changed(part, epoch, own, readers)):
            targets = torch.from_numpy(part.targets[own[step]]).to(device)
            share = place.processes / len(batches[step])  # gradients are averaged over the processes
            for group in self._optimizer.param_groups:
                group["lr"] = self.settings.rate(epoch, step, steps)
            with seeded(device, "step", self.seed, epoch, step, place.rank):
                lost += self._step(to_unit(images.to(device)), targets, share, (epoch, step))
            self._follow(epoch * steps + step)
            if progress is not None:
                progress(step + 1, steps)
        loss = float(place.total(lost)) / len(part)
        self._check(loss)
        return loss

    @torch.no_grad()
    def measure(self, part: Part, readers: Readers) -> Measured:
        """Recognise images as they are, with the weights that would be kept.

        Raises:
            NumericsError: If the loss is not finite.
        """
        weights = self.weights()
        self.network.eval()
        hits, lost = 0, 0.0
        groups = np.array_split(np.arange(len(part)), max(1, -(-len(part) // GROUP)))

        for group, images in zip(groups, self._plain(part, groups, readers), strict=True):
            targets = torch.from_numpy(part.targets[group]).to(self.placement.device)
            with self.placement.autocast():
                logits = functional_call(self.network, weights, (to_unit(images.to(self.placement.device)),))
            logits = logits.float()
            own = logits.gather(1, targets.argmax(dim=1, keepdim=True))
            hits += int(((logits >= own).sum(dim=1) == 1).sum())
            lost += float(functional.cross_entropy(logits, targets, reduction="sum"))
        self._check(lost)
        return Measured(hits / len(part), lost / len(part))

    def _changed(
        self, part: Part, epoch: int, batches: Sequence[Int[np.ndarray, " _"]], readers: Readers
    ) -> Iterator[UInt8[Tensor, "_ 3 _ _"]]:
        """The images of an epoch, each changed by the numbers of its address: small ones all at once, on the device."""

        def address(index: int) -> tuple[str | int, ...]:
            return "augment", self.seed, epoch, part.pictures.id(int(part.rows[index]))

        stack = self._stacked(part.pictures) if kind_of(self.settings, self.preprocessing.size) in STILL else None
        if stack is None:
            yield from readers.batches(
                batches,
                lambda index: augmented(
                    part.pictures[int(part.rows[index])], self.preprocessing, self.settings, *address(index)[1:]
                ),
            )
            return
        for batch in batches:
            numbers = uniform_rows(4, map(address, batch.tolist()))
            yield augmented_batch(stack[torch.from_numpy(part.rows[batch]).to(stack.device)], self.settings, numbers)

    def _plain(
        self, part: Part, batches: Sequence[Int[np.ndarray, " _"]], readers: Readers
    ) -> Iterator[UInt8[Tensor, "_ 3 _ _"]]:
        """Images as they are."""
        stack = self._stacked(part.pictures)
        if stack is None:
            yield from readers.batches(batches, lambda index: self.preprocessing(part.pictures[int(part.rows[index])]))
            return
        for batch in batches:
            yield stack[torch.from_numpy(part.rows[batch]).to(stack.device)]

    def _stacked(self, pictures: Pictures) -> UInt8[Tensor, "n 3 _ _"] | None:
        """The images on the device, where they are small and need no resizing."""
        if self.preprocessing.scale != self.preprocessing.size:
            return None
        if not any(known is pictures for known, _ in self._stacks):
            stack = pictures.stack(self.preprocessing.size)
            self._stacks.append((pictures, None if stack is None else stack.to(self.placement.device)))
        return next(stack for known, stack in self._stacks if known is pictures)

    def _check(self, loss: float) -> None:
        if not np.isfinite(loss):
            raise NumericsError(
                f"{self.settings.network} diverged: its loss is {loss}. Lower the learning rate of "
                f"{self.settings.learning_rate:g}, or give it a longer warm-up."
            )

    def weights(self) -> dict[str, Tensor]:
        """What would be kept now: the average of the weights, or those of the last step."""
        return self._current() | (self._average or {})

    def state(self) -> dict[str, np.ndarray]:
        """All that the next epoch depends on."""
        tensors = {f"network.{key}": value for key, value in self._current().items()}
        tensors |= {f"average.{key}": value for key, value in (self._average or {}).items()}
        for index, moments in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in moments.items()}
        arrays = {key: value.detach().cpu().contiguous().numpy() for key, value in tensors.items()}
        return arrays | {f"scaler.{key}": np.array(value) for key, value in self._scaler.state_dict().items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from a `state`."""
        device = self.placement.device
        self.network.load_state_dict({key: torch.from_numpy(value) for key, value in _under(state, "network").items()})
        if self._average is not None:
            saved = _under(state, "average")
            self._average = {key: torch.from_numpy(value).to(device) for key, value in saved.items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(state, "optimizer").items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = torch.from_numpy(value)
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if scaling := {key: value.item() for key, value in _under(state, "scaler").items()}:
            self._scaler.load_state_dict(scaling)

    def _step(self, images: Tensor, targets: Tensor, share: float, at: tuple[int, int]) -> Tensor:
        if self.settings.mixup:
            kept = beta(self.settings.mixup, "mixup", self.seed, *at, self.placement.rank)
            partner = shuffled(len(images), "partner", self.seed, *at, self.placement.rank)
            images = images.lerp(images[partner], 1 - kept)
            targets = targets.lerp(targets[partner], 1 - kept)
        with self.placement.autocast():
            logits = self._parallel(images)
        smoothing = self.settings.label_smoothing
        loss = functional.cross_entropy(logits.float(), targets, label_smoothing=smoothing, reduction="sum")
        self._scaler.scale(loss * share).backward()
        if self.settings.clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return loss.detach()

    @torch.no_grad()
    def _follow(self, step: int) -> None:
        """Let the average follow the weights; counts, as BatchNorm has one, have none."""
        if self._average is None or self.settings.ema_decay is None:
            return
        decay = min(self.settings.ema_decay, (1 + step) / (10 + step))
        # All at once: one launch on a GPU, where a network has hundreds of tensors.
        current = self._floating()
        get_ema_multi_avg_fn(decay)([self._average[key] for key in current], list(current.values()), None)

    def _current(self) -> dict[str, Tensor]:
        return {key: value.detach() for key, value in self.network.state_dict().items()}

    def _floating(self) -> dict[str, Tensor]:
        return {key: value for key, value in self._current().items() if value.is_floating_point()}


def _optimizer(network: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    decayed, plain = [], []
    for parameter in network.parameters():
        (decayed if settings.decay_all or parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=settings.learning_rate)


def _under(state: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
