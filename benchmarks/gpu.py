"""Calls per second of the scoring loop on a GPU: what each option of speed does, and how near it comes to the hardware.

    python benchmarks/gpu.py [--model unet|dit|both] [--size full|small] [--budget SECONDS] [--json FILE]
                             [--batch N] [--only VARIANT ...]

(a) The measured peak of bf16 matrix products: 8192³, random data.
(b) Stable Diffusion 2's UNet at 64×64 latents and DiT-XL/2 at 32×32, randomly initialised, in bf16, through the real
    loop: `Engine` and `Scorer`, with noise by address, mixing, conditions, error reduction and errors read back; plain
    at some batch sizes, then each option at the best one. "share" is FLOP/s over the measured peak, both counted as two
    operations for each multiplication and its addition.
(c) The straightforward loop of the published scripts, in the same bf16: one image at a time, its (draw, class) pairs in
    batches of 32, noise made on the CPU and moved, errors read back after every batch, cudnn.benchmark on. Last, the
    same in fp32, in which the script for DiT was published.

``--size small`` (the default without CUDA) times tiny networks in the same way, so that the script can be tried
anywhere; its ratios say nothing about a GPU. On a CPU everything is in fp32, matrix products too. Variants that would
not fit into the budget are left out, and named.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_loops import POLICY, PUBLISHED_BATCH, bare, our_loop, straightforward
from gpu_networks import SHAPES, Shape, arms, build, flops_per_call
from zero_shot import say

from diffsight.backbones.base import Backbone, Condition
from diffsight.backbones.speed import speed_up

CLASSES = 10
REPEATS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One variant, measured; rates are calls per second."""

    model: str
    variant: str
    batch: int
    rate: float
    rates: tuple[float, ...]
    flops_per_call: int
    share_of_peak: float
    peak_memory_gib: float | None
    warm_up_seconds: float


@dataclass(slots=True, kw_only=True)
class Session:
    """What was measured and what was not, on the disk after every step: the machine may be gone at any time."""

    device: torch.device
    dtype: torch.dtype
    budget: float
    window: float
    file: Path | None
    only: tuple[str, ...] | None = None
    batch: int | None = None
    started: float = field(default_factory=time.perf_counter)
    peak: float = 0.0
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.started

    def affords(self, name: str, seconds: float) -> bool:
        """Whether something that takes so long may still be started; noted if not."""
        if self.spent + seconds <= self.budget:
            return True
        self.notes[name] = f"left out: {self.spent:.0f} of {self.budget:.0f} s were used, and it may take {seconds:.0f}"
        say(f"  {name}: {self.notes[name]}")
        self.save()
        return False

    def save(self) -> None:
        """Everything so far as JSON."""
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            found = {**self.facts, "peak_flops": self.peak, "seconds": self.spent, "notes": self.notes}
            self.file.write_text(json.dumps({**found, "rows": [asdict(row) for row in self.rows]}, indent=2))


def gib(memory: float | None) -> str:
    """Memory in words."""
    return "–" if memory is None else f"{memory:.1f} GiB"


def wait(device: torch.device) -> None:
    """Until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates_of(
    step: Callable[[], int], device: torch.device, window: float, *, warm_ups: int = 4
) -> tuple[tuple[float, ...], float]:
    """Calls per second in windows of time after a warm-up, and how long that took.

    Args:
        step: Does some calls and says how many.
        device: Where.
        window: Seconds of each repetition, about.
        warm_ups: Steps before. Compilation begins with the second batch, a CUDA graph is recorded with the third.
    """
    started = time.perf_counter()
    for _ in range(warm_ups):
        step()
    wait(device)
    warm_up, before = time.perf_counter() - started, time.perf_counter()
    step()
    wait(device)
    count = max(1, round(window / (time.perf_counter() - before)))
    rates = []
    for _ in range(REPEATS):
        wait(device)
        before = time.perf_counter()
        calls = sum(step() for _ in range(count))
        wait(device)
        rates.append(calls / (time.perf_counter() - before))
    return tuple(rates), warm_up


def matmul_peak(device: torch.device, dtype: torch.dtype, side: int, window: float) -> float:
    """FLOP/s of square matrix products on random data: 2·n³ for each."""
    one, other = torch.randn(2, side, side, device=device, dtype=dtype)
    out = torch.empty_like(one)

    def step() -> int:
        for _ in range(8):
            torch.mm(one, other, out=out)
        return 8

    return statistics.median(rates_of(step, device, window)[0]) * 2 * side**3


@contextmanager
def tuned_convolutions(on: bool) -> Iterator[None]:
    """cudnn.benchmark, which is the user's own setting and none of the library's."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def measure(
    session: Session,
    shape: Shape,
    variant: str,
    batch: int,
    make: Callable[[], Callable[[], int]],
    *,
    flops: int,
    seconds: float,
    tuned: bool = False,
    warm_ups: int = 4,
) -> float:
    """Time one variant if the budget affords it; its rate, or 0. What fails is noted and stops nothing else."""
    name = f"{shape.title}, {variant}, batch {batch}"
    if session.only is not None and variant not in session.only:
        return 0.0
    if not session.affords(name, seconds):
        return 0.0
    gc.collect()
    if session.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(session.device)
    try:
        with tuned_convolutions(tuned):
            rates, warm_up = rates_of(make(), session.device, session.window, warm_ups=warm_ups)
    except Exception as error:
        session.notes[name] = f"failed: {type(error).__name__}: {str(error)[:500]}"
        say(f"  {name}: {session.notes[name]}")
        session.save()
        return 0.0
    memory = torch.cuda.max_memory_allocated(session.device) / 2**30 if session.device.type == "cuda" else None
    rate = statistics.median(rates)
    row = Row(
        model=shape.title,
        variant=variant,
        batch=batch,
        rate=rate,
        rates=rates,
        flops_per_call=flops,
        share_of_peak=rate * flops / session.peak,
        peak_memory_gib=memory,
        warm_up_seconds=warm_up,
    )
    session.rows.append(row)
    say(f"  {session.spent:5.0f} s  {name}: {rate:.1f} calls/s, {row.share_of_peak:.1%} of peak, {gib(memory)}")
    session.save()
    return rate


