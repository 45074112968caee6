"""Classifiers from class names alone: tiny-fashion draws training sets, and small networks learn from them.

    python benchmarks/synthesis.py --work runs/synthesis [--per-class 2000] [--seeds 3] [--jobs 6] [--figures docs]

They are tested on the real test photographs of Fashion-MNIST. Sets of equal size: base class, class prompt,
multi-domain, random guidance, merged, and others; one trick with and without each filter; real photographs as the
ceiling, and photographs that the zero-shot classifier has labelled. Beside the networks stand Gaussians on features
(GDC) and the zero-shot classifier itself. Speed is measured first, with nothing else running. No real image chooses
anything: the epoch is the best on held-out images of the training set, and all else is fixed beforehand.

Each finished part is a file of one line in ``--work``/parts: the same command goes on after an interruption, also with
other ``--jobs`` or ``--part``, and results of other settings stay beside each other. ``--report`` only prints.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from synthesis_parts import PARTS, Part, parts_of, work_on
from synthesis_sets import FILTERS, TRICKS, Bench
from synthesis_tables import draw_figures, show
from zero_shot import say

from diffsight.backbones.base import resolve_device
from diffsight.errors import DiffsightError
from diffsight.store.disk import make, put, to_json

log = logging.getLogger("diffsight.benchmarks")
_CPU, _GPU = {"rows": 64, "calls": 256}, {"rows": 1024, "calls": 1024}


def read_results(bench: Bench) -> dict[str, dict[str, Any]]:
    """What is finished, by file name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((bench.work / "parts").glob("*.jsonl"))}


def keep(bench: Bench, part: Part, found: Mapping[str, Any]) -> None:
    """Keep the result of a part, whole or not at all."""
    folder = bench.work / "parts"
    make(folder.resolve())
    put(folder / f"{part.key(bench)}.jsonl", (to_json(dict(found), "A result") + "\n").encode())


def waiting(bench: Bench, kinds: tuple[str, ...], failed: set[Part]) -> list[Part]:
    """The parts that are left to do and can be done now: what they need is there."""
    done = read_results(bench)
    sets = {part.name: found for part, found in results_of(bench, done).items() if part.kind == "set"}
    there = {name for name in sets if bench.packed(name).exists()}
    parts = [part for part in parts_of(bench, sets, kinds) if part not in failed]
    left = [part for part in parts if part.key(bench) not in done]
    # Images can be gone where only results were kept; they are drawn again if something still needs them.
    gone = {need for part in left for need in part.needs} & sets.keys() - there
    again = [part for part in parts if part.kind == "set" and part.name in gone and part not in left]
    return again + [part for part in left if there.issuperset(part.needs)]


def results_of(bench: Bench, done: Mapping[str, dict[str, Any]]) -> dict[Part, dict[str, Any]]:
    """Of all results those of these settings."""
    found = {}
    for name, one in done.items():
        part = Part(kind=one["part"], name=one["name"], network=one["network"], seed=one["seed"])
        if part.key(bench) == name:
            found[part] = one
    return found


def start(bench: Bench, jobs: int) -> None:
    """Prepare a process: its share of the cores."""
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    logging.basicConfig(format="%(message)s")


def attempt(bench: Bench, part: Part) -> dict[str, Any]:
    """Do a part and keep its result."""
    found = work_on(bench, part)
    keep(bench, part, found)
    return found


def run(bench: Bench, *, kinds: tuple[str, ...], jobs: int, stop_after: float | None) -> set[Part]:
    """Do all that is left to do.

    Args:
        bench: The settings.
        kinds: Some of `PARTS`.
        jobs: Processes that work beside each other; 1 works in this one.
        stop_after: Seconds after which nothing new is begun.

    Returns:
        The parts that failed.
    """
    began, failed = time.monotonic(), set[Part]()
    running: dict[Future[dict[str, Any]], Part] = {}

    def late() -> bool:
        return stop_after is not None and time.monotonic() - began > stop_after

    def finished(part: Part, outcome: Future[dict[str, Any]]) -> None:
        try:
            found = outcome.result()
            log.info("%4.0f s  %s: %.0f s", time.monotonic() - began, part.id, found["wall"])
        except DiffsightError as error:
            failed.add(part)
            log.error("%s failed: %s", part.id, error)

    # Alone, before any other process is there.
    for part in [one for one in waiting(bench, kinds, failed) if one.alone]:
        finished(part, _here(bench, part))
    with _pool(bench, jobs) as pool:
        while True:
            left = [] if late() else waiting(bench, kinds, failed)
            open_ = [part for part in left if part not in running.values() and not part.alone]
            for part in open_[: jobs - len(running)]:
                running[_here(bench, part) if pool is None else pool.submit(attempt, bench, part)] = part
            if not running:
                return failed
            for outcome in wait(running, return_when=FIRST_COMPLETED).done:
                finished(running.pop(outcome), outcome)


