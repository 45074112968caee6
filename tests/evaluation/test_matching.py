"""Matching tasks are what their names say, and their runs can be killed and continued."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pipelines import save_stable_diffusion

from diffsight.backbones.loading import load
from diffsight.data.binding import TASKS
from diffsight.data.queries import Query
from diffsight.errors import InputError, RunError, SourceError
from diffsight.evaluation.match_tasks import load_match_task
from diffsight.evaluation.matching import MatchJob, evaluate_matching
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.scores import Attention
from diffsight.matching.settings import MatchSettings

TEXTS = ("a cat", "a dog", "a bird")


@pytest.fixture(scope="module")
def matcher(tmp_path_factory):
    folder = save_stable_diffusion(tmp_path_factory.mktemp("sd"))
    return ImageTextMatcher(load(folder, device="cpu", dtype="fp32"), settings=MatchSettings(draws=2))


def test_binding_has_all_tests_and_the_right_answer_in_either_place():
    task = load_match_task("binding", limit=4)
    assert len(task.queries) == 4 * len(TASKS)
    assert [query.positive for query in task.queries[:4]] == [0, 1, 0, 1]
    assert {query.tags[0] for query in task.queries} == set(TASKS)
    whole = load_match_task("binding/size|shape")
    assert len(whole.queries) == 1000
    assert whole.limited(4).queries[3].texts == load_match_task("binding/size|shape", limit=4).queries[3].texts
    images = load_match_task("binding-images/size|shape", limit=2)
    for one, other in zip(images.queries, whole.queries, strict=False):
        assert one.texts == (other.texts[other.positive],)
        assert one.images[one.positive].tobytes() == other.images[0].tobytes()


def test_a_fingerprint_follows_what_is_asked(tmp_path):
    one = load_match_task("binding/colour", limit=3)
    assert one.fingerprint() == load_match_task("binding/colour", limit=3).fingerprint()
    assert one.fingerprint() != load_match_task("binding-held-out/colour", limit=3).fingerprint()
    assert one.fingerprint() != one.limited(2).fingerprint()
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_text('{"image": "a.png", "texts": ["a", "b"], "positive": 1}\n')
    first = load_match_task(str(tmp_path / "q.jsonl")).fingerprint()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    assert load_match_task(str(tmp_path / "q.jsonl")).fingerprint() != first


def test_what_is_no_task_is_refused(tmp_path):
    for name, error in (("bindingg", InputError), ("winoground", InputError), ("none.jsonl", SourceError)):
        with pytest.raises(error):
            load_match_task(name)
    with pytest.raises(SourceError):
        load_match_task("winoground", data=tmp_path / "none")
    with pytest.raises(InputError, match="limit"):
        load_match_task("binding/colour").limited(0)


def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(matcher, tmp_path):
    task = load_match_task("binding/shape", limit=9)
    job = MatchJob(task=task, matcher=matcher)
    whole = evaluate_matching(job, tmp_path / "whole", commit_every=4)
    assert whole["results"]["accuracy"]["queries"] == 9
    assert whole["calls"]["total"] == 9 * 3 * 2

    def stop(done, calls):
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_matching(job, tmp_path / "run", commit_every=4, progress=stop)
    seen = []
    continued = evaluate_matching(job, tmp_path / "run", commit_every=4, progress=lambda *a: seen.append(a))
    # The only numbers that are measured, not computed.
    assert continued.pop("speed")["seconds_per_query"] > 0
    assert whole.pop("speed")["seconds_per_query"] > 0
    assert continued == whole
    assert seen[0][0] == 8  # the first four are not asked again
    other = MatchJob(task=load_match_task("binding/shape", limit=8), matcher=matcher)
    with pytest.raises(RunError, match="queries"):
        evaluate_matching(other, tmp_path / "run")


def test_results_are_those_of_the_scores(matcher, tmp_path):
    task = load_match_task("binding/shape", limit=12)
    metrics = evaluate_matching(MatchJob(task=task, matcher=matcher), tmp_path / "run")
    matches = list(matcher.match(task.queries))
    right = np.mean([match.best == query.positive for match, query in zip(matches, task.queries, strict=True)])
    assert metrics["results"]["accuracy"]["value"] == pytest.approx(right)
    assert metrics["results"]["majority"]["value"] == 0.5


def test_a_run_that_leaks_is_labelled_and_cut_into_whole_batches(matcher, tmp_path):
    task = load_match_task("binding/shape", limit=9)
    settings = MatchSettings(draws=2, score=Attention())
    plain = MatchJob(task=task, matcher=ImageTextMatcher(matcher.model, settings=settings))
    job = MatchJob(task=task, matcher=ImageTextMatcher(matcher.model, settings=replace(settings, batch_leak=3)))
    assert evaluate_matching(plain, tmp_path / "plain")["invalid"] is None
    with pytest.raises(RunError, match="batch_leak"):
        evaluate_matching(job, tmp_path / "plain")
    whole = evaluate_matching(job, tmp_path / "whole")
    assert "share information between queries" in whole["invalid"]
    parts = evaluate_matching(job, tmp_path / "parts", commit_every=2)
    assert {**parts, "speed": None} == {**whole, "speed": None}
    uneven = replace(
        task, queries=(*task.queries[:2], Query(id="odd", images=(Image.new("RGB", (8, 8)),), texts=TEXTS))
    )
    with pytest.raises(InputError, match="'odd'"):
        evaluate_matching(MatchJob(task=uneven, matcher=job.matcher), tmp_path / "uneven")
    assert not (tmp_path / "uneven").exists()
