"""Runs a matching task into a directory that can be killed at any moment and continued."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from diffsight.backbones.encoders.dual import DualEncoder
from diffsight.evaluation.blind import blind_baseline
from diffsight.evaluation.match_tasks import MatchTask
from diffsight.evaluation.metrics.matching import Outcome, judge, summarize
from diffsight.matching.adapters import fingerprint
from diffsight.matching.leak import NOT_VALID, check_batches
from diffsight.matching.matcher import TOGETHER, ImageTextMatcher, Match
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MatchJob:
    """A task and a matcher: what a run's numbers depend on.

    Attributes:
        task: What is asked.
        matcher: Who answers.
    """

    task: MatchTask
    matcher: ImageTextMatcher

    def manifest(self) -> Manifest:
        """The run's fingerprint, and what else is worth recording."""
        model = self.matcher.model
        clip = isinstance(model, DualEncoder)
        fields = {
            "task": {"name": self.task.name, "version": self.task.version},
            "queries": {"count": len(self.task.queries), "content": self.task.fingerprint()},
            "model": model.identity(),
            "settings": {"score": {"name": "clip"}} if clip else self.matcher.settings.to_dict(),
            "adapter": None if self.matcher.adapter is None else fingerprint(self.matcher.adapter),
        }
        facts = {"batch_size": self.matcher.batch_size, "model": model.name, "device": str(model.device)}
        return Manifest(fields, session(("diffusers", "transformers"), **facts))


def evaluate_matching(
    job: MatchJob,
    out: Path | str,
    *,
    commit_every: int = 8 * TOGETHER,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Answer a task's queries into a directory, continuing what is there.

    Args:
        job: The task and the matcher.
        out: The run's directory.
        commit_every: Queries between two commits: what a killed process can lose. Whole batches where these leak.
        progress: Called with (queries finished, denoiser calls so far).

    Returns:
        The metrics, which are also in ``metrics.json``; what is measured and not computed is under ``speed``: wall time
        of all sessions, with reading the images and without loading the model.

    Raises:
        InputError: If a batch that leaks has queries with other numbers of candidates.
        RunError: If the directory belongs to another job, is damaged, in use, or the disk refuses.
    """
    queries, leaking = job.task.queries, job.matcher.settings.batch_leak
    if leaking is not None:
        check_batches(queries, leaking)
        commit_every = -(-commit_every // leaking) * leaking
    with Run.open(out, job.manifest()) as run:
        if run.commits == 0:
            run.commit({}, progress={"finished": 0, "calls": 0, "seconds": 0.0})
        finished, spent, seconds = run.progress["finished"], run.progress["calls"], run.progress.get("seconds")
        # What an interrupted run had called for is in `spent`; this process counts from there.
        before = job.matcher.calls
        # Groups are cut as in a run without interruption, so that the calls which queries share are the same.
        for start in range(finished, len(queries), commit_every):
            part = queries[start : start + commit_every]

            def report(done: int, calls: int, start: int = start) -> None:
                if progress is not None:
                    progress(start + done, spent + calls - before)

            began = time.perf_counter()
            matches = list(job.matcher.match(part, progress=report))
            seconds = None if seconds is None else seconds + time.perf_counter() - began
            calls = spent + job.matcher.calls - before
            run.commit(
                {"matches": _table(matches)},
                failures=[{"id": m.id, "reason": m.failure} for m in matches if m.failure is not None],
                progress={"finished": start + len(part), "calls": calls, "seconds": seconds},
            )
        invalid = None if leaking is None else NOT_VALID
        metrics = match_metrics(job.task, _matches(run), calls=run.progress["calls"], invalid=invalid)
        known = seconds if queries else None
        metrics["speed"] = {"seconds": known, "seconds_per_query": known and known / len(queries)}
        run.finish(metrics)
        return metrics


def match_metrics(
    task: MatchTask, matches: Sequence[Match], *, calls: int, invalid: str | None = None
) -> dict[str, Any]:
    """Results with intervals, chance, the blind baseline, ties, failures and cost, as JSON values.

    Args:
        task: What was asked.
        matches: The answers, one per query.
        calls: Calls of the denoiser for all of them.
        invalid: Why the results are no measurement, or None.
    """
    answers = {match.id: match for match in matches}
    judged = [query for query in task.queries if query.form == "grid" or query.positive is not None]
    outcomes: list[Outcome] = []
    for query in judged:
        match, nothing = answers[query.id], np.full((len(query.images), len(query.texts)), np.nan)
        outcomes.append(judge(query, nothing if match.failure else match.scores, failure=match.failure))
    return {
        "task": task.name,
        "invalid": invalid,
        "queries": len(task.queries),
        "failed": sum(match.failure is not None for match in matches),
        "no_query": len(task.failures),
        "unlabelled": len(task.queries) - len(judged),
        "results": summarize(outcomes).to_dict() if outcomes else None,
        "blind": blind_baseline(judged).to_dict() if judged else None,
        "calls": {"total": calls, "per_query": calls / max(1, len(task.queries))},
    }


def _table(matches: Sequence[Match]) -> pa.Table:
    good = [match for match in matches if match.failure is None]
    return pa.table(
        {
            "id": pa.array([match.id for match in good], pa.string()),
            "images": pa.array([match.scores.shape[0] for match in good], pa.int32()),
            "texts": pa.array([match.scores.shape[1] for match in good], pa.int32()),
            "scores": pa.array([match.scores.ravel().tolist() for match in good], pa.list_(pa.float64())),
        }
    )


def _matches(run: Run) -> list[Match]:
    """What is in a run, as it was answered."""
    table = run.read("matches").to_pylist() if "matches" in run.tables else []
    found = [
        Match(id=row["id"], scores=np.array(row["scores"], dtype=np.float64).reshape(row["images"], row["texts"]))
        for row in table
    ]
    failed = [Match(id=row["id"], scores=np.zeros((0, 0)), failure=row["reason"]) for row in run.failures()]
    return [*found, *failed]


def estimate_calls(job: MatchJob, *, pilot: int = 8) -> tuple[float, float]:
    """Calls per query and calls per second, from the first queries; nothing is written.

    Args:
        job: The task and the matcher.
        pilot: How many queries to answer.
    """
    queries = list(islice(job.task.queries, pilot))
    before, started = job.matcher.calls, time.perf_counter()
    for _ in job.matcher.match(queries):
        pass
    seconds = max(time.perf_counter() - started, 1e-9)
    calls = job.matcher.calls - before
    return calls / len(queries), calls / seconds
