import json
from dataclasses import replace

import numpy as np
import pytest

from diffsight.backbones import load
from diffsight.backbones.cards import assets
from diffsight.data.corruptions import CORRUPTIONS
from diffsight.errors import InputError, RunError
from diffsight.evaluation.robustness import Sweep, changed, parse_sweep, read_sweep, summarize_sweep, sweep
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import folder_task
from diffsight.scoring.elimination import Exhaustive
from diffsight.store.run import Run
from diffsight.zero_shot.settings import Settings

ASKED = Sweep(types=("contrast", "gaussian-noise"), severities=(1, 5))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("bag", "trouser"):
        (folder / name).mkdir()
        for file in sorted((assets() / "samples" / name).iterdir())[:3]:
            (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "bag" / "broken.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def job(photos):
    backbone = load("tiny-fashion", device="cpu")
    return make_job(folder_task(photos), backbone, settings=Settings(policy=Exhaustive(num_draws=4)))


@pytest.fixture(scope="module")
def out(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    sweep(job, out, evaluate, ASKED)
    return out


def test_it_is_the_mean_of_ordinary_runs(out, job, photos, tmp_path):
    runs = {path.name: Run.load(path).metrics() for path in out.iterdir() if path.is_dir()}
    assert runs.keys() == {"clean", "contrast-1", "contrast-5", "gaussian-noise-1", "gaussian-noise-5"}
    metrics = summarize_sweep(out, ASKED)
    assert metrics.images == 6
    assert metrics.clean.value == pytest.approx(runs["clean"]["top1"]["value"])
    of_type = [np.mean([runs[f"{name}-{level}"]["top1"]["value"] for level in (1, 5)]) for name in ASKED.types]
    assert [*metrics.by_type] == [*ASKED.types]
    assert [value.value for value in metrics.by_type.values()] == pytest.approx(of_type)
    assert metrics.mean.value == pytest.approx(np.mean(of_type))
    kept = json.loads((out / "robustness.json").read_text())
    assert kept["by_type"]["contrast"]["value"] == metrics.by_type["contrast"].value
    # The same as the task with its change in its name gives.
    task = folder_task(photos)
    alone = replace(task, name=f"{task.name}@contrast:5", source=f"{task.source}@contrast:5")
    evaluate(make_job(alone, job.setup.backbone, settings=job.setup.settings), tmp_path / "alone")
    first, second = (Run.load(path).read("errors") for path in (tmp_path / "alone", out / "contrast-5"))
    assert first.equals(second)


def test_a_file_that_is_no_image_is_left_out_everywhere(out):
    answers, found = read_sweep(out, ASKED)
    assert answers.failed == {"bag/broken.png"}
    assert found.correct.shape == (2, 2, 6)


def test_against_itself_the_ratio_is_one_and_against_others_it_is_refused(out, photos, job, tmp_path):
    errors = Run.load(out / "contrast-5").metrics()["top1"]["value"]
    assert errors < 1
    metrics = summarize_sweep(out, Sweep(types=("contrast",), severities=(5,)), reference=out)
    assert metrics.mce is not None
    assert metrics.mce.value == pytest.approx(1)
    other = replace(job, source=job.source.select(range(4)))
    sweep(other, tmp_path / "other", evaluate, Sweep(types=("contrast",), severities=(5,)))
    with pytest.raises(InputError, match="differ in data"):
        summarize_sweep(out, Sweep(types=("contrast",), severities=(5,)), reference=tmp_path / "other")


def test_a_reference_without_errors_has_no_share_and_the_accuracies_are_told(job, tmp_path, caplog):
    """One image that the model knows: its errors are none."""
    asked, one = Sweep(types=("gaussian-noise",), severities=(1,)), replace(job, source=job.source.select([4]))
    sweep(one, tmp_path / "one", evaluate, asked)
    metrics = summarize_sweep(tmp_path / "one", asked, reference=tmp_path / "one")
    assert metrics.mean.value == 1
    assert metrics.mce is None
    assert "makes no error under gaussian-noise" in caplog.text


def test_without_any_answer_there_is_nothing_to_tell(job, tmp_path):
    broken = replace(job, source=job.source.select([job.source.ids.index("bag/broken.png")]))
    sweep(broken, tmp_path / "none", evaluate, Sweep(types=("fog",), severities=(1,)))
    with pytest.raises(InputError, match=r"No image of .*clean has a label and an answer"):
        summarize_sweep(tmp_path / "none", Sweep(types=("fog",), severities=(1,)))


def test_more_can_be_added_and_what_is_there_stays(out, job):
    before = (out / "contrast-1" / "metrics.json").read_bytes()
    calls = []

    def counting(each, path):
        calls.append(path.name)
        return evaluate(each, path)

    more = Sweep(types=("contrast", "fog"), severities=(1,))
    with pytest.raises(RunError, match="no run 'fog-1'"):
        summarize_sweep(out, more)
    sweep(job, out, counting, more)
    assert calls == ["clean", "contrast-1", "fog-1"]
    assert (out / "contrast-1" / "metrics.json").read_bytes() == before
    assert [*summarize_sweep(out, more).by_type] == ["contrast", "fog"]


def test_a_run_does_not_get_others_into_it(out, job):
    with pytest.raises(RunError, match="cannot hold runs"):
        sweep(job, out / "clean", evaluate, ASKED)
    assert not (out / "clean" / "clean").exists()


def test_images_are_not_changed_twice(job):
    once = changed(job, ASKED.corruptions[0])
    assert once.source.ids[0] == f"{job.source.ids[0]}@contrast:1"
    with pytest.raises(InputError, match="already"):
        changed(once, ASKED.corruptions[0])


@pytest.mark.parametrize(
    ("types", "severities", "message"),
    [
        (["frog"], None, "'frog'.*'fog'"),
        (["fog", "fog"], None, "named once"),
        (None, "0", "from 1 to 5"),
        (None, "1,1", "named once"),
        (None, "high", "got 'high'"),
        (None, "", "got ''"),
    ],
)
def test_wrong_corruptions_are_refused(types, severities, message):
    with pytest.raises(InputError, match=message):
        parse_sweep(types, severities)


def test_all_of_the_paper_by_default():
    assert len(parse_sweep(None, None).corruptions) == 75
    assert parse_sweep(None, "3, 1").severities == (3, 1)
    assert parse_sweep(None, None).types == CORRUPTIONS
