"""What re-scoring reads from a run: errors, noise levels, classes and how it was decided, without the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int
from torch import Tensor

from diffsight.diffusion.schedule import Schedule
from diffsight.errors import InputError, nearest
from diffsight.scoring.elimination import Policy
from diffsight.scoring.policies import policy_from_dict
from diffsight.scoring.scorer import LOSSES
from diffsight.store.run import Run


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

    def column(self, loss: str) -> int:
        """Where a loss is in the tables.

        Raises:
            InputError: If it was not stored.
        """
        if loss not in self.losses:
            raise InputError(f"The run has no loss {loss!r}. {nearest(loss, self.losses)}")
        return self.losses.index(loss)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StoredRun:
    """A run as far as its decisions can be made again.

    Attributes:
        run: Itself.
        fields: What its numbers depend on.
        schedule: The model's noise levels.
        policy: That it was made with.
        levels: Noise level of each draw.
        classes: What the answer can be.
        owner: The class of each arm.
        errors: What the model said.
    """

    run: Run
    fields: dict[str, Any]
    schedule: Schedule
    policy: Policy
    levels: Int[Tensor, " draws"]
    classes: tuple[str, ...]
    owner: tuple[int, ...]
    errors: StoredErrors


def open_stored(path: Path | str) -> StoredRun:
    """Read a run of a diffusion model on a task.

    Raises:
        RunError: If there is no run, or it is damaged.
        InputError: If it holds no denoising errors.
    """
    run = Run.load(path)
    fields = dict(run.manifest.fingerprint_fields)
    if not {"errors", "predictions", "schedule"} <= {*run.tables} or "settings" not in fields:
        raise InputError(
            f"{path} holds no denoising errors, so there is nothing to decide again. Only runs of 'diffsight evaluate' "
            "with a diffusion model have them, from their first commit on."
        )
    table = run.read("schedule")
    alpha, sigma, timesteps = (torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names)
    schedule = Schedule(alpha=alpha, sigma=sigma, timesteps=timesteps, kind=fields["schedule_kind"])
    policy = policy_from_dict(fields["settings"]["policy"])
    owner = tuple(fields["owner"])
    return StoredRun(
        run=run,
        fields=fields,
        schedule=schedule,
        policy=policy,
        levels=policy.grid(len(schedule)),
        classes=tuple(fields["classes"]),
        owner=owner,
        errors=read_errors(run, len(owner)),
    )


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
