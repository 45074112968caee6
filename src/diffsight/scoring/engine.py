"""Packs requests of many images into full batches and yields the images as they finish.

The order inside a batch is (image, draw)-major and arm-minor, so that a noised image is made once for all arms. An
image's result does not depend on its neighbours: its noise is addressed by its own id, its policy sees its own errors.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffsight.backbones.encoding import Encoded
from diffsight.diffusion.transfer import Arriving, fetch
from diffsight.scoring.elimination import Policy
from diffsight.scoring.scorer import Requests, Scorer, score_within_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """What competes: groups of arms (prompts) whose errors are averaged draw by draw.

    Attributes:
        unit_of_arm: The unit of each arm, from 0 without gaps.
        loss: Column of the errors that decides.
        weights: Weight of each draw in eps-space.
    """

    unit_of_arm: tuple[int, ...]
    loss: int
    weights: Float[np.ndarray, " draws"]

    @property
    def count(self) -> int:
        """How many units there are."""
        return max(self.unit_of_arm) + 1

    def reduce(self, errors: Float[np.ndarray, "draws arms losses"]) -> Float[np.ndarray, "draws units"]:
        """Weighted error of each unit at each draw, float64; NaN where it was not scored."""
        chosen = errors[:, :, self.loss].astype(np.float64)
        owner = np.asarray(self.unit_of_arm)
        if len(owner) != self.count:
            sums = np.stack([chosen[:, owner == unit].mean(axis=1) for unit in range(self.count)], axis=1)
        else:
            sums = chosen[:, np.argsort(owner)]
        return sums * self.weights[: len(chosen), None]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scored:
    """One image, finished.

    Attributes:
        id: The image's identity.
        errors: Raw errors in eps-space, NaN where eliminated before; empty for a failed image.
        alive: Which units the policy left.
        calls: Denoiser calls spent.
        failure: Why there is no result, or None.
    """

    id: str
    errors: Float[np.ndarray, "draws arms losses"]
    alive: Bool[np.ndarray, " units"]
    calls: int
    failure: str | None = None


@dataclass(slots=True, eq=False)
class _Race:
    """What is known about one image that is being scored."""

    id: str
    x0: Tensor
    errors: np.ndarray
    alive: np.ndarray
    waiting: int = 0
    calls: int = 0
    bad: bool = False


@dataclass(slots=True, eq=False, kw_only=True)
class Engine:
    """Runs a policy on a stream of images with constant full batches.

    Attributes:
        scorer: The model and its draws.
        policy: Decides which draws and units come next.
        units: What competes.
        batch_size: Denoiser rows per call; it is halved when the device runs out of memory.
        depth: Batches submitted before the first is read back: 2 keeps a GPU busy while policies think.
        calls: Denoiser calls made so far.
        admitted: Images taken from the stream so far.
    """

    scorer: Scorer
    policy: Policy
    units: Units
    batch_size: int = 256
    depth: int = 1
    calls: int = 0
    admitted: int = 0
    _races: dict[int, _Race] = field(default_factory=dict)
    _queue: deque[tuple[int, int, np.ndarray]] = field(default_factory=deque)
    _flying: deque[tuple[Requests, Arriving]] = field(default_factory=deque)

    def run(self, images: Iterator[Encoded]) -> Iterator[list[Scored]]:
        """Score a stream of images.

        Args:
            images: Encoded images; read only as far as needed to fill batches.

        Yields:
            The images that finished with each batch, often none.
        """
        exhausted = False
        while True:
            finished: list[Scored] = []
            while not exhausted and self._backlog() < self.batch_size:
                image = next(images, None)
                exhausted = image is None
                if image is not None:
                    finished.extend(self._admit(image))
            if self._queue:
                self._flying.append(self._submit(self._take(self.batch_size)))
            if self._flying and (len(self._flying) >= self.depth or not self._queue):
                finished.extend(self._receive(*self._flying.popleft()))
            yield finished
            if exhausted and not self._races:
                return

    def drain(self) -> list[Scored]:
        """Read back the batches that are still on the device; to be called before `snapshot`."""
        finished: list[Scored] = []
        while self._flying:
            finished.extend(self._receive(*self._flying.popleft()))
        return finished

    def snapshot(self) -> dict[str, np.ndarray]:
        """All images in progress as arrays: with them `restore` goes on exactly where this engine stands.

        Nothing may be on the device: call `drain` first.
        """
        races = list(self._races.items())
        requests = [(slot, draw, arm) for slot, draw, arms in self._queue for arm in arms]
        state = {
            "slots": np.array([slot for slot, _ in races], dtype=np.int64),
            "ids": np.frombuffer("\n".join(race.id for _, race in races).encode(), dtype=np.uint8),
            "lengths": np.array([len(race.errors) for _, race in races], dtype=np.int64),
            "alive": np.array([race.alive for _, race in races], dtype=bool).reshape(len(races), self.units.count),
            "bad": np.array([race.bad for _, race in races], dtype=bool),
            "spent": np.array([race.calls for _, race in races], dtype=np.int64),
            "queue": np.array(requests, dtype=np.int64).reshape(-1, 3),
            "counters": np.array([self.admitted, self.calls], dtype=np.int64),
        }
        arms, losses = len(self.units.unit_of_arm), len(self.scorer.losses)
        state["errors"] = np.concatenate([np.zeros((0, arms, losses), np.float32), *(race.errors for _, race in races)])
        if races:
            state["x0"] = torch.stack([race.x0 for _, race in races]).cpu().numpy()
        return state

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up the work that `snapshot` described."""
        slots = state["slots"].tolist()
        ids = bytes(state["ids"]).decode().split("\n") if slots else []
        ends = np.cumsum(state["lengths"])
        device = self.scorer.backbone.device
        for row, slot in enumerate(slots):
            errors = state["errors"][ends[row] - state["lengths"][row] : ends[row]].copy()
            self._races[slot] = _Race(
                id=ids[row],
                x0=torch.from_numpy(state["x0"][row].copy()).to(device),
                errors=errors,
                alive=state["alive"][row].copy(),
                waiting=int((state["queue"][:, 0] == slot).sum()),
                calls=int(state["spent"][row]),
                bad=bool(state["bad"][row]),
            )
        for slot, draw, arm in state["queue"].tolist():
            last = self._queue[-1] if self._queue else None
            if last is not None and last[:2] == (slot, draw):
                self._queue[-1] = (slot, draw, np.append(last[2], arm))
            else:
                self._queue.append((slot, draw, np.array([arm])))
        self.admitted, self.calls = (int(value) for value in state["counters"])

    def _backlog(self) -> int:
        return sum(len(arms) for _, _, arms in islice(self._queue, self.batch_size))

    def _admit(self, image: Encoded) -> list[Scored]:
        arms, losses = len(self.units.unit_of_arm), len(self.scorer.losses)
        errors = np.zeros((0, arms, losses), np.float32)
        alive = np.ones(self.units.count, dtype=bool)
        slot = self.admitted
        self.admitted += 1
        if image.x0 is None:
            return [Scored(id=image.id, errors=errors, alive=alive, calls=0, failure=image.failure)]
        self._races[slot] = _Race(id=image.id, x0=image.x0, errors=errors, alive=alive)
        return self._advance(slot)

    def _advance(self, slot: int) -> list[Scored]:
        """Ask the policy what comes next for an image none of whose requests is open."""
        race = self._races[slot]
        if race.bad:
            del self._races[slot]
            name = str(self.scorer.backbone.dtype).removeprefix("torch.")
            reason = f"the network gave a value that is not finite (computing in {name})"
            advice = "" if name == "float32" else "; try --dtype fp32"
            return [
                Scored(id=race.id, errors=race.errors[:0], alive=race.alive, calls=race.calls, failure=reason + advice)
            ]
        decision = self.policy.next(self.units.reduce(race.errors), race.alive)
        race.alive = decision.alive
        if not decision.draws:
            del self._races[slot]
            return [Scored(id=race.id, errors=race.errors, alive=race.alive, calls=race.calls)]
        grown = max(decision.draws) + 1
        missing = np.full((max(0, grown - len(race.errors)), *race.errors.shape[1:]), np.nan, np.float32)
        race.errors = np.concatenate([race.errors, missing])
        arms = np.flatnonzero(race.alive[np.asarray(self.units.unit_of_arm)])
        self._queue.extend((slot, draw, arms) for draw in decision.draws)
        race.waiting = len(decision.draws) * len(arms)
        return []

    def _take(self, count: int) -> Requests:
        slots, draws, arms = [], [], []
        while count > 0 and self._queue:
            slot, draw, wanted = self._queue.popleft()
            if len(wanted) > count:
                self._queue.appendleft((slot, draw, wanted[count:]))
                wanted = wanted[:count]
            count -= len(wanted)
            slots.append(np.full(len(wanted), slot))
            draws.append(np.full(len(wanted), draw))
            arms.append(wanted)
        return Requests(image=np.concatenate(slots), draw=np.concatenate(draws), arm=np.concatenate(arms))

    def _submit(self, requests: Requests) -> tuple[Requests, Arriving]:
        slots, image = np.unique(requests.image, return_inverse=True)
        races = [self._races[slot] for slot in slots.tolist()]
        x0 = torch.stack([race.x0 for race in races])
        ids = [race.id for race in races]
        local = Requests(image=image.reshape(-1), draw=requests.draw, arm=requests.arm)
        self.calls += len(requests)
        # The errors set out now, behind this batch: asked for later they would queue up behind the next one.
        return requests, fetch(self._score(x0, ids, local))

    def _score(self, x0: Tensor, ids: Sequence[str], requests: Requests) -> Tensor:
        def shrink(size: int) -> None:
            self.batch_size = size

        return score_within_memory(self.scorer, x0, ids, requests, on_shrink=shrink)

    def _receive(self, requests: Requests, errors: Arriving) -> list[Scored]:
        values = errors.wait().numpy()
        finished = []
        for slot in dict.fromkeys(requests.image.tolist()):
            rows = requests.image == slot
            race = self._races[slot]
            race.errors[requests.draw[rows], requests.arm[rows]] = values[rows]
            race.waiting -= int(rows.sum())
            race.calls += int(rows.sum())
            race.bad |= not np.isfinite(values[rows]).all()
            if race.waiting == 0:
                finished.extend(self._advance(slot))
        return finished
