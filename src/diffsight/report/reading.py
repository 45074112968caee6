"""What a run's directory says, read for a report: also of a run that is not finished."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int

from diffsight.errors import RunError
from diffsight.evaluation.cues import cues_of_run
from diffsight.evaluation.metrics.summary import summary
from diffsight.store.run import Run


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Recognition:
    """The answers of a run that classifies: one entry for each image that was scored.

    Attributes:
        classes: Names of the classes.
        ids: Image identities.
        truth: True class, -1 where it is not known.
        predicted: Class that won, -1 where there is none.
        tie: Whether several classes won alike.
        calls: Denoiser calls; 0 of a network.
        probabilities: Of all classes, or None if the run has none.
    """

    classes: tuple[str, ...]
    ids: tuple[str, ...]
    truth: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    tie: Bool[np.ndarray, " n"]
    calls: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"] | None

    @property
    def known(self) -> Bool[np.ndarray, " n"]:
        """Which images have a label."""
        return self.truth >= 0

    @property
    def right(self) -> Bool[np.ndarray, " n"]:
        """Which answers are right: a tie is not."""
        return self.known & (self.truth == self.predicted) & ~self.tie

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """Probability of the answer; NaN where the run has none."""
        if self.probabilities is None:
            return np.full(len(self.ids), np.nan)
        return self.probabilities.max(axis=1, initial=0.0)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Reading:
    """A run as a report sees it.

    Attributes:
        run: The run, opened for reading.
        kind: Whether it classifies images, or matches images and texts.
        metrics: As the evaluation reports them; of an unfinished matching run None.
        failures: What could not be scored, with reasons.
        done: Images or queries that are finished, failed ones too.
        total: Images or queries of the whole run.
        recognition: The answers of a run that classifies.
    """

    run: Run
    kind: Literal["recognition", "matching"]
    metrics: dict[str, Any] | None
    failures: list[dict[str, Any]]
    done: int
    total: int
    recognition: Recognition | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """What the run's numbers depend on."""
        return self.run.manifest.fingerprint_fields

    @property
    def session(self) -> Mapping[str, Any]:
        """What the last session on the run recorded."""
        return self.run.sessions[-1]

    @property
    def finished(self) -> bool:
        """Whether everything that was asked is answered."""
        return self.done >= self.total and self.run.metrics() is not None

    @property
    def task(self) -> str:
        """The task's name."""
        return str(self.fields["task"]["name"])

    @property
    def model(self) -> str:
        """The model's name."""
        if name := self.session.get("model"):
            return str(name)
        identity = self.fields.get("model", self.fields.get("backbone"))
        while isinstance(identity, Mapping):  # A network's identity holds that of its architecture.
            identity = next((identity[key] for key in ("name", "network", "model") if identity.get(key)), None)
        return str(identity or self.fields.get("kind") or "a model without a name")


def read_run(path: Path | str) -> Reading:
    """Read a run for a report.

    Args:
        path: The directory of 'diffsight evaluate' or 'diffsight match run'.

    Raises:
        RunError: If there is no run, it is damaged or of a newer schema, it is of another kind, or nothing of it has
            been finished yet.
    """
    run = Run.load(path)
    fields = run.manifest.fingerprint_fields
    if not isinstance(fields.get("task"), Mapping):
        raise RunError(
            f"{path} is a run without a task, so there is nothing to report. Give runs of 'diffsight evaluate' or "
            "'diffsight match run'."
        )
    done = int(run.progress.get("finished", 0))
    if done == 0 and (Path(path) / "rows").is_dir():
        raise RunError(
            f"{path} is a comparison: its page is comparison.html in it. Give the runs in its rows, such as "
            "rows/0000-diffusion/run."
        )
    if done == 0:
        raise RunError(
            f"{path} has no finished image or query yet. Give its command again: it goes on from where it stopped."
        )
    if "queries" in fields:
        total = int(fields["queries"]["count"])
        return Reading(run=run, kind="matching", metrics=run.metrics(), failures=run.failures(), done=done, total=total)
    if "predictions" not in run.tables or "classes" not in fields:
        raise RunError(
            f"{path} has neither predictions nor matches (its tables: {', '.join(run.tables) or 'none'}). Give runs of "
            "'diffsight evaluate' or 'diffsight match run'."
        )
    answers, failures = _recognition(run, tuple(fields["classes"])), run.failures()
    found = {"id": answers.ids, "prediction": answers.predicted.tolist(), "tie": answers.tie.tolist()}
    cues = cues_of_run(str(fields.get("data", {}).get("source", "")), found, answers.classes)
    return Reading(
        run=run,
        kind="recognition",
        metrics=(run.metrics() or {}) | _summary(answers, len(failures), fields["task"].get("metric", "top1")) | cues,
        failures=failures,
        done=done,
        total=int(fields.get("data", {}).get("images", done)),
        recognition=answers,
    )


def _recognition(run: Run, classes: tuple[str, ...]) -> Recognition:
    table = run.read("predictions")
    rows, names = table.num_rows, table.column_names
    probabilities = None
    if "probabilities" in names:
        chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["probabilities"].chunks]
        flat = np.concatenate([np.zeros(0), *chunks])
        probabilities = flat.reshape(rows, len(classes))
    return Recognition(
        classes=classes,
        ids=tuple(table["id"].to_pylist()),
        truth=_integers(table, "label", -1),
        predicted=_integers(table, "prediction", -1),
        tie=np.array(table["tie"].to_pylist() if "tie" in names else [False] * rows, dtype=bool),
        calls=_integers(table, "calls", 0),
        probabilities=probabilities,
    )


def _integers(table: pa.Table, name: str, missing: int) -> Int[np.ndarray, " n"]:
    if name not in table.column_names:
        return np.full(table.num_rows, missing, dtype=np.int64)
    return np.array([missing if value is None else value for value in table[name].to_pylist()], dtype=np.int64)


def _summary(answers: Recognition, failures: int, metric: str) -> dict[str, Any]:
    """The metrics of what is there; they can always be had from the tables."""
    return summary(
        labels=answers.truth.tolist(),
        predictions=answers.predicted.tolist(),
        probabilities=answers.probabilities,
        ties=answers.tie.tolist(),
        calls=answers.calls.tolist(),
        failures=failures,
        class_names=answers.classes,
        metric="mean_per_class" if metric == "mean_per_class" else "top1",
    )
