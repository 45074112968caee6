"""Image–text matching: which of two captions is true of a rendered scene, and of which of two scenes a caption is true.

    python benchmarks/matching.py --clip CLIP [--images] [--limit 1000]
        [--figure docs/matching-timesteps.png] [--training-figure docs/matching-training.png]

20 tests of attribute binding, on combinations of shape and colour that tiny-shapes has seen and on others. All scores
of the diffusion model come from one measurement of each image, caption and draw. Beside them stand CLIP and a reader of
the captions alone. Finished tests are kept in ``--out``: the same command goes on after an interruption.

The second table has the accuracy when draws of one tenth of the noise levels alone are looked at.
"""

import argparse
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from matching_figures import draw_tenths, draw_training
from matching_measure import TENTHS, Report, average, hits, interval, keep, measure, percent, read_lines, scores_for
from zero_shot import say

from diffsight.backbones import load
from diffsight.backbones.base import Backbone
from diffsight.backbones.cards import assets
from diffsight.backbones.encoders.clip import load_clip
from diffsight.cli.output import progress
from diffsight.data.binding import CONTROLS, PAIRS, SINGLES, TASKS
from diffsight.data.queries import Query
from diffsight.evaluation.blind import blind_baseline
from diffsight.evaluation.match_tasks import load_match_task
from diffsight.evaluation.metrics.matching import judge
from diffsight.features.figures import check_figure_path, save_figure
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.settings import MatchSettings
from diffsight.store.disk import digest, to_json

GROUPS = {"controls": CONTROLS, "pairs": PAIRS, "singles": SINGLES}
ESCAPED = r"\|"
METHODS = ("error", "pmi", "attention", "hybrid", "CLIP")


def diffusion_hits(
    queries: Sequence[Query],
    backbone: Backbone,
    settings: MatchSettings,
    batch_size: int,
    with_empty: bool,
    report: Report,
) -> dict[str, Any]:
    """Hits of every score, and their means by tenth of the noise levels."""
    started = time.perf_counter()
    found, weights, calls = measure(
        backbone, settings, queries, batch_size=batch_size, with_empty=with_empty, report=report
    )
    scores = scores_for(queries).items()
    return {
        "hits": {name: hits(queries, found, score, weights) for name, score in scores},
        "tenths": {
            name: [average(hits(queries, found, score, weights, tenth=tenth)) for tenth in range(TENTHS)]
            for name, score in scores
        },
        "calls": calls,
        "seconds": time.perf_counter() - started,
    }


def clip_hits(queries: Sequence[Query], matcher: ImageTextMatcher) -> dict[str, Any]:
    """Hits of CLIP."""
    answers = zip(queries, matcher.match(queries), strict=True)
    return {"hits": {"CLIP": [judge(query, match.scores, failure=match.failure).hit for query, match in answers]}}


def blind_accuracy(queries: Sequence[Query]) -> dict[str, Any]:
    """Accuracy of a reader of the captions alone; None where there are too few to learn from."""
    blind = blind_baseline(queries)
    found = blind.images if queries[0].form == "images" else blind.texts
    return {"blind": None if found is None else found.estimate.value}


def run(args: argparse.Namespace) -> dict[str, dict[str, dict[str, Any]]]:
    """Measure what is not kept yet: by task and test the hits, their means by tenth, and the blind accuracy."""
    backbone, settings = load(args.model, device=args.device, dtype=args.dtype), MatchSettings(draws=args.draws)
    clip = load_clip(args.clip, device=args.device) if args.clip else None
    directions = ("binding", "binding-images") if args.images else ("binding",)
    names = [f"{direction}{part}" for direction in directions for part in ("", "-held-out")]
    lines, result, done, calls = read_lines(args.out), {name: {} for name in names}, 0, 0
    with progress(args.limit * len(args.tests) * len(names), "queries") as report:
        for name, test in product(names, args.tests):
            task = load_match_task(f"{name}/{test}", limit=args.limit)
            queries, with_empty = task.queries, not args.without_empty or "images" in name

            def later(queries: int, spent: int, done: int = done, calls: int = calls) -> None:
                report(done + queries, calls + spent)

            parts: dict[str, tuple[object, Callable[..., dict[str, Any]], tuple[Any, ...]]] = {
                "blind": (None, blind_accuracy, ()),
                "diffusion": (
                    [backbone.identity(), settings.to_dict(), with_empty],
                    diffusion_hits,
                    (backbone, settings, args.batch_size, with_empty, later),
                ),
            }
            if clip is not None:
                parts["clip"] = (clip.identity(), clip_hits, (ImageTextMatcher(clip),))
            found: dict[str, Any] = {"hits": {}}
            for part, (depends, work, arguments) in parts.items():
                key = digest(to_json([part, name, task.fingerprint(), depends], "A key").encode())
                if key not in lines:
                    lines[key] = {"part": part, "task": name, "test": test, **work(queries, *arguments)}
                    keep(args.out, lines)
                    calls += lines[key].get("calls", 0)
                found |= lines[key] | {"hits": found["hits"] | lines[key].get("hits", {})}
            result[name][test] = found
            done += len(queries)
    return result


