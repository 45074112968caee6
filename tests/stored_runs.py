"""Runs with errors of one's own choice, as `diffsight evaluate` would leave them: no model, no images."""

import numpy as np
import pyarrow as pa

from diffsight.diffusion.schedule import ddpm
from diffsight.scoring.elimination import Exhaustive
from diffsight.store.run import Manifest, Run


def save_run(path, errors, labels, *, policy=None, owner=None, source="folder:photos", task="pets", steps=200, seed=0):
    """Write a run.

    Args:
        path: Its directory.
        errors: Of shape (images, draws, arms), the loss l2; l1 is its root and huber its half. NaN was not scored.
        labels: True class of each image, or None.
        policy: By default an exhaustive one.
        owner: The class of each arm; by default each is a class of its own.
        source: Name of the data.
        task: Name of the task.
        steps: Noise levels of the schedule, from which the policy's grid is taken.
        seed: In the settings, to tell runs apart.
    """
    images, draws, arms = errors.shape
    owner = list(range(arms)) if owner is None else owner
    policy = Exhaustive(num_draws=draws) if policy is None else policy
    ids = [f"{index}.png" for index in range(images)]
    fields = {
        "task": {"name": task, "version": 1, "metric": "top1"},
        "data": {"source": source, "images": images, "ids": "ab12"},
        "backbone": {"name": "synthetic"},
        "classes": [f"class {index}" for index in range(max(owner) + 1)],
        "owner": owner,
        "settings": {
            "policy": policy.to_dict(),
            "loss": "l2",
            "weighting": "uniform",
            "ensemble": "mean",
            "seed": seed,
            "shared_noise": False,
        },
        "schedule_kind": "ddpm",
    }
    schedule = ddpm(steps)
    image, draw, arm = np.nonzero(np.isfinite(errors))
    values = errors[image, draw, arm].astype(np.float32)
    with Run.open(path, Manifest(fields, {})) as run:
        run.commit(
            {
                "schedule": pa.table(
                    {
                        "alpha": schedule.alpha.numpy(),
                        "sigma": schedule.sigma.numpy(),
                        "timestep": schedule.timesteps.numpy(),
                    }
                ),
                "errors": pa.table(
                    {
                        "id": pa.array([ids[index] for index in image], pa.string()).dictionary_encode(),
                        "draw": pa.array(draw.astype(np.int32)),
                        "arm": pa.array(arm.astype(np.int32)),
                        "l1": pa.array(np.sqrt(values)),
                        "l2": pa.array(values),
                        "huber": pa.array(values / 2),
                    }
                ),
                "predictions": pa.table(
                    {
                        "id": pa.array(ids, pa.string()),
                        "label": pa.array(labels, pa.int32()),
                        "prediction": pa.array(np.nanmean(errors, axis=1).argmin(axis=1).astype(np.int32)),
                        "tie": pa.array([False] * images),
                    }
                ),
            }
        )
    return path


def informative_errors(images, draws, *, classes=4, good=(0.3, 0.6), signal=0.02, seed=0, steps=200):
    """Errors in which the right class is lower at some times only, and noise is large at all others.

    Returns:
        Errors of shape (images, draws, classes) on the exhaustive grid, and labels.
    """
    rng = np.random.default_rng(seed)
    time = Exhaustive(num_draws=draws).grid(steps).numpy() / steps
    useful = (good[0] <= time) & (time < good[1])
    labels = rng.integers(0, classes, images)
    errors = 3 + rng.normal(0, 1, (images, draws, classes)) * np.where(useful, 0.05, 0.3)[None, :, None]
    errors -= signal * useful[None, :, None] * np.eye(classes)[labels][:, None]
    return errors, labels.tolist()
