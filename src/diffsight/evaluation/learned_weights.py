"""Timestep weights that were learnt from labelled images, their file, and what may be said of their results.

Clark & Jaini (2303.15233; 20 buckets of time) and Jeong et al. (2505.17955; a cubic polynomial of time) both fit
``p(class) ~ exp(-sum_t w(t) error(t))`` to labels by cross-entropy. What is scored with such weights is **not
zero-shot**, and on the images that they were learnt from it is no result at all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffsight.data.splits import fraction
from diffsight.diffusion.schedule import Schedule
from diffsight.diffusion.weighting import Weighting, bucketed, explicit
from diffsight.errors import InputError, RunError
from diffsight.evaluation.stored import StoredRun, open_stored
from diffsight.evaluation.weight_fitting import BUCKETS, check_form, fit_timestep_weights, literal
from diffsight.store.disk import make, put, to_json, writing

PROTOCOL = "not zero-shot: timestep weights learnt from labelled images"
ORACLE = "oracle: timestep weights learnt from these very images, no measure of anything unseen"
KIND = "diffsight timestep weights"
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedWeights:
    """Weights over time, and where they come from.

    Attributes:
        form: ``"buckets"``, one weight for each of 20 equal parts of time; or ``"cubic"``, the four coefficients of a
            polynomial of time, constant first. Time is level / number of levels, from 0; weights have a mean of 1.
        values: The weights or coefficients.
        space: Whose squared error they multiply, ``"eps"`` or ``"x0"``.
        loss: Of which loss they were learnt.
        schedule: Fingerprint of the noise levels: on others, the same times mean other noise.
        model: Identity of the model.
        run: Fingerprint of the run that they were learnt from.
        task: Its task, as ``name`` and ``version``.
        source: Its data.
        images: Ids of the images that were learnt from.
        draws: How many draws of each were used.
        ridge: Strength of the pull towards uniform weights.
        loss_before: Mean cross-entropy on these images with uniform weights, in nats.
        loss_after: The same with these weights.

    Raises:
        InputError: If the values are no weights.
    """

    form: str
    values: tuple[float, ...]
    space: str
    loss: str
    schedule: str
    model: Mapping[str, Any]
    run: str
    task: Mapping[str, Any]
    source: str
    images: tuple[str, ...]
    draws: int
    ridge: float
    loss_before: float
    loss_after: float

    def __post_init__(self) -> None:
        check_form(self.form, self.space)
        wanted = BUCKETS if self.form == "buckets" else 4
        if len(self.values) != wanted or not np.isfinite(self.values).all():
            raise InputError(f"Weights of the form {self.form!r} are {wanted} finite numbers; got {self.values}.")

    def weighting(self, schedule: Schedule) -> Weighting:
        """The weights on a model's noise levels.

        A polynomial counts as 0 where it is below.

        Raises:
            InputError: If the noise levels are not those that the weights were learnt on.
        """
        if schedule.fingerprint() != self.schedule:
            raise InputError(
                f"The weights were learnt on the noise levels {self.schedule}, and this model's are "
                f"{schedule.fingerprint()}: the same times mean other noise. Learn them again from a run of this model."
            )
        if self.form == "buckets":
            return bucketed(schedule, self.values, literal(self.space))
        time = torch.arange(len(schedule), dtype=torch.float64) / len(schedule)
        values = sum(value * time**power for power, value in enumerate(self.values))
        return explicit(schedule, torch.as_tensor(values).clamp(min=0), literal(self.space))

    def learnt_from(self, stored: StoredRun) -> frozenset[str]:
        """Images of a run that the weights were learnt from: the same ids in data of the same name."""
        if stored.fields["data"]["source"] != self.source:
            return frozenset()
        return frozenset(self.images) & frozenset(stored.errors.ids)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return asdict(self) | {"values": list(self.values), "images": list(self.images), "protocol": PROTOCOL}


def learn_weights(
    path: Path | str,
    *,
    form: str = "buckets",
    space: str = "eps",
    loss: str | None = None,
    share: float = 0.5,
    seed: int = 0,
    ridge: float = 1.0,
) -> LearnedWeights:
    """Learn weights from the labelled images of a run, without the model.

    Of several prompts of a class the mean error counts, whatever the run's ensemble is. Only draws are used on which
    all classes of all these images were scored: with elimination there are few of them.

    Args:
        path: A run's directory, best one of the policy ``exhaustive`` with about 100 draws (as both papers have it).
        form: ``"buckets"`` (Clark & Jaini) or ``"cubic"`` (Jeong et al.).
        space: Whose error the weights multiply. Clark & Jaini weigh the x0 error.
        loss: Of the stored losses; by default the run's.
        share: Of the labelled images of each class that is learnt from. The rest is left for measuring.
        seed: Which images these are.
        ridge: Strength of the pull towards uniform weights; 1 expects each weight within about 1 of their mean.

    Raises:
        RunError: If there is no run, or it is damaged.
        InputError: If the run has no labels or too few complete draws, or the options make no sense.
    """
    check_form(form, space)
    stored = open_stored(path)
    loss = str(loss or stored.fields["settings"]["loss"])
    column = stored.errors.column(loss)
    known = [index for index, label in enumerate(stored.errors.labels) if label is not None]
    if not known:
        raise InputError(f"{path} has no labelled images, and weights are learnt from labels.")
    every = np.array([stored.errors.labels[index] for index in known])
    chosen = [known[place] for place in fraction(every, share=share, seed=seed)]
    owner = np.asarray(stored.owner)
    tables = [
        np.stack([table[:, owner == k].mean(axis=1) for k in range(len(stored.classes))], axis=1)
        for table in (stored.errors.tables[index][:, :, column].astype(np.float64) for index in chosen)
    ]
    draws = min(int(np.isfinite(table).all(axis=1).cumprod().sum()) for table in tables)
    fit = fit_timestep_weights(
        np.stack([table[:draws] for table in tables]),
        np.array([stored.errors.labels[index] for index in chosen]),
        stored.levels[:draws],
        stored.schedule,
        form=form,
        space=space,
        ridge=ridge,
    )
    task = stored.fields["task"]
    return LearnedWeights(
        form=form,
        values=fit.values,
        space=space,
        loss=loss,
        schedule=stored.schedule.fingerprint(),
        model=stored.fields["backbone"],
        run=stored.run.manifest.fingerprint,
        task={"name": task["name"], "version": task["version"]},
        source=stored.fields["data"]["source"],
        images=tuple(stored.errors.ids[index] for index in chosen),
        draws=draws,
        ridge=ridge,
        loss_before=fit.loss_before,
        loss_after=fit.loss_after,
    )


def save_weights(weights: LearnedWeights, path: Path | str) -> Path:
    """Write weights to a JSON file, whole or not at all.

    Raises:
        RunError: If the disk refuses.
    """
    path = Path(path).expanduser()
    value = {"kind": KIND, "format": FORMAT} | weights.to_dict()
    with writing(path):
        make(path.resolve().parent)
        put(path, to_json(value, "Weights", indent=2).encode())
    return path


def load_weights(path: Path | str) -> LearnedWeights:
    """Read weights that `save_weights` wrote.

    Raises:
        InputError: If the file is missing, newer, or no file of weights.
    """
    path = Path(path).expanduser()
    how = "'diffsight rescore RUN --learn-weights FILE' writes one."
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"The weights {path} cannot be read: {error.strerror}. {how}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no file of learnt weights: it is not JSON ({error}). {how}") from error
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError(f"{path} is no file of learnt weights: it does not say {KIND!r}. {how}")
    if value.get("format") != FORMAT:
        raise InputError(f"{path} has format {value.get('format')!r}; this diffsight reads {FORMAT}. Upgrade it.")
    names = [field.name for field in fields(LearnedWeights)]
    if missing := [name for name in names if name not in value]:
        raise InputError(f"{path} is damaged: it has no {', '.join(missing)}. Learn the weights again.")
    try:
        known = {name: value[name] for name in names}
        known["values"] = tuple(float(number) for number in _listed(known["values"]))
        known["images"] = tuple(str(image) for image in _listed(known["images"]))
        return LearnedWeights(**known)
    except (TypeError, ValueError, RunError) as error:
        raise InputError(f"{path} is damaged: {error}") from error


def _listed(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list.")
    return value
