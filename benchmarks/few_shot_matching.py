"""What a few examples teach a matcher: accuracy against their number, for each kind of adapter.

    python benchmarks/few_shot_matching.py [--limit 240] [--seeds 5] [--figure docs/matching-few-shot.png]

Adapters learn from scenes of their own, with combinations of shape and colour that tiny-shapes has seen, and are tested
on other scenes: half of them with seen and half with held-out combinations. Captions of one image are compared, where
the empty caption cancels in every score, so it is not run. Results are kept in ``--out``, a line for each kind, number
and choice of the examples: the same command goes on after an interruption.
"""

import argparse
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from matching_figures import draw_few_shot
from matching_measure import average, examples_of, hits, interval, keep, measure, read_lines
from zero_shot import say

from diffsight.backbones import load
from diffsight.backbones.base import Backbone
from diffsight.cli.output import progress
from diffsight.data.binding import TASKS
from diffsight.data.queries import Query
from diffsight.evaluation.match_tasks import BINDING_VERSION, MatchTask, load_match_task
from diffsight.evaluation.metrics.matching import judge
from diffsight.features.figures import check_figure_path, save_figure
from diffsight.matching.candidates import candidate_sets
from diffsight.matching.fitting import fit_adapter
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.options import KINDS, FitOptions, fit_options
from diffsight.matching.scores import PMI, Attention, Hybrid
from diffsight.matching.settings import MatchSettings, with_score
from diffsight.matching.weighing import Weighted, fit_weights
from diffsight.store.disk import digest, to_json

# Singles, which are hard, and pairs.
DEFAULT_TESTS = ("colour|shape", "shape|colour", "position|shape", "size|shape", "shape,colour", "colour,position")
PARTS = {"seen combinations": "binding", "held-out combinations": "binding-held-out"}
# The last is what weights are before they have learnt: the gain of the error's norm.
ZERO_SHOT = {"pmi": PMI(), "hybrid": Hybrid(), "attention": Attention(), "norm": Hybrid(alpha=0)}


@dataclass(frozen=True, slots=True, eq=False)
class Bench:
    """What all results have in common.

    Attributes:
        backbone: The model.
        settings: Of matching, with the score that a prompt or lora makes better.
        tests: Which tests of attribute binding.
        tested: Queries that are tested with, by part.
        counts: Numbers of examples.
        seeds: How many choices of them.
        steps: Of a prompt and lora; None for the default.
        batch_size: Rows per call.
        out: Where results are kept.
        lines: What is kept.
    """

    backbone: Backbone
    settings: MatchSettings
    tests: Sequence[str]
    tested: dict[str, tuple[Query, ...]]
    counts: Sequence[int]
    seeds: int
    steps: int | None
    batch_size: int
    out: Path
    lines: dict[str, Any]

    @property
    def queries(self) -> tuple[Query, ...]:
        """All queries that are tested with."""
        return tuple(query for part in self.tested.values() for query in part)

    def options(self, kind: str, seed: int) -> FitOptions:
        """How to fit."""
        steps = {"steps": self.steps} if self.steps and kind != "weights" else {}
        return fit_options(kind, {} if kind == "weights" else {"seed": seed, **steps})

    def key(self, kind: str, count: int = 0, seed: int = 0) -> str:
        """The key of a result: a hash of all that decides it."""
        options = self.options(kind, seed).to_dict() if kind in KINDS else None
        learnt = MatchTask(name="", version=BINDING_VERSION, queries=examples_of(self.tests, count, seed=seed))
        tested = MatchTask(name="", version=BINDING_VERSION, queries=self.queries)
        model, settings = self.backbone.identity(), self.settings.to_dict()
        asked = [kind, count, seed, options, learnt.fingerprint(), tested.fingerprint(), model, settings]
        return digest(to_json(asked, "A key").encode())

    def keep(self, key: str, kind: str, count: int, seed: int, **found: Any) -> None:  # noqa: ANN401 - JSON values
        """Keep a result."""
        self.lines[key] = {"kind": kind, "count": count, "seed": seed, **found}
        keep(self.out, self.lines)

    def missing(self, kind: str) -> list[tuple[str, int, int]]:
        """Key, number and choice of the examples of all results that are not kept, choice by choice."""
        known = ((self.key(kind, count, seed), count, seed) for seed, count in product(range(self.seeds), self.counts))
        return [one for one in known if one[0] not in self.lines]

    def shares(self, key: str, score: str | None = None) -> dict[str, list[float | None]]:
        """Hits of a result by part; of one score, where it has several."""
        left = list(self.lines[key]["hits"] if score is None else self.lines[key]["hits"][score])
        return {part: [left.pop(0) for _ in queries] for part, queries in self.tested.items()}


