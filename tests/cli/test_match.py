import json
import re
from contextlib import contextmanager

import pytest

from diffsight.cli import output
from diffsight.evaluation import matching

QUICK = ["--draws", "3"]
TEXTS = ["--text", "a cat", "--text", "a dog"]


@pytest.fixture
def match(run, sd):
    return lambda *arguments: run("match", *arguments, "--model", sd, *QUICK)


@pytest.fixture
def queries(tmp_path, photos):
    rows = [
        {"id": "one", "image": "cat/1.png", "texts": ["a cat", "a dog"], "positive": 0, "tags": "easy"},
        {"id": "two", "text": "a dog", "images": ["cat/1.png", "dog/1.png", "dog/2.png"], "positive": 1},
        {"id": "gone", "image": "cat/9.png", "texts": ["a cat", "a dog"], "positive": 0},
        {"id": "long", "image": "cat/2.png", "texts": ["a cat", "cat " * 40], "positive": 0},
        {"id": "pairs", "images": ["cat/1.png", "dog/1.png"], "texts": ["a cat", "a dog"]},
    ]
    file = tmp_path / "queries.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return [file, "--images", photos]


def test_captions_are_ranked_for_an_image(match, photos):
    done = match("query", photos / "cat/1.png", *TEXTS)
    assert done.code == 0
    assert done.err == ""
    assert sorted(re.findall(r"^ *[+-]\d\.\d{5}  (a \w+)$", done.out, re.M)) == ["a cat", "a dog"]
    assert "9 calls" in done.out
    values = json.loads(match("query", photos / "cat/1.png", *TEXTS, "--json").out)
    scores = [one["score"] for one in values["ranking"]]
    assert scores == sorted(scores, reverse=True)
    assert values["best"] == values["ranking"][0]["candidate"]
    assert values["tied"] == []


def test_images_are_ranked_for_a_caption(match, photos):
    done = match("query", photos / "cat/1.png", photos / "dog/1.png", "--text", "a dog", "--json")
    assert {one["candidate"] for one in json.loads(done.out)["ranking"]} == {
        str(photos / "cat/1.png"), str(photos / "dog/1.png"),
    }  # fmt: skip


def test_several_of_both_are_a_matrix(match, photos):
    images = [photos / "cat/1.png", photos / "dog/1.png"]
    values = json.loads(match("query", *images, *TEXTS, "--json").out)
    assert [len(row) for row in values["scores"]] == [2, 2]
    alone = json.loads(match("query", images[1], *TEXTS, "--json").out)
    found = {one["candidate"]: one["score"] for one in alone["ranking"]}
    assert found == pytest.approx({"a cat": values["scores"][1][0], "a dog": values["scores"][1][1]}, abs=1e-6)
    assert re.search(r"^1: a cat$", match("query", *images, *TEXTS).out, re.M)


@pytest.mark.parametrize("score", ["pmi", "error", "attention", "hybrid"])
def test_every_score_can_be_asked_for(match, photos, score):
    assert match("query", photos / "cat/1.png", *TEXTS, "--score", score).code == 0


def test_a_task_is_answered_with_chance_and_failures(match, queries, tmp_path):
    done = match("run", *queries, "--out", tmp_path / "run")
    assert done.code == 3
    assert re.search(r"all +accuracy +\S+ \[.*\] +chance 41.7% +2 queries", done.out)
    assert re.search(r"all +group +\S+ \[.*\] +chance 16.7% +1 queries", done.out)
    assert re.search(r"easy +accuracy", done.out)
    assert "1 failed, 1 rows that are no query" in done.out
    again = match("run", *queries, "--out", tmp_path / "run", "--json")
    metrics = json.loads(again.out)["metrics"]
    assert (metrics["queries"], metrics["failed"], metrics["no_query"]) == (4, 1, 1)
    assert metrics["results"]["accuracy"]["queries"] == 2
    assert metrics["blind"]["texts"] is None


