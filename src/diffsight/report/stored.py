"""What a run's stored errors say about its cost and its timesteps: no model is needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float, Int

from diffsight.diffusion.weighting import by_name
from diffsight.errors import InputError
from diffsight.evaluation.metrics.accuracy import wilson
from diffsight.evaluation.rescoring import rescore
from diffsight.evaluation.stored import StoredErrors, open_stored
from diffsight.report.reading import Reading
from diffsight.scoring.engine import Scored
from diffsight.zero_shot.settings import Contest, Settings, arrange
from diffsight.zero_shot.verdict import decide

MOST_ROWS = 20_000_000  # Rows of errors that are read: about 1 GB.
MOST_REPLAYED = 2_000_000  # Rows on which other policies are tried.
MOST_IMAGES = 1000  # Images on which a stopped run is decided again.
_BINS = 24
_REPLAYED = ("forecast", "race", "pooled-race")


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Errors:
    """A run's errors, and what is needed to decide on them.

    Attributes:
        stored: As they lie in the run.
        contest: What competed.
        truth: True class of each image, -1 where it is not known.
        timesteps: Of each draw.
        loss: Name of the deciding loss.
        complete: Whether every class was scored on every draw.
    """

    stored: StoredErrors
    contest: Contest
    truth: Int[np.ndarray, " n"]
    timesteps: Float[np.ndarray, " draws"]
    loss: str
    complete: bool


def load_errors(reading: Reading) -> Errors | str:
    """Read the errors of a run.

    Returns:
        The errors, or why there are none.
    """
    run, fields = reading.run, reading.fields
    if "errors" not in run.tables or "schedule" not in run.tables:
        return "The run keeps no denoising errors: its model is no diffusion model."
    if (rows := run.rows("errors")) > MOST_ROWS:
        return f"The run has {rows:,} stored errors, too many to draw here; 'diffsight rescore' asks them."
    if rows == 0:
        return "No image was scored."
    asked = fields["settings"]
    try:
        found = open_stored(run.path)
        stored = found.errors
        settings = Settings(policy=found.policy, loss=asked["loss"], ensemble=asked["ensemble"])
        weighting = by_name(asked["weighting"], found.schedule).to("eps", found.schedule)
        column = stored.column(settings.loss)
    except (InputError, KeyError) as error:
        return f"The run's errors cannot be decided on again here: {error}"
    contest = arrange(settings, found.classes, found.owner, loss=column, weights=weighting.values[found.levels].numpy())
    return Errors(
        stored=stored,
        contest=contest,
        truth=np.array([-1 if label is None else label for label in stored.labels], dtype=np.int64),
        timesteps=found.schedule.timesteps[found.levels].numpy().astype(np.float64),
        loss=settings.loss,
        complete=all(np.isfinite(table[..., 0]).all() for table in stored.tables),
    )


def stopped_early(errors: Errors) -> list[dict[str, float]]:
    """Accuracy and calls if every image had been stopped after so many draws; the last one is the run itself.

    Returns:
        ``draws``, ``calls`` per image, and the accuracy's ``value``, ``low`` and ``high``, for a dozen of budgets;
        empty without labels.
    """
    known = np.flatnonzero(errors.truth >= 0)[:MOST_IMAGES]
    if not len(known):
        return []
    tables = [errors.stored.tables[index] for index in known]
    longest = max(map(len, tables))
    budgets = sorted({round(draws) for draws in np.geomspace(1, longest, 12)})
    line = []
    for draws in budgets:
        hits, calls = 0, 0
        for table, truth in zip(tables, errors.truth[known], strict=True):
            cut = table[:draws]
            spent = int(np.isfinite(cut[..., 0]).sum())
            hits += _answer(errors, cut) == int(truth)
            calls += spent
        found = wilson(hits, len(tables))
        line.append(
            {
                "draws": draws,
                "calls": calls / len(tables),
                "value": found.value,
                "low": found.low,
                "high": found.high,
            }
        )
    return line


def _answer(errors: Errors, cut: np.ndarray) -> int | None:
    """The class that wins with these errors, None in a tie."""
    contest, alive = errors.contest, _winners(errors, cut)
    if contest.ensemble == "mixture":
        verdict = decide(Scored(id="", errors=cut, alive=alive, calls=0), contest)
        return None if verdict.tie else verdict.label
    tied = np.unique(np.asarray(contest.class_of_unit)[alive])
    return int(tied[0]) if len(tied) == 1 else None


def _winners(errors: Errors, cut: np.ndarray) -> np.ndarray:
    """The least mean error among the units that are scored on all these draws."""
    table = errors.contest.units.reduce(cut)
    means = np.where(np.isfinite(table[-1]), table.mean(axis=0), np.inf)
    return means == means.min()


def other_policies(reading: Reading, errors: Errors) -> list[tuple[str, dict[str, float]]]:
    """What other policies would have needed on a complete run, as (name, ``calls`` and accuracy)."""
    if not errors.complete or reading.run.rows("errors") > MOST_REPLAYED or not (errors.truth >= 0).any():
        return []
    draws = max(map(len, errors.stored.tables))
    found = []
    for name in _REPLAYED:
        try:
            metrics = rescore(reading.run.path, policy={"name": name, "max_draws": draws})
        except InputError:  # It draws other timesteps than those of the run, or needs more of them.
            continue
        if metrics["top1"] is not None:
            found.append((name, {"calls": metrics["calls"]["mean"], **metrics["top1"]}))
    return found


def by_timestep(errors: Errors) -> list[dict[str, float]]:
    """Errors of the true class and its closest rival over the timesteps, on the draws that both have.

    The rival of an image is the other class that stayed in longest, of these the one with the least mean error. Where
    classes were dropped, only the half of the images with the most draws is looked at.

    Returns:
        Rows of ``timestep``, ``own`` and ``other`` (mean errors), ``margin`` (how much larger the rival's is, relative)
        with ``low`` and ``high`` (95 %), and ``images``, by timestep; empty without labels or rivals.
    """
    pairs = [
        pair
        for table, truth in zip(errors.stored.tables, errors.truth, strict=True)
        if truth >= 0 and (pair := _pair(errors.contest.class_errors(table), int(truth))) is not None
    ]
    if not pairs:
        return []
    # The same images at every timestep: else those that were decided early would be in some of the means only.
    draws = int(np.median([len(own) for own, _ in pairs]))
    pairs = [(own[:draws], other[:draws]) for own, other in pairs if len(own) >= draws]
    timesteps = errors.timesteps[:draws]
    rows = []
    for low, high in pairwise(_edges(timesteps)):
        here = np.flatnonzero((timesteps >= low) & (timesteps < high))
        means = [(own[here].mean(), other[here].mean()) for own, other in pairs]
        if not len(here) or len(means) < 2:
            continue
        own, other = np.array(means).T
        gap = (other - own) / own.mean()
        half = 1.96 * gap.std(ddof=1) / np.sqrt(len(gap))
        rows.append(
            {
                "timestep": float(timesteps[here].mean()),
                "own": float(own.mean()),
                "other": float(other.mean()),
                "margin": float(gap.mean()),
                "low": float(gap.mean() - half),
                "high": float(gap.mean() + half),
                "images": len(gap),
            }
        )
    return rows


def _pair(table: Float[np.ndarray, "draws classes"], truth: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Errors of the true class and of its rival on the draws that both have."""
    scored = np.isfinite(table)
    drawn = scored.sum(axis=0)
    drawn[truth] = -1
    if table.shape[1] < 2 or drawn.max() < 1:
        return None
    longest = drawn == drawn.max()
    means = np.where(longest, np.where(scored, table, 0).sum(axis=0) / np.maximum(drawn, 1), np.inf)
    both = int((scored[:, truth] & scored[:, means.argmin()]).sum())
    return (table[:both, truth], table[:both, means.argmin()]) if both else None


def _edges(timesteps: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ends of the bins: one for each timestep where there are few."""
    values = np.unique(timesteps)
    if len(values) <= _BINS:
        return np.append(values, values[-1] + 1)
    return np.append(np.quantile(values, np.linspace(0, 1, _BINS + 1))[:-1], values[-1] + 1)