def weigh(bench: Bench, *, learn: bool) -> None:
    """Zero-shot scores and, to learn, weights: all is measured once, and examples once for all their numbers."""
    missing, first = bench.missing("weights") if learn else [], bench.key("zero-shot")
    if not missing and first in bench.lines:
        return
    chosen = {seed: max(count for _, count, one in missing if one == seed) for _, _, seed in missing}
    how = {"batch_size": bench.batch_size, "with_empty": False}
    queries = bench.queries
    with progress(len(queries) + sum(chosen.values()), "queries of weights") as report:
        found, weights, calls = measure(bench.backbone, bench.settings, queries, report=report, **how)
        scores = {name: hits(queries, found, score, weights) for name, score in ZERO_SHOT.items()}
        bench.keep(first, "zero-shot", 0, 0, hits=scores, calls=calls)
        done = len(queries)
        for seed, most in chosen.items():

            def later(queries: int, spent: int, done: int = done, calls: int = calls) -> None:
                report(done + queries, calls + spent)

            shown = examples_of(bench.tests, most, seed=seed)
            learnt, _, spent = measure(bench.backbone, bench.settings, shown, report=later, **how)
            done, calls = done + most, calls + spent
            pairs = [(one, candidate_sets(query)) for one, query in zip(learnt, shown, strict=True)]
            for key, count, _ in (one for one in missing if one[2] == seed):
                good = [(one, sets) for one, sets in pairs[:count] if not isinstance(one, str)]
                options = bench.options("weights", seed)
                matrix, loss = fit_weights([one for one, _ in good], [sets for _, sets in good], options)
                score = Weighted(tuple(map(tuple, matrix.tolist())))
                bench.keep(key, "weights", count, seed, hits=hits(queries, found, score, weights), loss=loss)


def train(bench: Bench, kind: str) -> None:
    """A prompt, or lora: trained through the denoiser, which then is asked again about every query."""
    missing, queries, calls = bench.missing(kind), bench.queries, 0
    with progress(len(missing) * len(queries), f"queries of {kind}") as report:
        report(0, 0)
        for number, (key, count, seed) in enumerate(missing):
            started = time.perf_counter()
            how = {"settings": bench.settings, "batch_size": bench.batch_size}
            shown, options = examples_of(bench.tests, count, seed=seed), bench.options(kind, seed)
            adapter = fit_adapter(bench.backbone, shown, options=options, **how)
            fitted = time.perf_counter()
            matcher = ImageTextMatcher(bench.backbone, adapter=adapter, **how)

            def later(queries_done: int, spent: int, number: int = number, calls: int = calls) -> None:
                report(number * len(queries) + queries_done, calls + spent)

            answers = zip(queries, matcher.match(queries, progress=later), strict=True)
            own = [judge(query, match.scores, failure=match.failure).hit for query, match in answers]
            calls += matcher.calls
            seconds = {"fit_seconds": fitted - started, "test_seconds": time.perf_counter() - fitted}
            loss = adapter.notes["loss"]
            bench.keep(key, kind, count, seed, hits=own, loss=loss, calls=matcher.calls, **seconds)