def test_images_of_a_caption_need_a_score_that_compares_them(match, photos, queries, tmp_path):
    images = [photos / "cat/1.png", photos / "dog/1.png"]
    done = match("query", *images, "--text", "a dog", "--score", "error")
    assert done.code == 0
    assert done.err.count("DenoisingError() cannot compare images for one text") == 1
    assert match("query", *images, "--text", "a dog", "--score", "pmi").err == ""
    assert match("query", images[0], *TEXTS, "--score", "error").err == ""
    assert "Compare the numbers of a row only" in match("query", *images, *TEXTS, "--score", "error").err
    done = match("run", *queries, "--out", tmp_path / "run", "--score", "attention")
    assert done.err.count("as query 'two' asks") == 1


def test_the_published_leak_is_asked_for_and_labelled(match, tmp_path):
    task = ["run", "binding/shape", "--limit", 6, "--score", "hybrid"]
    plain = json.loads(match(*task, "--out", tmp_path / "plain", "--json").out)["metrics"]
    assert plain["invalid"] is None
    leaking = match(*task, "--reproduce-batch-leak", 3, "--out", tmp_path / "leaking")
    assert leaking.code == 0
    assert "These results are NOT VALID: scores share information between queries" in leaking.out
    assert leaking.err.count("NOT VALID") == 1
    again = json.loads(match(*task, "--reproduce-batch-leak", 3, "--out", tmp_path / "leaking", "--json").out)
    assert "NOT VALID" in again["metrics"]["invalid"]
    refused = match(*task, "--reproduce-batch-leak", 3, "--out", tmp_path / "plain")
    assert refused.code == 2
    assert "batch_leak" in refused.err


def test_an_interrupted_run_is_continued(match, queries, tmp_path, monkeypatch):
    monkeypatch.setattr(matching.evaluate_matching, "__kwdefaults__", {"commit_every": 2, "progress": None})
    whole = json.loads(match("run", *queries, "--out", tmp_path / "whole", "--json").out)

    @contextmanager
    def interrupted(total, what="images"):
        def report(done, calls):
            if done > 2:
                raise KeyboardInterrupt

        yield report

    with monkeypatch.context() as patch:
        patch.setattr(output, "progress", interrupted)
        done = match("run", *queries, "--out", tmp_path / "run")
    assert done.code == 130
    assert "same command continues" in done.err
    continued = json.loads(match("run", *queries, "--out", tmp_path / "run", "--json").out)
    assert continued["metrics"].pop("speed") != whole["metrics"].pop("speed")
    assert continued["metrics"] == whole["metrics"]


def test_other_settings_do_not_join_a_run(match, queries, tmp_path):
    match("run", *queries, "--out", tmp_path / "run")
    done = match("run", *queries, "--out", tmp_path / "run", "--seed", 1)
    assert done.code == 2
    assert "settings.seed" in done.err


def test_the_cost_is_told_beforehand(match, queries, tmp_path):
    done = match("run", *queries, "--out", tmp_path / "run", "--dry-run")
    assert done.code == 0
    assert re.search(r"calls +\d+", done.out)
    assert not (tmp_path / "run").exists()


def test_attribute_binding_is_a_task(match, tmp_path):
    done = match("run", "binding/colour|shape", "--limit", 3, "--out", tmp_path / "run", "--json")
    assert json.loads(done.out)["metrics"]["results"]["by_tag"]["colour|shape"]["accuracy"]["queries"] == 3


def test_an_explanation_tells_of_each_word(match, photos, tmp_path):
    done = match("explain", photos / "cat/1.png", "--text", "a cat", "--figure", tmp_path / "deep" / "cat.png")
    assert done.code == 0
    assert re.search(r"^cat +0\.\d+ +most at x \d+%, y \d+%$", done.out, re.M)
    assert (tmp_path / "deep" / "cat.png").stat().st_size > 1000
    done = match("explain", photos / "cat/1.png", "--text", "a cat", "--text", "a small dog", "--json")
    values, other = json.loads(done.out)
    assert (values["text"], values["words"]) == ("a cat", ["start", "a", "cat", "end"])
    assert other["words"] == ["start", "a", "small", "dog", "end"]
    assert len(values["gain_by_timestep"]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["weights", "prompt", "lora"])
