"""Random numbers with an address: the same whoever asks, whenever, and after any interruption."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64

from diffsight.diffusion.noise import key_of

STREAM = "training-philox4x64-1"


def _key(address: tuple[str | int, ...]) -> int:
    # A file name may hold bytes that are not text; Python carries them as lone surrogates.
    return key_of(" ".join(map(str, (STREAM, *address))).encode("utf-8", "surrogatepass"))


def _words(count: int, address: tuple[str | int, ...]) -> UInt64[np.ndarray, " n"]:
    """Raw 64-bit words: numpy guarantees them, but not what it makes of them."""
    return np.random.Philox(key=_key(address)).random_raw(count)


def uniforms(count: int, *address: str | int) -> Float[np.ndarray, " n"]:
    """Numbers from 0 to below 1."""
    return (_words(count, address) >> np.uint64(11)) * 2.0**-53


def uniform_rows(count: int, addresses: Iterable[tuple[str | int, ...]]) -> Float[np.ndarray, "n k"]:
    """A row of `uniforms` for each address: the same numbers, without making a generator for each."""
    generator = np.random.Philox(key=0)
    state: Any = generator.state  # of a new generator; what it holds is copied when it is set
    rows = []
    for address in addresses:
        key = _key(address)
        state["state"]["key"][:] = key % 2**64, key >> 64
        generator.state = state
        rows.append(generator.random_raw(count))
    return (np.array(rows, dtype=np.uint64).reshape(-1, count) >> np.uint64(11)) * 2.0**-53


def shuffled(count: int, *address: str | int) -> Int[np.ndarray, " n"]:
    """The numbers below ``count`` in random order."""
    return np.argsort(_words(count, address), kind="stable")


def beta(alpha: float, *address: str | int) -> float:
    """A number of the symmetric beta distribution."""
    return float(np.random.Generator(np.random.Philox(key=_key(address))).beta(alpha, alpha))


@contextmanager
def seeded(device: torch.device, *address: str | int) -> Iterator[None]:
    """Let torch's own random numbers (initial weights, dropout) follow the address; afterwards its state is as before.

    Args:
        device: Whose random state is used beside that of the CPU.
        address: What the numbers are for.
    """
    seed = _key(address) % 2**63
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.random.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
