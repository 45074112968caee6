import time

import numpy as np
import pytest
from PIL import Image

from diffsight.backbones import load
from diffsight.backbones.cards import assets
from diffsight.errors import InputError, RunError
from diffsight.evaluation.rescoring import read_errors, rescore
from diffsight.evaluation.runner import estimate, evaluate, make_job
from diffsight.evaluation.task import folder_task
from diffsight.scoring.elimination import Exhaustive
from diffsight.scoring.policies import replay
from diffsight.scoring.racing import PooledRace
from diffsight.store.run import Run
from diffsight.zero_shot.settings import Settings


@pytest.fixture(scope="module")
def backbone():
    return load("tiny-fashion", device="cpu")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two photographs of each of three classes, and one file that is no image."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ("bag", "sandal", "trouser"):
        (folder / name).mkdir()
        for file in sorted((assets() / "samples" / name).iterdir())[:2]:
            (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "bag" / "broken.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def job(backbone, samples):
    return make_job(folder_task(samples), backbone, settings=Settings(policy=Exhaustive(num_draws=16)))


@pytest.fixture(scope="module")
def run(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "exhaustive"
    evaluate(job, out, batch_size=64)
    return out


def test_the_embedded_model_knows_its_classes(run):
    metrics = Run.load(run).metrics()
    assert metrics["top1"]["value"] >= 5 / 6
    assert metrics["calls"]["mean"] == 48


def test_a_bad_image_is_one_recorded_failure(run):
    stored = Run.load(run)
    (failure,) = stored.failures()
    assert failure["id"] == "bag/broken.png"
    metrics = stored.metrics()
    assert metrics["failed"] == 1
    assert metrics["scored"] == 6
    assert metrics["coverage"] == pytest.approx(6 / 7)


def test_running_a_finished_run_again_makes_no_call(job, run, monkeypatch):
    monkeypatch.setattr(type(job.setup.scorer), "score", lambda *_: pytest.fail("a call was made"))
    assert evaluate(job, run) == Run.load(run).metrics()


def test_time_is_that_of_all_sessions(job, tmp_path):
    class Killed(BaseException):
        pass

    batches = []

    def slow(state):
        time.sleep(0.05)
        batches.append(state)

    def killed(state):
        slow(state)
        if len(batches) == 3:
            raise Killed

    began = time.perf_counter()
    with pytest.raises(Killed):
        evaluate(job, tmp_path / "run", batch_size=64, commit_every=1, progress=killed)
    del batches[2]  # what it had not committed is done again
    speed = evaluate(job, tmp_path / "run", batch_size=64, commit_every=1, progress=slow)["speed"]
    assert 0.05 * len(batches) < speed["seconds"] < time.perf_counter() - began
    assert speed["seconds_per_image"] == pytest.approx(speed["seconds"] / 6)
    assert speed["device"] == "cpu"


def test_other_settings_are_refused_with_what_differs(backbone, samples, run):
    other = make_job(folder_task(samples), backbone, settings=Settings(policy=Exhaustive(num_draws=16), seed=1))
    with pytest.raises(RunError, match=r"settings\.seed: 0 in the run, 1 asked now"):
        evaluate(other, run)


def test_batch_size_changes_nothing_that_counts(job, run, tmp_path):
    evaluate(job, tmp_path / "other", batch_size=7, commit_every=3)
    ours, theirs = (read_errors(Run.load(path), 3) for path in (run, tmp_path / "other"))
    assert dict(zip(ours.ids, ours.labels, strict=True)) == dict(zip(theirs.ids, theirs.labels, strict=True))
    tables = dict(zip(theirs.ids, theirs.tables, strict=True))
    for id, table in zip(ours.ids, ours.tables, strict=True):
        np.testing.assert_allclose(tables[id], table, atol=1e-5)


def test_rescoring_as_it_was_gives_the_same_metrics(run):
    metrics = Run.load(run).metrics()
    del metrics["speed"]  # of what was run, and not of what might have been decided
    assert rescore(run) == metrics


def test_rescoring_with_a_policy_is_what_the_policy_would_have_done(backbone, samples, run, tmp_path):
    policy = PooledRace(max_draws=16)
    again = rescore(run, policy=policy.to_dict())
    really = evaluate(
        make_job(folder_task(samples), backbone, settings=Settings(policy=policy)), tmp_path / "race", batch_size=64
    )
    assert again["calls"] == really["calls"]
    assert again["top1"] == really["top1"]
    assert again["calibration"]["ece"] == pytest.approx(really["calibration"]["ece"], abs=1e-4)


def test_rescoring_with_another_loss_reads_its_column(run):
    stored = read_errors(Run.load(run), 3)
    winners = [table[:, :, stored.losses.index("l1")].mean(axis=0).argmin() for table in stored.tables]
    right = np.mean(np.array(winners) == np.array(stored.labels))
    assert rescore(run, loss="l1")["top1"]["value"] == pytest.approx(right)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "kl"}, "has no loss 'kl'"),
        ({"policy": {"name": "exhaustive", "num_draws": 17}}, "draw"),
        ({"policy": {"name": "exhaustive", "num_draws": 8, "spacing": "midpoint"}}, "other timesteps"),
        ({"ensemble": "embedding"}, "evaluate again"),
        ({"weighting": "heavy"}, "heavy"),
    ],
)
def test_what_was_not_stored_cannot_be_rescored(run, change, message):
    with pytest.raises(InputError, match=message):
        rescore(run, **change)


def test_an_estimate_counts_real_calls_and_writes_nothing(job, tmp_path):
    found = estimate(job, images=3)
    assert found.calls_per_image == 48
    assert found.images == 7
    assert found.calls == 7 * 48  # an upper bound: the bad image will cost nothing
    assert found.seconds > 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, -1])
def test_limits_are_numbers_of_images(backbone, samples, limit):
    with pytest.raises(InputError, match="limit"):
        make_job(folder_task(samples), backbone, limit=limit)


def test_images_added_to_the_folder_make_another_run(backbone, job, run, samples, tmp_path):
    for name in ("bag", "sandal", "trouser"):
        (tmp_path / name).mkdir()
        for file in (samples / name).iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
    Image.new("L", (28, 28)).save(tmp_path / "bag" / "new.png")
    settings = Settings(policy=Exhaustive(num_draws=16))
    with pytest.raises(RunError, match=r"data\.images: 7 in the run, 8 asked now"):
        evaluate(make_job(folder_task(tmp_path), backbone, settings=settings), run)


def test_rescored_replay_agrees_with_replay_by_hand(run):
    stored = read_errors(Run.load(run), 3)
    policy = PooledRace(max_draws=16)
    calls = [replay(policy, table[:, :, 1].astype(float)).calls for table in stored.tables]
    assert rescore(run, policy=policy.to_dict())["calls"]["total"] == sum(calls)