def _here(bench: Bench, part: Part) -> Future[dict[str, Any]]:
    outcome: Future[dict[str, Any]] = Future()
    try:
        outcome.set_result(attempt(bench, part))
    except DiffsightError as error:
        outcome.set_exception(error)
    return outcome


@contextmanager
def _pool(bench: Bench, jobs: int) -> Iterator[ProcessPoolExecutor | None]:
    if jobs == 1:
        yield None
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=start, initargs=(bench, jobs)) as pool:
        yield pool


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path("runs/synthesis"), help="where sets, networks and results are kept")
    add("--part", nargs="+", choices=PARTS, default=PARTS, help="only some kinds of parts")
    add("--jobs", type=int, default=1, help="processes that work beside each other")
    add("--stop-after", type=float, metavar="SECONDS", help="begin nothing new after that long (default: never)")
    add("--report", action="store_true", help="only print what is finished")
    add("--figures", type=Path, metavar="DIR", help="draw the sets, a picture for each and one of all")
    add("--model", default="tiny-fashion", help="what draws, labels and gives features")
    add("--device", help="where (default: a GPU if there is one)")
    add("--dtype", help="precision of the model (default: bf16 on a GPU, else fp32)")
    add("--per-class", type=int, default=2000, help="images of each class in every training set")
    add("--filter-per-class", type=int, default=500, help="the same, in the sets with and without filters")
    add("--filter-trick", default="class-prompt", choices=TRICKS, help="the trick of those sets")
    add("--steps", type=int, default=20, help="of the sampler")
    add("--rows", type=int, help="images drawn at once (default: 64, on a GPU 1024)")
    add("--calls", type=int, help="rows of the denoiser in a call that scores (default: 256, on a GPU 1024)")
    add("--tricks", nargs="+", choices=TRICKS, default=list(TRICKS), help="which sets are drawn")
    add("--filters", nargs="+", choices=FILTERS, default=list(FILTERS), help="which sets with other filters are drawn")
    add("--networks", nargs="+", default=["mobilenetv3-small", "resnet10t"], help="what is trained")
    add("--seeds", type=int, default=3, help="trainings of each network on each set")
    add("--epochs", type=int, default=12, help="of each training; the best on held-out images is kept")
    add("--batch", type=int, help="images of a step (default: a 32nd of the set, from 32 to 512)")
    add("--test", type=int, default=10_000, help="test photographs, from the first")
    add("--zero-shot-images", type=int, default=1000, help="the same, for the zero-shot classifier")
    add("--photographs", type=int, default=5000, help="unlabelled training photographs that are distilled")
    add("--draws", type=int, default=8, help="of the classifier for each of them, at most")
    add("--agreement", type=int, default=50, help="images of each class whose labels are checked for the report")
    add("--diverse", type=int, default=200, help="images of each class in the report on diversity")
    add("--speed-images", type=int, help="that are classified zero-shot for speed (default: 64, on a GPU 512)")
    add("--repeats", type=int, default=3, help="of each measurement of speed")
    return parser.parse_args()


def bench_of(args: argparse.Namespace) -> Bench:
    """The settings that decide results."""
    on_gpu = resolve_device(args.device).type == "cuda"
    usual = _GPU if on_gpu else _CPU
    return Bench(
        work=args.work,
        model=args.model,
        device=args.device,
        dtype=args.dtype or ("bf16" if on_gpu else "fp32"),
        per_class=args.per_class,
        filter_per_class=min(args.filter_per_class, args.per_class),
        filter_trick=args.filter_trick,
        steps=args.steps,
        rows=args.rows or usual["rows"],
        calls=args.calls or usual["calls"],
        tricks=tuple(args.tricks),
        filters=tuple(args.filters),
        networks=tuple(args.networks),
        seeds=args.seeds,
        epochs=args.epochs,
        batch=args.batch,
        test=args.test,
        zero_shot=args.zero_shot_images,
        photographs=args.photographs,
        draws=args.draws,
        agreement=args.agreement,
        diverse=args.diverse,
        speed_images=args.speed_images or (512 if on_gpu else 64),
        repeats=args.repeats,
    )


def main() -> None:
    """Measure, print and draw."""
    args = read_options()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    bench = bench_of(args)
    failed: set[Part] = set()
    if not args.report:
        failed = run(bench, kinds=tuple(args.part), jobs=args.jobs, stop_after=args.stop_after)
    show(bench, results_of(bench, read_results(bench)))
    if args.figures:
        for path in draw_figures(bench, args.figures):
            say(f"drawn: {path}")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
