import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score
from stored_runs import informative_errors, save_run

from diffsight.diffusion.schedule import ddpm
from diffsight.diffusion.weighting import by_name
from diffsight.errors import InputError
from diffsight.evaluation.calibrating import PROTOCOL, cross_platt
from diffsight.evaluation.metrics.paired import compare_answers, read_answers
from diffsight.evaluation.rescoring import Changes, rescore, rescore_run
from diffsight.scoring.elimination import Exhaustive
from diffsight.scoring.racing import PairedTTest
from diffsight.store.run import Manifest, Run
from diffsight.zero_shot.voting import vote_shares

ERRORS, LABELS = informative_errors(120, 40)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return save_run(tmp_path_factory.mktemp("rescoring") / "run", ERRORS, LABELS)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Two prompts for each of two classes."""
    return save_run(tmp_path_factory.mktemp("rescoring") / "prompts", ERRORS, [k % 2 for k in LABELS], owner=[0, 1] * 2)


def test_votes_are_those_counted_by_brute_force(run):
    stored = ERRORS.astype(np.float32)
    winners, ties = [], 0
    for table in stored:
        counts = np.bincount(table.argmin(axis=1), minlength=4)
        ties += (counts == counts.max()).sum() > 1
        winners.append(counts.argmax() if (counts == counts.max()).sum() == 1 else -1)
    found = rescore(run, vote="majority")
    assert found["top1"]["value"] == pytest.approx(accuracy_score(LABELS, winners))
    assert found["ties"] == ties
    assert found["calls"]["mean"] == 160
    assert "protocol" not in found  # nothing was learnt
    shares = [vote_shares(table.astype(float)) for table in stored]
    assert found["calibration"]["mean_confidence"] == pytest.approx(np.mean([s.max() for s in shares]))


def test_weighted_votes_count_by_timestep(run):
    weights = by_name("vdm", ddpm(200)).to("eps", ddpm(200)).values[Exhaustive(num_draws=40).grid(200)].numpy()
    winners = [vote_shares(t.astype(np.float32).astype(float), weights / weights.mean()).argmax() for t in ERRORS]
    found = rescore(run, vote="weighted", weighting="vdm")
    assert found["top1"]["value"] == pytest.approx(accuracy_score(LABELS, winners))
    assert rescore(run, vote="weighted") == rescore(run, vote="majority")
    assert rescore(run, vote="majority", weighting="vdm") == rescore(run, vote="majority")


def test_votes_of_prompts(prompts):
    stored = ERRORS.astype(np.float32).astype(float)
    truth = [k % 2 for k in LABELS]

    def right(by_class):
        shares = np.stack([vote_shares(table) for table in by_class])
        return np.mean([s.argmax() == k and s[0] != s[1] for s, k in zip(shares, truth, strict=True)])

    mean = (stored[:, :, :2] + stored[:, :, 2:]) / 2
    best = np.minimum(stored[:, :, :2], stored[:, :, 2:])
    assert rescore(prompts, vote="majority")["top1"]["value"] == pytest.approx(right(mean))
    assert rescore(prompts, vote="majority", ensemble="min")["top1"]["value"] == pytest.approx(right(best))
    with pytest.raises(InputError, match="'mixture'"):
        rescore(prompts, vote="majority", ensemble="mixture")


def test_a_vote_needs_all_classes_on_all_draws(run):
    early = {"name": "t-test", "max_draws": 40, "spacing": "nested"}
    with pytest.raises(InputError, match="exhaustive"):
        rescore(run, vote="majority", policy=early)
    fewer = rescore(run, vote="majority", policy={"name": "exhaustive", "num_draws": 8})
    assert fewer["calls"]["mean"] == 32


def test_a_temperature_is_calibrated_and_changes_no_answer(run):
    before, after = rescore(run), rescore(run, calibration="temperature")
    assert after["top1"] == before["top1"]
    assert after["protocol"] == PROTOCOL
    assert after["calibration"]["ece"] < before["calibration"]["ece"]


def test_no_image_calibrates_itself(tmp_path):
    """Labels that are pure chance cannot be known, so calibrated confidences are near chance."""
    rng = np.random.default_rng(0)
    path = save_run(tmp_path / "run", ERRORS, rng.integers(0, 4, 120).tolist())
    assert rescore(path, calibration="temperature")["calibration"]["mean_confidence"] < 0.35


def test_platt_reads_the_number_of_calls(run):
    early = {"name": "t-test", "max_draws": 40, "spacing": "nested"}
    found = rescore(run, policy=early, calibration="platt")
    plain = rescore(run, policy=early)
    assert (found["top1"], found["calls"]) == (plain["top1"], plain["calls"])
    assert found["protocol"] == PROTOCOL
    assert found["calibration"]["ece"] < plain["calibration"]["ece"]
    with pytest.raises(InputError, match="Every image took 160 calls"):
        rescore(run, calibration="platt")


def test_platt_is_fitted_to_the_other_parts():
    rng = np.random.default_rng(0)
    calls = rng.integers(10, 200, 300)
    correct = rng.random(300) < 1 / (1 + (calls / 80) ** 2)
    confidence = cross_platt(calls, correct, [0] * 300)
    assert np.isfinite(confidence).all()
    # Within a part, more calls are less sure; over the parts the curves differ.
    assert np.corrcoef(confidence, np.log(calls))[0, 1] < -0.9
    assert len(np.unique(confidence[calls == np.bincount(calls).argmax()])) > 1


def test_answers_compare_with_the_run_as_it_is(run):
    again = rescore_run(run, Changes(), name="again")
    found = compare_answers(again.answers, read_answers(run))
    assert (found.images, found.first_only, found.second_only) == (120, 0, 0)
    loss = compare_answers(
        rescore_run(run, Changes(policy={"name": "exhaustive", "num_draws": 4})).answers, again.answers
    )
    assert loss.first + 1e-9 < loss.second
    assert loss.difference.high < 0.05


def test_images_without_labels_are_scored(tmp_path):
    half = [label if index % 2 else None for index, label in enumerate(LABELS)]
    path = save_run(tmp_path / "run", ERRORS, half)
    found = rescore_run(path, Changes(calibration="temperature"))
    assert (found.metrics["scored"], found.metrics["labelled"]) == (120, 60)
    assert len(found.answers.labels) == 60
    nothing = save_run(tmp_path / "nothing", ERRORS, [None] * 120)
    assert rescore(nothing)["value"] is None
    with pytest.raises(InputError, match="at least 10; there are 0"):
        rescore(nothing, calibration="temperature")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vote": "majorty"}, "Unknown vote 'majorty'. Did you mean 'majority'"),
        ({"calibration": "plat"}, "Unknown calibration 'plat'"),
        ({"vote": "majority", "scale": 2.0}, "vote and scale"),
        ({"vote": "majority", "calibration": "platt"}, "vote and calibration"),
        ({"scale": 1.0, "calibration": "platt"}, "scale and calibration"),
    ],
)
def test_what_contradicts_itself_is_refused(run, changes, says):
    with pytest.raises(InputError, match=says):
        rescore(run, **changes)


def test_a_temperature_is_for_classes(prompts):
    with pytest.raises(InputError, match="single prompts compete"):
        rescore(prompts, calibration="temperature", ensemble="min")


def test_runs_without_errors_are_refused(tmp_path):
    fields = {"kind": "trained network", "task": {}, "data": {}, "classes": []}
    with Run.open(tmp_path / "run", Manifest(fields, {})) as made:
        made.commit({"predictions": pa.table({"id": ["a"]})})
    with pytest.raises(InputError, match="no denoising errors"):
        rescore(tmp_path / "run")


def test_policies_need_no_more_than_is_stored(run):
    found = rescore(run, policy=PairedTTest(max_draws=40, spacing="nested").to_dict())
    assert found["calls"]["mean"] < 160
    json.dumps(found, allow_nan=False)
