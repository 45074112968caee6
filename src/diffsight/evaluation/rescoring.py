"""Scores a run again from its stored errors: other losses, weights, policies or ensembles, without the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from diffsight.diffusion.schedule import Schedule
from diffsight.diffusion.weighting import by_name
from diffsight.errors import InputError, nearest
from diffsight.evaluation.metrics import summary
from diffsight.scoring.engine import Scored, Units
from diffsight.scoring.policies import policy_from_dict, replay
from diffsight.scoring.scorer import LOSSES
from diffsight.store.run import Run
from diffsight.zero_shot.settings import Settings, arrange
from diffsight.zero_shot.verdict import decide


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredErrors:
    """The raw errors of a run.

    Attributes:
        ids: Image identities.
        labels: True class of each image, or None.
        tables: Errors of each image, shape (draws, arms, losses), NaN where not scored.
        losses: Names of the losses.
    """

    ids: tuple[str, ...]
    labels: tuple[int | None, ...]
    tables: tuple[np.ndarray, ...]
    losses: tuple[str, ...]


def read_errors(run: Run, num_arms: int) -> StoredErrors:
    """Rebuild each image's table of errors from a run."""
    rows = run.read("errors").combine_chunks()
    predictions = run.read("predictions", columns=["id", "label"])
    losses = tuple(name for name in rows.column_names if name in (*LOSSES, "kl"))
    values = np.stack([rows[name].to_numpy() for name in losses], axis=1)
    codes = rows["id"].combine_chunks()
    codes = codes if pa.types.is_dictionary(codes.type) else codes.dictionary_encode()
    position = {name: index for index, name in enumerate(codes.dictionary.to_pylist())}
    code, draw, arm = codes.indices.to_numpy(), rows["draw"].to_numpy(), rows["arm"].to_numpy()
    order = np.argsort(code, kind="stable")
    starts = np.searchsorted(code[order], np.arange(len(position) + 1))
    tables = []
    ids = tuple(predictions["id"].to_pylist())
    for name in ids:
        index = position[name]
        mine = order[starts[index] : starts[index + 1]]
        table = np.full((int(draw[mine].max()) + 1, num_arms, len(losses)), np.nan, np.float32)
        table[draw[mine], arm[mine]] = values[mine]
        tables.append(table)
    return StoredErrors(ids=ids, labels=tuple(predictions["label"].to_pylist()), tables=tuple(tables), losses=losses)


def rescore(
    path: Path | str,
    *,
    loss: str | None = None,
    weighting: str | None = None,
    ensemble: str | None = None,
    policy: Mapping[str, Any] | None = None,
    scale: float | None = None,
) -> dict[str, Any]:
    """Score a run again. What is not given stays as it was; the run is not changed.

    Args:
        path: A run's directory.
        loss: ``"l1"``, ``"l2"``, ``"huber"``, or ``"kl"`` if it was stored.
        weighting: Timestep weights by name.
        ensemble: Of several prompts per class; ``"embedding"`` needs the model and cannot be changed to or from.
        policy: Name and settings of a policy to replay on the stored errors; its draws must be among those stored.
        scale: Inverse temperature of the probabilities.

    Returns:
        Metrics as `evaluate` gives them; calls are those that the policy would have made.

    Raises:
        RunError: If there is no run, or it is damaged.
        InputError: If something was not stored that the new settings need.
    """
    run = Run.load(path)
    fields = run.manifest.fingerprint_fields
    old = fields["settings"]
    if ensemble not in (None, old["ensemble"]) and "embedding" in (ensemble, old["ensemble"]):
        raise InputError("The ensemble 'embedding' scores other prompts than the rest: evaluate again with the model.")
    old_policy = policy_from_dict(old["policy"])
    settings = Settings(
        policy=policy_from_dict(policy) if policy else old_policy,
        loss=loss or old["loss"],
        weighting=weighting or old["weighting"],
        ensemble=ensemble or old["ensemble"],
        seed=old["seed"],
        shared_noise=old["shared_noise"],
    )
    table = run.read("schedule")
    alpha, sigma, timesteps = (torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names)
    schedule = Schedule(alpha=alpha, sigma=sigma, timesteps=timesteps, kind=fields["schedule_kind"])
    classes, owner = tuple(fields["classes"]), tuple(fields["owner"])
    stored = read_errors(run, len(owner))
    if settings.loss not in stored.losses:
        raise InputError(f"The run has no loss {settings.loss!r}. {nearest(settings.loss, stored.losses)}")
    levels = old_policy.grid(len(schedule))
    if policy:
        asked = settings.policy.grid(len(schedule))[: len(levels)]
        if not torch.equal(asked, levels[: len(asked)]):
            raise InputError(
                f"The policy {settings.policy.name!r} draws other timesteps than the run's {old_policy.name!r}: its "
                f"errors are not stored. Evaluate with the new policy instead."
            )
    weights = by_name(settings.weighting, schedule).to("eps", schedule).values[levels].numpy()
    contest = arrange(settings, classes, owner, loss=stored.losses.index(settings.loss), weights=weights)
    scored = [
        Scored(
            id=id, errors=errors, alive=_winners(contest.units, errors), calls=int(np.isfinite(errors[..., 0]).sum())
        )
        if policy is None
        else _replayed(settings, contest.units, id, errors)
        for id, errors in zip(stored.ids, stored.tables, strict=True)
    ]
    verdicts = [decide(one, contest, scale=scale) for one in scored]
    return summary(
        labels=stored.labels,
        predictions=[verdict.label for verdict in verdicts],
        probabilities=np.array([verdict.probabilities for verdict in verdicts]).reshape(len(verdicts), len(classes)),
        ties=[verdict.tie for verdict in verdicts],
        calls=[one.calls for one in scored],
        failures=len(run.failures()),
        class_names=classes,
        metric=fields["task"]["metric"],
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
