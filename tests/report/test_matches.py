"""The page of a run that matches images and texts."""

import pytest
from made_runs import make_run
from pipelines import save_stable_diffusion

from diffsight.backbones.loading import load
from diffsight.errors import InputError
from diffsight.evaluation.match_tasks import load_match_task
from diffsight.evaluation.matching import MatchJob, evaluate_matching
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.settings import MatchSettings
from diffsight.report.page import make_report
from diffsight.store.run import Run


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = save_stable_diffusion(tmp_path_factory.mktemp("sd"))
    matcher = ImageTextMatcher(load(folder, device="cpu", dtype="fp32"), settings=MatchSettings(draws=2))
    return MatchJob(task=load_match_task("binding/shape", limit=4), matcher=matcher)


@pytest.fixture(scope="module")
def run(job, tmp_path_factory):
    out = tmp_path_factory.mktemp("matching") / "run"
    evaluate_matching(job, out)
    return out


def command(run, *words):
    """As if the run had been made by this command."""
    path = run / "manifest.json"
    text = path.read_text()
    start = text.index('"command": [')
    words = ", ".join(f'"{word}"' for word in words)
    path.write_text(text[:start] + f'"command": [{words}' + text[text.index("]", start) :])


def test_results_stand_beside_chance_and_queries_are_shown(run):
    command(run, "match", "run", "binding/shape", "--limit", "4")
    report = make_report([run])
    accuracy = Run.load(run).metrics()["results"]["accuracy"]
    assert f"{accuracy['value']:.1%}" in report.html
    assert f"chance {accuracy['chance']:.1%}" in report.html
    assert "Right by far" in report.html or "Wrong by far" in report.html or "Ties" in report.html
    assert report.html.count("<img ") == 4
    assert report.runs[0]["kind"] == "matching"
    assert report.runs[0]["queries"] == 4


def test_without_the_queries_the_numbers_stay(run):
    command(run, "match", "run", "binding/colour", "--limit", "4")
    report = make_report([run])
    assert "<img " not in report.html
    assert "not those of the run" in report.html
    assert "calls per query" in report.html


def test_an_unfinished_run(job, tmp_path):
    short = MatchJob(task=load_match_task("binding/shape", limit=6), matcher=job.matcher)

    def stop(done, calls):
        if done > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_matching(short, tmp_path / "run", commit_every=3, progress=stop)
    report = make_report([tmp_path / "run"])
    assert "Unfinished: 3 of 6 queries" in report.html
    assert report.runs[0]["value"] is None
    command(tmp_path / "run", "match", "run", "binding/shape", "--limit=6")
    assert make_report([tmp_path / "run"]).runs[0]["value"] is not None


def test_two_kinds_of_runs_have_no_page_in_common(run, tmp_path):
    with pytest.raises(InputError, match="no number in common"):
        make_report([run, make_run(tmp_path / "other")])
