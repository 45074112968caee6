"""Scores a run again from its stored errors: other losses, weights, votes, policies or probabilities, no model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffsight.diffusion.weighting import by_name
from diffsight.errors import InputError, nearest
from diffsight.evaluation import calibrating
from diffsight.evaluation.cues import cues_of_run
from diffsight.evaluation.learned_weights import ORACLE, PROTOCOL, LearnedWeights
from diffsight.evaluation.metrics.paired import Answers, asked
from diffsight.evaluation.metrics.summary import confidence_metrics, summary
from diffsight.evaluation.stored import StoredErrors as StoredErrors
from diffsight.evaluation.stored import StoredRun, open_stored
from diffsight.evaluation.stored import read_errors as read_errors
from diffsight.scoring.engine import Scored, Units
from diffsight.scoring.policies import policy_from_dict, replay
from diffsight.zero_shot.settings import Contest, Settings, arrange
from diffsight.zero_shot.verdict import Verdict, decide
from diffsight.zero_shot.voting import VOTES, vote_shares


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What is to be different from the run; what is None stays as it was.

    Attributes:
        loss: ``"l1"``, ``"l2"``, ``"huber"``, or ``"kl"`` if it was stored.
        weighting: Timestep weights by name.
        weights: Learnt timestep weights, in place of ``weighting``. Images that they were learnt from are left out,
            unless that would be all: then the result is labelled an oracle.
        ensemble: Of several prompts per class; ``"embedding"`` needs the model and cannot be changed to or from.
        policy: Name and settings of a policy to replay on the stored errors; its draws must be among those stored.
        vote: Let draws vote, ``"majority"`` or ``"weighted"``, instead of averaging errors; None averages.
        scale: Inverse temperature of the probabilities.
        calibration: Probabilities fitted to the labels of other images of the run: ``"temperature"`` or ``"platt"``.
    """

    loss: str | None = None
    weighting: str | None = None
    weights: LearnedWeights | None = None
    ensemble: str | None = None
    policy: Mapping[str, Any] | None = None
    vote: str | None = None
    scale: float | None = None
    calibration: str | None = None

    def __post_init__(self) -> None:
        for what, value, known in (
            ("vote", self.vote, VOTES),
            ("calibration", self.calibration, calibrating.CALIBRATIONS),
        ):
            if value is not None and value not in known:
                raise InputError(f"Unknown {what} {value!r}. {nearest(value, known)}")
        if self.weights is not None and self.weighting is not None:
            raise InputError(f"Give learnt weights or the weighting {self.weighting!r}, not both.")
        if self.weights is not None and self.loss not in (None, self.weights.loss):
            raise InputError(f"These weights were learnt for the loss {self.weights.loss!r}, not for {self.loss!r}.")
        means = [name for name in ("vote", "scale", "calibration") if getattr(self, name) is not None]
        if len(means) > 1:
            raise InputError(f"Each of {' and '.join(means)} says what the probabilities are: give one of them.")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Rescored:
    """A run, scored again.

    Attributes:
        metrics: As `runner.evaluate` gives them. ``protocol`` is there if labels were used, and ``left_out`` with
            learnt weights: how many images they were learnt from.
        answers: Which images are right, for `paired.compare_answers`.
    """

    metrics: dict[str, Any]
    answers: Answers


def rescore(
    path: Path | str,
    *,
    loss: str | None = None,
    weighting: str | None = None,
    weights: LearnedWeights | None = None,
    ensemble: str | None = None,
    policy: Mapping[str, Any] | None = None,
    vote: str | None = None,
    scale: float | None = None,
    calibration: str | None = None,
) -> dict[str, Any]:
    """Score a run again. What is not given stays as it was; the run is not changed.

    Args:
        path: A run's directory.
        loss: As in `Changes`, like the rest.
        weighting: Likewise.
        weights: Likewise.
        ensemble: Likewise.
        policy: Likewise.
        vote: Likewise.
        scale: Likewise.
        calibration: Likewise.

    Returns:
        Metrics as `evaluate` gives them; calls are those that the policy would have made.

    Raises:
        RunError: If there is no run, or it is damaged.
        InputError: If something was not stored that the new settings need, or they contradict each other.
    """
    changes = Changes(
        loss=loss,
        weighting=weighting,
        weights=weights,
        ensemble=ensemble,
        policy=policy,
        vote=vote,
        scale=scale,
        calibration=calibration,
    )
    return rescore_run(path, changes).metrics


