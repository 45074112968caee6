import json

import pytest
from made_runs import make_run


@pytest.fixture
def made(tmp_path):
    return make_run(tmp_path / "run")


def test_a_page_and_what_it_says_as_json(run, made, tmp_path):
    done = run("report", made, "--out", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert "page.html (0." in done.out
    page = tmp_path / "page.html"
    again = run("report", made, "--out", page, "--force", "--json", "--title", "A title")
    assert "<title>A title</title>" in page.read_text("utf-8")
    found = json.loads(again.out)
    assert found["bytes"] == page.stat().st_size
    assert found["runs"][0]["run"] == str(made)
    assert found["runs"][0]["images"] == 30


def test_several_runs(run, made, tmp_path):
    other = make_run(tmp_path / "other", seed=1)
    found = json.loads(run("report", made, other, "--out", tmp_path / "page.html", "--json").out)
    assert len(found["runs"]) == 2
    assert found["paired"][0]["letters"] == ["A", "B"]
    unfinished = make_run(tmp_path / "unfinished", finished=False)
    done = run("report", made, unfinished, "--out", tmp_path / "both.html")
    assert done.code == 0
    assert "not finished" in done.out
    assert "with care" in done.out


def test_what_cannot_be_done_is_said_in_one_line(run, made, tmp_path):
    (tmp_path / "there.html").write_text("mine")
    for arguments, words in (
        ((tmp_path, "--out", tmp_path / "page.html"), "not a run"),
        ((made, "--out", tmp_path / "there.html"), "--force"),
        ((made, "--out", tmp_path / "page.pdf"), ".html"),
        ((made, "--out", tmp_path), "directory"),
        ((made, made, "--out", tmp_path / "page.html"), "twice"),
        ((made,), "--out"),
    ):
        refused = run("report", *arguments)
        assert refused.code == 2
        assert refused.out == ""
        assert refused.err.count("\n") == 1
        assert words in refused.err
    assert (tmp_path / "there.html").read_text() == "mine"
    assert not (tmp_path / "page.html").exists()
