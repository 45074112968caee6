"""Shape or texture, of a run: told beside the accuracy wherever the images of a task are cue conflicts."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffsight.data.cue_conflict import cue_labels
from diffsight.evaluation.metrics.shape_bias import cue_conflict


def cues_of_run(source: str, answers: Mapping[str, Sequence[Any]], class_names: Sequence[str]) -> dict[str, Any]:
    """What a run's metrics get beside the accuracy if its images are cue conflicts; nothing for other images.

    Args:
        source: The task's, ``cue-conflict:NAME``, maybe with a change behind it; or what the run calls its images.
        answers: Columns ``id``, ``prediction`` and ``tie`` of the images that were answered.
        class_names: The classes.

    Raises:
        SourceError: If an id is not of such a set.
    """
    if not source.startswith("cue-conflict:"):
        return {}
    shapes, textures = cue_labels(answers["id"], class_names)
    found = cue_conflict(
        predictions=answers["prediction"],
        shapes=shapes.tolist(),
        textures=textures.tolist(),
        class_names=class_names,
        ties=answers["tie"],
    )
    return {"cue_conflict": found.to_dict()}