def rescore_run(path: Path | str, changes: Changes, *, name: str | None = None) -> Rescored:
    """Score a run again, and keep which images are right.

    Args:
        path: A run's directory.
        changes: What is to be different.
        name: What to call the answers; by default the path.

    Raises:
        RunError: If there is no run, or it is damaged.
        InputError: If something was not stored that the new settings need.
    """
    stored = open_stored(path)
    settings, contest = _arranged(stored, changes)
    ids, labels, tables = stored.errors.ids, stored.errors.labels, stored.errors.tables
    learnt = frozenset() if changes.weights is None else changes.weights.learnt_from(stored)
    oracle = bool(learnt) and learnt >= {id for id, label in zip(ids, labels, strict=True) if label is not None}
    kept = [place for place, id in enumerate(ids) if oracle or id not in learnt]
    labels = [labels[place] for place in kept]
    scored = [
        Scored(
            id=ids[place],
            errors=tables[place],
            alive=_winners(contest.units, tables[place]),
            calls=int(np.isfinite(tables[place][..., 0]).sum()),
        )
        if changes.policy is None
        else _replayed(settings, contest.units, ids[place], tables[place])
        for place in kept
    ]
    calls = np.array([one.calls for one in scored], dtype=np.int64)
    if changes.calibration == "temperature":
        verdicts = calibrating.cross_temperature(scored, contest, labels)
    elif changes.vote is not None:
        verdicts = [_voted(one, contest, changes.vote) for one in scored]
    else:
        verdicts = [decide(one, contest, scale=changes.scale) for one in scored]
    correct = np.array([v.label == label and not v.tie for v, label in zip(verdicts, labels, strict=True)], dtype=bool)
    confidence = None
    if changes.calibration == "platt":
        confidence = calibrating.cross_platt(calls, correct, labels)
        verdicts = [calibrating.with_confidence(*pair) for pair in zip(verdicts, confidence.tolist(), strict=True)]
    failures = stored.run.failures()
    metrics = summary(
        labels=labels,
        predictions=[verdict.label for verdict in verdicts],
        probabilities=np.array([v.probabilities for v in verdicts]).reshape(len(verdicts), len(stored.classes)),
        ties=[verdict.tie for verdict in verdicts],
        calls=calls.tolist(),
        failures=len(failures),
        class_names=stored.classes,
        metric=stored.fields["task"]["metric"],
    )
    found = {"id": [one.id for one in scored], "prediction": [verdict.label for verdict in verdicts]}
    found["tie"] = [verdict.tie for verdict in verdicts]
    metrics |= cues_of_run(stored.fields["data"]["source"], found, stored.classes)
    known = [place for place, label in enumerate(labels) if label is not None]
    if confidence is not None:  # of the answer, even where another class got more of the rest
        metrics |= confidence_metrics(confidence[known], correct[known])
    if changes.weights is not None:
        metrics["left_out"] = len(ids) - len(kept)
    protocol = [ORACLE if oracle else PROTOCOL] if changes.weights is not None else []
    protocol += [calibrating.PROTOCOL] if changes.calibration is not None else []
    if protocol:
        metrics["protocol"] = "; ".join(protocol)
    answers = Answers(
        name=name or str(path),
        asked=asked(stored.fields),
        metric=stored.fields["task"]["metric"],
        labels={scored[place].id: int(labels[place] or 0) for place in known},
        correct={scored[place].id: bool(correct[place]) for place in known},
        failed=frozenset(failure["id"] for failure in failures),
    )
    return Rescored(metrics=metrics, answers=answers)


def _arranged(stored: StoredRun, changes: Changes) -> tuple[Settings, Contest]:
    """The new settings, and what competes with them."""
    old = stored.fields["settings"]
    if changes.ensemble not in (None, old["ensemble"]) and "embedding" in (changes.ensemble, old["ensemble"]):
        raise InputError("The ensemble 'embedding' scores other prompts than the rest: evaluate again with the model.")
    learnt = changes.weights
    settings = Settings(
        policy=policy_from_dict(changes.policy) if changes.policy else stored.policy,
        loss=changes.loss or (learnt.loss if learnt is not None else old["loss"]),
        weighting=changes.weighting or old["weighting"],
        ensemble=changes.ensemble or old["ensemble"],
        seed=old["seed"],
        shared_noise=old["shared_noise"],
    )
    column, levels, schedule = stored.errors.column(settings.loss), stored.levels, stored.schedule
    if changes.policy:
        wanted = settings.policy.grid(len(schedule))[: len(levels)]
        if not np.array_equal(wanted.numpy(), levels[: len(wanted)].numpy()):
            raise InputError(
                f"The policy {settings.policy.name!r} draws other timesteps than the run's {stored.policy.name!r}: its "
                f"errors are not stored. Evaluate with the new policy instead."
            )
    weighting = by_name(settings.weighting, schedule) if learnt is None else learnt.weighting(schedule)
    values = weighting.to("eps", schedule).values[levels].numpy()
    return settings, arrange(settings, stored.classes, stored.owner, loss=column, weights=values)


def _voted(scored: Scored, contest: Contest, vote: str) -> Verdict:
    """A verdict by vote; its probabilities are shares of the votes."""
    owner = np.asarray(contest.class_of_unit)
    if contest.ensemble == "mixture" and len(owner) > len(contest.class_names):
        raise InputError("The ensemble 'mixture' adds likelihoods, which draws cannot vote on. Use 'mean' or 'min'.")
    weights = contest.units.weights
    # Within a draw all classes have the same weight, and where it is 0 they would tie.
    table = replace(contest.units, weights=np.ones_like(weights)).reduce(scored.errors)
    by_class = np.stack([table[:, owner == k].min(axis=1) for k in range(len(contest.class_names))], axis=1)
    shares = vote_shares(by_class, weights if vote == "weighted" else None)
    tied = np.flatnonzero(np.isclose(shares, shares.max(), rtol=1e-12, atol=0))
    return Verdict(
        id=scored.id,
        label=int(tied[0]),
        tied=tuple(tied.tolist()),
        probabilities=shares,
        scores=shares - shares.max(),
        calls=scored.calls,
    )


def _winners(units: Units, errors: np.ndarray) -> np.ndarray:
    """The least mean error among the units that were scored to the end."""
    table = units.reduce(errors)
    means = np.where(np.isfinite(table[-1]), table.mean(axis=0), np.inf)
    return means == means.min()


def _replayed(settings: Settings, units: Units, id: str, errors: np.ndarray) -> Scored:
    result = replay(settings.policy, units.reduce(errors))
    owner = np.asarray(units.unit_of_arm)
    used = np.isfinite(result.errors)[:, owner]
    kept = np.where(used[..., None], errors[: len(used)], np.nan)
    return Scored(id=id, errors=kept, alive=result.alive, calls=int(used.sum()))
