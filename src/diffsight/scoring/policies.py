"""All policies by name, and what they would do on stored errors."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from diffsight.errors import InputError, nearest
from diffsight.scoring.elimination import Exhaustive, Policy, Staged
from diffsight.scoring.racing import Forecast, PairedTTest, PooledRace, Race

POLICIES: Mapping[str, type] = {
    policy.name: policy for policy in (Exhaustive, Staged, PairedTTest, Race, PooledRace, Forecast)
}


def policy_from_dict(values: Mapping[str, Any]) -> Policy:
    """Make a policy from its name and settings, as `Policy.to_dict` or JSON has them; the rest are its defaults.

    Args:
        values: ``{"name": "race", "error": 0.01}``.

    Raises:
        InputError: If there is no such policy, it has no such setting, or a value makes no sense.
    """
    settings = dict(values)
    name = str(settings.pop("name", ""))
    if name not in POLICIES:
        raise InputError(f"Unknown policy {name!r}. {nearest(name, POLICIES)}")
    known = [field.name for field in fields(POLICIES[name])]
    for key in settings:
        if key not in known:
            raise InputError(f"Policy {name!r} has no setting {key!r}. {nearest(key, known)}")
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    try:
        return POLICIES[name](**arguments)
    except TypeError as error:
        raise InputError(f"A setting of policy {name!r} is of the wrong type; got {settings}.") from error


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What a policy would have done on a complete table.

    Attributes:
        alive: The winner, or all winners of an exact tie.
        errors: The table with NaN where the policy would not have looked, cut after its last draw.
        calls: How many entries it would have looked at.
    """

    alive: Bool[np.ndarray, " arms"]
    errors: Float[np.ndarray, "draws arms"]
    calls: int


def replay(policy: Policy, errors: Float[np.ndarray, "draws arms"]) -> Replay:
    """Run a policy on a stored table instead of a model.

    Args:
        policy: Its grid should be the one that the table was made with.
        errors: Weighted errors without gaps.

    Raises:
        InputError: If the table has fewer draws than the policy asks for.
    """
    alive = np.ones(errors.shape[1], dtype=bool)
    seen = np.full((0, len(alive)), np.nan)
    while (decision := policy.next(seen, alive)).draws:
        alive, stop = decision.alive, decision.draws[-1] + 1
        if stop > len(errors):
            raise InputError(f"Policy {policy.name!r} needs draw {stop - 1}; the table ends with {len(errors) - 1}.")
        seen = np.concatenate([seen, np.where(alive, errors[len(seen) : stop], np.nan)])
    return Replay(decision.alive, seen, int(np.isfinite(seen).sum()))