def grouped(tests: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tests that there are, by what they ask for."""
    groups = {group: [test for test in members if test in tests] for group, members in GROUPS.items()}
    return {group: members for group, members in groups.items() if members}


def curves(tests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float | None]]]:
    """Accuracy by tenth of the noise levels, by method and group of tests."""
    return {
        method: {
            group: [average([tests[test]["tenths"][method][tenth] for test in members]) for tenth in range(TENTHS)]
            for group, members in grouped(tests).items()
        }
        for method in next(iter(tests.values()))["tenths"]
    }


def show(name: str, tests: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the tables of a task: accuracy by test and method, and by tenth of the noise levels."""
    columns: dict[str, list[str]] = {}
    known = next(iter(tests.values()))["hits"]
    for method in (method for method in METHODS if method in known):
        same = [one for one in columns if all(test["hits"][one] == test["hits"][method] for test in tests.values())]
        columns.setdefault(same[0] if same else method, []).append(method)
    say(f"\n{name}\n\n| test | {' | '.join(' = '.join(same) for same in columns.values())} | captions alone |")
    say("|---|" + "---|" * (len(columns) + 1))
    groups = [(f"**{group}**", members) for group, members in grouped(tests).items()]
    for title, members in [*((test, [test]) for test in tests), *groups]:
        cells = [interval([hit for test in members for hit in tests[test]["hits"][method]]) for method in columns]
        cells.append(percent(average([tests[test]["blind"] for test in members])))
        say(f"| {title.replace('|', ESCAPED)} | {' | '.join(cells)} |")
    for method in columns:
        failed = sum(test["hits"][method].count(None) for test in tests.values())
        if failed:
            say(f"\n{failed} queries have no answer by {method}; they are not counted.")
    shown = {
        f"{method}, {group}": values
        for method in ("pmi" if "images" in name else "error", "attention")
        for group, values in curves(tests)[method].items()
    }
    say(f"\n| noise levels | {' | '.join(shown)} |\n|---|" + "---|" * len(shown))
    for tenth in range(TENTHS):
        cells = [percent(values[tenth]) for values in shown.values()]
        say(f"| {tenth / TENTHS:.1f}–{(tenth + 1) / TENTHS:.1f} | {' | '.join(cells)} |")


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-shapes")
    parser.add_argument("--clip", help="a CLIP model to compare: a name or a folder (default: none)")
    parser.add_argument("--images", action="store_true", help="also choose among two images")
    parser.add_argument("--limit", type=int, default=1000, help="examples of each test")
    parser.add_argument("--tests", nargs="+", choices=TASKS, default=TASKS, metavar="TEST", help="only some tests")
    parser.add_argument("--draws", type=int, default=MatchSettings().draws)
    parser.add_argument(
        "--without-empty",
        action="store_true",
        help="do not run the empty caption for captions of one image, where it cancels in every score: a third less",
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="fp32, bf16 or fp16 (default: bf16 on a GPU that has it, else fp32)")
    parser.add_argument("--out", type=Path, default=Path("runs/matching.jsonl"))
    parser.add_argument("--figure", type=Path, help="draw accuracy by noise level")
    parser.add_argument("--training-figure", type=Path, help="draw how binding was learnt")
    parser.add_argument("--watched", type=Path, default=assets() / "tiny-shapes" / "watch.jsonl", help="what to draw")
    args = parser.parse_args()
    for path in filter(None, (args.figure, args.training_figure)):
        check_figure_path(path)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("diffsight").setLevel(logging.INFO)
    if args.training_figure:
        save_figure(draw_training(args.watched), args.training_figure)
    result = run(args)
    for name, tests in result.items():
        show(name, tests)
    if args.figure:
        chosen = {name: curves(tests) for name, tests in result.items() if "images" not in name}
        save_figure(draw_tenths(chosen, methods=("error", "attention")), args.figure)


if __name__ == "__main__":
    main()
