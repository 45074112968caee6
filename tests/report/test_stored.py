"""What is drawn from stored errors agrees with the run itself."""

import numpy as np
import pytest

from diffsight.evaluation.rescoring import rescore
from diffsight.report.reading import read_run
from diffsight.report.stored import by_timestep, load_errors, other_policies, stopped_early
from diffsight.store.run import Run


@pytest.fixture(scope="module")
def reading(scored):
    return read_run(scored)


@pytest.fixture(scope="module")
def errors(reading):
    return load_errors(reading)


def test_a_reading_has_the_metrics_of_the_run(reading, scored):
    assert reading.metrics == Run.load(scored).metrics()


def test_a_run_that_is_not_stopped_is_the_run(errors, scored):
    line = stopped_early(errors)
    metrics = Run.load(scored).metrics()
    assert (line[0]["draws"], line[-1]["draws"]) == (1, 12)
    assert {key: line[-1][key] for key in ("value", "low", "high")} == metrics["top1"]
    assert line[-1]["calls"] == metrics["calls"]["mean"]
    for point in line:
        stopped = rescore(scored, policy={"name": "exhaustive", "num_draws": point["draws"]})
        assert point["value"] == stopped["top1"]["value"]
        assert point["calls"] == stopped["calls"]["mean"]


def test_other_policies_are_those_of_rescoring(reading, errors, scored):
    found = dict(other_policies(reading, errors))
    for name, point in found.items():
        asked = rescore(scored, policy={"name": name, "max_draws": 12})
        assert point == {"calls": asked["calls"]["mean"], **asked["top1"]}
    assert "forecast" in found


def test_errors_by_timestep_are_those_of_the_true_class_and_the_closest_other(errors):
    rows = by_timestep(errors)
    assert [row["timestep"] for row in rows] == sorted(errors.timesteps)
    tables = np.stack([errors.contest.class_errors(table) for table in errors.stored.tables])
    order = np.argsort(errors.timesteps)
    own = np.stack([table[order, truth] for table, truth in zip(tables, errors.truth, strict=True)])
    np.testing.assert_allclose([row["own"] for row in rows], own.mean(axis=0), rtol=1e-12)
    for table, truth in zip(tables, errors.truth, strict=True):
        table[:, truth] = np.inf
    rivals = np.stack([table[order, table.mean(axis=0).argmin()] for table in tables])
    np.testing.assert_allclose([row["other"] for row in rows], rivals.mean(axis=0), rtol=1e-12)
    margins = (rivals.mean(axis=0) - own.mean(axis=0)) / own.mean(axis=0)
    np.testing.assert_allclose([row["margin"] for row in rows], margins, rtol=1e-9)
    assert all(row["low"] <= row["margin"] <= row["high"] for row in rows)