def test_a_few_queries_are_learnt_from(match, run, sd, photos, tmp_path, kind):
    extra = [] if kind == "weights" else ["--steps", 2]
    task = ["fit", "binding/shape", "--kind", kind, "--shots", 2, "--test", 3, *extra]
    done = match(*task, "--out", tmp_path / "learnt")
    assert done.code == 0
    assert re.search(r"zero-shot +\S+% \[.*\]\nfitted +\S+% \[", done.out)
    values = json.loads(match(*task, "--out", tmp_path / "again", "--json").out)
    assert (values["notes"]["examples"], values["tested"], values["fitted"]["queries"]) == (2, 3, 3)
    use = ["query", photos / "cat/1.png", *TEXTS, "--adapter", tmp_path / "learnt.safetensors"]
    assert match(*use).code == 0
    refused = match(*use, "--score", "attention")
    assert refused.code == 2
    assert "Leave the score out" in refused.err
    foreign = run(
        "match",
        "query",
        photos / "cat/1.png",
        *TEXTS,
        "--model",
        "tiny-fashion",
        "--adapter",
        tmp_path / "learnt.safetensors",
    )
    assert foreign.code == 2
    assert "another model" in foreign.err


def test_what_was_learnt_for_a_preset_is_matched_with_it(run, sd, photos, tmp_path):
    adapter, model = tmp_path / "learnt.safetensors", ("--model", sd)
    task = ("fit", "binding/shape", "--kind", "discffusion", "--shots", 2, "--steps", 2, "--test", 2)
    assert run("match", *task, "--preset", "discffusion", "--out", adapter, *model).code == 0
    use = ("match", "query", photos / "cat/1.png", *TEXTS, "--adapter", adapter, *model)
    assert run(*use, "--preset", "discffusion").code == 0
    refused = run(*use)
    assert refused.code == 2
    assert "attention that was read with tokens 'all'" in refused.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["query", "{photo}", "--text", "a cat"], "nothing to choose from"),
        (["query", "{photo}", "--text", "a cat", "--text", "a cat"], "twice"),
        (["query", "none.png", *TEXTS], "none.png"),
        (["query", "{photo}", "--text", "a cat", "--text", "cat " * 40], "tokens"),
        (["query", "{photo}", *TEXTS, "--score", "pmmi"], "pmi"),
        (["query", "{photo}", *TEXTS, "--score", "clip"], "diffusion model"),
        (["query", "{photo}", *TEXTS, "--timesteps", "0.4"], "two numbers"),
        (["query", "{photo}", *TEXTS, "--timesteps", "0.9,0.4"], "first and last"),
        (["query", "{photo}", *TEXTS, "--score", "attention", "--layers", "mid.9"], "mid.0"),
        (["query", "{photo}", *TEXTS, "--preset", "discffusion"], "--draws"),
        (["query", "{photo}", *TEXTS, "--adapter", "none"], "no adapter"),
        (["run", "binding/shape", "--out", "x", "--reproduce-batch-leak", "16"], "'pmi' has none"),
        (["run", "binding/shape", "--out", "x", "--score", "error", "--reproduce-batch-leak", "4"], "'error' has none"),
        (["run", "bindingg", "--out", "x"], "binding"),
        (["run", "binding/color", "--out", "x"], "colour"),
        (["run", "winoground", "--out", "x"], "--data"),
        (["run", "none.jsonl", "--out", "x"], "none.jsonl"),
        (["run", "binding"], "--out"),
        (["fit", "binding/shape", "--kind", "lorra", "--out", "x"], "lora"),
        (["fit", "binding/shape", "--shots", "1000", "--out", "x"], "1000"),
        (["fit", "none.jsonl", "--out", "x"], "none.jsonl"),
    ],
)
def test_wrong_input_is_refused(match, photos, arguments, message):
    done = match(*(argument.format(photo=photos / "cat/1.png") for argument in arguments))
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