def in_fp32(backbone: Any, condition: Condition) -> tuple[Backbone, Condition]:  # noqa: ANN401 - either dataclass
    """The same in fp32, beside it in memory."""
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in condition.tensors.items()}
    place = "transformer" if hasattr(backbone, "transformer") else "unet"
    network = deepcopy(speed_up(backbone).network).float()
    return replace(backbone, **{place: network}, dtype=torch.float32), replace(condition, tensors=tensors)


def cheap(session: Session, shape: Shape) -> Callable[[], None]:
    """Everything that needs no compiler; what comes back measures the rest."""
    by_kind = flops_per_call(shape)
    flops = sum(by_kind.values())
    session.facts[shape.title] = {"flops_per_call": by_kind}
    say(f"{shape.title}: {flops / 1e9:.1f} GFLOP a call")
    backbone = build(shape, session.device, session.dtype)
    condition = arms(shape, backbone, CLASSES)
    run = partial(measure, session, shape, flops=flops)
    short = 6.0 if session.device.type == "cuda" else 1.0

    def loop(batch: int, **options: Any) -> Callable[[], Callable[[], int]]:  # noqa: ANN401
        return lambda: our_loop(speed_up(backbone, **options), condition, batch)

    sizes = shape.batches if session.batch is None else (session.batch,)
    rates = {batch: run("plain", batch, loop(batch), seconds=short) for batch in sizes}
    best = max(rates, key=lambda batch: rates[batch])
    if shape.tokens:
        run("channels-last", best, loop(best, channels_last=True), seconds=short)
    published = partial(run, batch=PUBLISHED_BATCH, tuned=True, warm_ups=1)
    published("straightforward loop", make=lambda: straightforward(speed_up(backbone), condition), seconds=short)
    run("bare network, no loop", best, lambda: bare(shape, speed_up(backbone), best), seconds=short)
    if shape.tokens:
        run("cudnn.benchmark", best, loop(best), seconds=short, tuned=True)

    def compiled() -> None:
        slow = shape.compile_seconds
        torch.compiler.reset()
        run("compile", best, loop(best, compile="default"), seconds=slow)
        if shape.tokens:
            torch.compiler.reset()
            run("channels-last, compile", best, loop(best, channels_last=True, compile="default"), seconds=slow)
        if session.dtype != torch.float32:
            precise, in_full = in_fp32(backbone, condition)
            published("straightforward loop, fp32", make=lambda: straightforward(precise, in_full), seconds=3 * short)

    return compiled


def table(session: Session) -> None:
    """What was measured, as Markdown."""
    say("\n| model | variant | batch | calls/s | TFLOP/s | share of peak | × straightforward | peak memory | warm-up |")
    say("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    plain = {row.model: row.rate for row in session.rows if row.variant == "straightforward loop"}
    for row in session.rows:
        speed = row.rate * row.flops_per_call / 1e12
        ratio = f"{row.rate / plain[row.model]:.2f}" if row.model in plain else "–"
        say(
            f"| {row.model} | {row.variant} | {row.batch} | {row.rate:.1f} | {speed:.3g} "
            f"| {row.share_of_peak:.1%} | {ratio} | {gib(row.peak_memory_gib)} | {row.warm_up_seconds:.0f} s |"
        )
    for name, note in session.notes.items():
        say(f"\n{name}: {note}")


def main() -> None:
    """Measure and print."""
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("unet", "dit", "both"), default="both")
    parser.add_argument("--size", choices=("full", "small"), default="full" if cuda else "small")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds after which nothing new is started (600)")
    parser.add_argument("--json", type=Path, help="where all that was measured goes")
    parser.add_argument("--batch", type=int, help="only this batch size (default: some)")
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="only these, by their names in the table (all)")
    args = parser.parse_args()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    session = Session(device=device, dtype=dtype, budget=args.budget, window=0.7 if cuda else 0.2, file=args.json)
    session.only, session.batch = args.only and tuple(args.only), args.batch
    side, kind = 8192 if cuda else 512, str(dtype).removeprefix("torch.")
    session.peak = matmul_peak(device, dtype, side, session.window)
    name = torch.cuda.get_device_name(device) if cuda else "CPU"
    session.facts |= {"device": name, "torch": torch.__version__, "dtype": kind, "matmul_side": side}
    session.facts |= {"classes": CLASSES, "draws": POLICY.num_draws, "threads": torch.get_num_threads()}
    say(f"{name}, torch {torch.__version__}: {kind} products of {side}³ at {session.peak / 1e12:.3g} TFLOP/s")
    kinds = ("unet", "dit") if args.model == "both" else (args.model,)
    for compiled in [cheap(session, SHAPES[args.size][kind]) for kind in kinds]:
        compiled()
    session.save()
    table(session)


if __name__ == "__main__":
    main()
