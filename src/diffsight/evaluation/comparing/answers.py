"""Answers of a method that has no run of its own, as a run directory that reports read like any other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float

from diffsight.evaluation.comparing.question import Question
from diffsight.evaluation.embedding import Embedded
from diffsight.evaluation.metrics.cost import speed
from diffsight.evaluation.metrics.summary import summary
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run


def write_answers(
    out: Path,
    question: Question,
    test: Embedded,
    probabilities: Float[np.ndarray, "n k"],
    *,
    ties: np.ndarray,
    kind: str,
    model: str,
    said: str,
    calls: int,
    seconds: float | None,
    device: torch.device,
    depends: Mapping[str, Any],
) -> dict[str, Any]:
    """Write answers to all test images and give their metrics; what is there already is left.

    Args:
        out: The run's directory.
        question: What was asked.
        test: Which images have an answer, and which failed.
        probabilities: Of each class, for each image with an answer.
        ties: Which images have no single best class.
        kind: What sort of method gave them.
        model: What to call the model.
        said: What has to be said beside the numbers.
        calls: Denoiser calls of each image.
        seconds: For an image; what was measured first is kept.
        device: Where the vectors are from.
        depends: What else the answers depend on.

    Raises:
        RunError: If the directory belongs to something else, is damaged or in use, or the disk refuses.
    """
    positions = test.positions.tolist()
    labels = question.test.labels
    fields = {"kind": kind, **question.fields(), "protocol": said, **depends}
    predictions = probabilities.argmax(axis=1)
    with Run.open(out, Manifest(fields, session(("scikit-learn",), model=model, label=said))) as run:
        if run.commits == 0:
            table = pa.table(
                {
                    "id": pa.array([question.test.ids[place] for place in positions], pa.string()),
                    "label": pa.array([None if labels is None else labels[place] for place in positions], pa.int32()),
                    "prediction": pa.array(predictions.tolist(), pa.int32()),
                    "tie": pa.array(ties.tolist(), pa.bool_()),
                    "calls": pa.array([calls] * len(positions), pa.int64()),
                    "probabilities": pa.array(probabilities.astype(np.float64).tolist(), pa.list_(pa.float64())),
                }
            )
            failures = [{"id": id, "reason": reason, "calls": 0} for id, reason in test.failures]
            spent = None if seconds is None else seconds * len(positions)
            progress = {"finished": len(question.test), "seconds": spent}
            run.commit({"predictions": table}, failures=failures, progress=progress)
        stored = run.read("predictions")
        metrics = summary(
            labels=stored["label"].to_pylist(),
            predictions=stored["prediction"].to_pylist(),
            probabilities=np.array(stored["probabilities"].to_pylist()).reshape(-1, len(question.classes)),
            ties=stored["tie"].to_pylist(),
            calls=stored["calls"].to_pylist(),
            failures=len(run.failures()),
            class_names=question.classes,
            metric=question.task.metric,
        )
        metrics |= {"label": said, "speed": speed(run.progress.get("seconds"), len(positions), str(device))}
        run.finish(metrics)
    return metrics