def collect(bench: Bench, kinds: Sequence[str]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """By part, kind and number of examples the accuracy of each choice of them; of none that of the zero-shot score."""
    found: dict[str, dict[str, dict[int, list[float]]]] = {part: {} for part in bench.tested}
    for kind in kinds:
        # Captions of one image have the same order by pmi and by error.
        start = "norm" if kind == "weights" else bench.settings.score.name.replace("error", "pmi")
        for part, values in bench.shares(bench.key("zero-shot"), start).items():
            found[part][kind] = {0: known([values])}
        for count in bench.counts:
            of_seeds = [bench.shares(bench.key(kind, count, seed)) for seed in range(bench.seeds)]
            for part in bench.tested:
                found[part][kind][count] = known([one[part] for one in of_seeds])
    return found


def known(hits_of: Sequence[Sequence[float | None]]) -> list[float]:
    """The mean of each list that has one."""
    return [mean for mean in map(average, hits_of) if mean is not None]


def show(bench: Bench, found: dict[str, dict[str, dict[int, list[float]]]]) -> None:
    """Print accuracy of the zero-shot scores, and of what was learnt: mean and standard deviation over choices."""
    say("\n| zero-shot | " + " | ".join(bench.tested) + " |\n|---|" + "---|" * len(bench.tested))
    for score in ZERO_SHOT:
        own = bench.shares(bench.key("zero-shot"), score)
        say(f"| {score} | {' | '.join(interval(own[part]) for part in bench.tested)} |")
    for part, kinds in found.items():
        counts = (0, *bench.counts)
        say(f"\n| {part}, examples | {' | '.join(map(str, counts))} |\n|---|" + "---|" * len(counts))
        for kind, curve in kinds.items():
            cells = []
            for values in curve.values():
                spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1%}{spread}")
            say(f"| {kind} | {' | '.join(cells)} |")


def main() -> None:
    """Fit, test, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-shapes")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--tests", nargs="+", choices=TASKS, default=DEFAULT_TESTS, metavar="TEST")
    parser.add_argument("--limit", type=int, default=240, help="queries to test with, in all")
    parser.add_argument("--examples", nargs="+", type=int, default=(1, 4, 16, 64), help="numbers of examples, beside 0")
    parser.add_argument("--seeds", type=int, default=5, help="choices of the examples")
    parser.add_argument(
        "--score", choices=("error", "hybrid", "attention"), default="error", help="of a prompt and lora"
    )
    parser.add_argument("--steps", type=int, help="of a prompt and lora (default: the library's)")
    parser.add_argument("--draws", type=int, default=MatchSettings().draws)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16 (default: bf16 on a GPU that has it, else fp32)")
    parser.add_argument("--out", type=Path, default=Path("runs/few-shot-matching.jsonl"))
    parser.add_argument("--figure", type=Path)
    args = parser.parse_args()
    if args.figure:
        check_figure_path(args.figure)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("diffsight").setLevel(logging.INFO)
    each = max(1, args.limit // (len(PARTS) * len(args.tests)))
    tested = {
        part: tuple(q for test in args.tests for q in load_match_task(f"{task}/{test}", limit=each).queries)
        for part, task in PARTS.items()
    }
    backbone = load(args.model, device=args.device, dtype=args.dtype)
    settings = with_score(MatchSettings(draws=args.draws), args.score)
    common = {"steps": args.steps, "batch_size": args.batch_size, "out": args.out, "lines": read_lines(args.out)}
    bench = Bench(backbone, settings, args.tests, tested, sorted(args.examples), args.seeds, **common)
    weigh(bench, learn="weights" in args.kinds)
    for kind in args.kinds:
        if kind != "weights":
            train(bench, kind)
    found = collect(bench, args.kinds)
    show(bench, found)
    if args.figure:
        first = bench.key("zero-shot")
        of_scores = {score: bench.shares(first, score) for score in ("pmi", "hybrid", "attention")}
        lines = {part: {name: known([one[part]])[0] for name, one in of_scores.items()} for part in tested}
        save_figure(draw_few_shot(found, lines), args.figure)


if __name__ == "__main__":
    main()
