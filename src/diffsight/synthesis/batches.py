"""Training images: read once and counted, kept in memory where they fit, and given in batches ahead of their use."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from diffsight.data.sources import Source
from diffsight.errors import ImageError

MEMORY = 2**31
STACKED = 2**29  # Small images lie beside the network, as one tensor.


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that cannot be used: which, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Pictures:
    """The images of a source that can be read.

    Attributes:
        source: Where they are from.
        positions: Of those that can be read.
        failures: Those that cannot.
        held: All of them, if they fit into memory.
    """

    source: Source
    positions: tuple[int, ...]
    failures: tuple[Failure, ...]
    held: tuple[Image.Image, ...] | None

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, row: int) -> Image.Image:
        """An image by its number among those that can be read; raises ImageError if it is gone since."""
        return self.held[row] if self.held is not None else self.source[self.positions[row]].load()

    def stack(self, side: int, *, memory: int = STACKED) -> UInt8[Tensor, "n 3 side side"] | None:
        """All images in one tensor, if they are in memory, squares of this side, and not more than fit into it.

        Args:
            side: In pixels.
            memory: Bytes that the tensor may have.
        """
        if self.held is None or 3 * side * side * len(self) > memory:
            return None
        if any(image.size != (side, side) for image in self.held):
            return None
        return torch.from_numpy(np.stack([np.asarray(image) for image in self.held])).permute(0, 3, 1, 2).contiguous()

    def id(self, row: int) -> str:
        """The stable name of an image."""
        return self.source.ids[self.positions[row]]


def read_pictures(
    source: Source, *, memory: int = MEMORY, progress: Callable[[int, int], None] | None = None
) -> Pictures:
    """Read every image of a source once.

    Args:
        source: The images.
        memory: Bytes of decoded images that may be kept; more are read again whenever they are needed.
        progress: Called after each image with (images read, all images).
    """
    held: list[Image.Image] | None = []
    positions: list[int] = []
    failures: list[Failure] = []
    size = 0
    for number, sample in enumerate(source):
        try:
            image = sample.load()
        except ImageError as error:
            failures.append(Failure(sample.id, str(error)))
        else:
            positions.append(number)
            size += 3 * image.width * image.height
            if size > memory:
                held = None
            elif held is not None:
                held.append(image)
        if progress is not None:
            progress(number + 1, len(source))
    return Pictures(
        source=source,
        positions=tuple(positions),
        failures=tuple(failures),
        held=None if held is None else tuple(held),
    )


class Readers:
    """Threads that prepare images. Made by `readers`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def batches(
        self, rows: Iterable[Int[ndarray, " _"]], prepare: Callable[[int], UInt8[Tensor, "3 _ _"]]
    ) -> Iterator[UInt8[Tensor, "_ 3 _ _"]]:
        """Prepare images in batches, each while the batch before is in use.

        Args:
            rows: The rows of each batch.
            prepare: Gives an image by its row.
        """
        waiting: list[Future[Tensor]] = []
        started = False
        for batch in rows:
            coming = [self._pool.submit(prepare, row) for row in batch.tolist()]
            if started:
                yield _joined(waiting)
            waiting, started = coming, True
        if started:
            yield _joined(waiting)


@contextmanager
def readers(pictures: Sequence[Pictures], workers: int | None) -> Iterator[Readers]:
    """Hold threads that prepare images.

    Args:
        pictures: What is to be prepared: images from the disk want more threads than those in memory.
        workers: How many threads, or None to decide.
    """
    if workers is None:
        stored = any(each.held is None for each in pictures)
        workers = min(8, os.cpu_count() or 1) if stored else 1
    pool = ThreadPoolExecutor(workers, thread_name_prefix="diffsight-images")
    try:
        yield Readers(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def _joined(waiting: Sequence[Future[Tensor]]) -> Tensor:
    return torch.stack([future.result() for future in waiting])
