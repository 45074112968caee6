"""A page is whole, safe and small, and says what the run says."""

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from made_runs import make_run

from diffsight.errors import InputError, RunError
from diffsight.evaluation.baselines import make_baseline_job
from diffsight.evaluation.task import folder_task, load_task
from diffsight.evaluation.trained import evaluate_trained
from diffsight.report import page as pages
from diffsight.report.page import check_out, make_report, write_report
from diffsight.store.run import Manifest, Run

VOID = {"meta", "img", "br", "hr", "link", "input"}
EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a browser would see, and whether every element is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text, self.texts = [], [], "", {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data + " "

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check(html):
    """What holds of every page."""
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form"}
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], (tag, attributes)
        for key in ("src", "href", "xlink:href", "clip-path", "fill"):
            for place in re.findall(r"#([\w-]+)", attributes.get(key, "")) if key != "fill" else ():
                assert place in ids
            if key in ("src", "href", "xlink:href") and key in attributes:
                assert attributes[key].startswith(("#", "data:image/")), attributes[key]
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
    assert "http" not in re.sub(r'http-equiv="[^"]*"', "", html)
    assert "#0101" not in html  # every colour is the style sheet's
    assert "mathdefault" not in page.text  # no formula of matplotlib is left
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(html.encode()) <= pages.LARGEST
    return page


def test_a_real_run(scored, photographs):
    report = make_report([scored], data=photographs)
    page = check(report.html)
    metrics = Run.load(scored).metrics()
    assert f"{metrics['top1']['value']:.1%}" in page.text
    assert f"[{metrics['top1']['low']:.1%}, {metrics['top1']['high']:.1%}]" in page.text
    assert "6 of 7 images scored, 1 failed" in page.text
    assert "bag/broken.png" in page.text
    assert "no claim about zero-shot skill" in page.text
    assert Run.load(scored).manifest.fingerprint in page.text
    assert len([svg for svg in page.all("svg") if svg.get("class") == "chart"]) == 3
    assert [image["src"][:22] for image in page.all("img")] == ["data:image/png;base64,"] * 6
    assert report.runs[0]["calls"] == 36
    assert "race" in report.html


def test_the_same_run_gives_the_same_page(scored, photographs):
    assert make_report([scored], data=photographs).html == make_report([scored], data=photographs).html


def test_pictures_are_only_those_of_the_run(scored, photographs, tmp_path):
    page = check(make_report([scored]).html)  # a run that was not made from the command line has no path
    assert page.all("img") == []
    assert "--data" in page.text
    (tmp_path / "bag").mkdir()
    for index in range(9):
        (tmp_path / "bag" / f"{index}.png").write_bytes((next((photographs / "bag").iterdir())).read_bytes())
    page = check(make_report([scored], data=tmp_path).html)
    assert page.all("img") == []
    assert "other ids or labels" in page.text


@pytest.mark.parametrize("name", ["cue-conflict-shapes@fog:1", "digits@resolution:8", "folder:{}@fog:1"])
def test_pictures_that_were_made_or_changed_are_made_again(name, photographs, tmp_path):
    task = load_task(name.format(photographs))
    evaluate_trained(make_baseline_job(task, "tiny-shapes-clip", limit=2, device="cpu"), tmp_path / "run")
    data = photographs if "folder" in name else None
    assert len(check(make_report([tmp_path / "run"], data=data).html).all("img")) == 2


def test_pictures_of_some_of_a_folder_are_found(photographs, tmp_path):
    job = make_baseline_job(folder_task(photographs), "tiny-shapes-clip", device="cpu")
    evaluate_trained(replace(job, source=job.source.select([1, 3, 4])), tmp_path / "run")  # as of a comparison's half
    assert len(check(make_report([tmp_path / "run"], data=photographs).html).all("img")) == 3


def test_no_text_of_a_run_is_markup(tmp_path):
    run = make_run(
        tmp_path / EVIL.replace("/", "_"),
        classes=(EVIL, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }} $x^2$ 猫"),
        ids='<b onclick="x()">{:03}',
        ties=2,
        failures=[{"id": EVIL, "reason": f"{EVIL} & 'so on'"}],
        prompts=[EVIL],
        recorded={"model": EVIL, "device": EVIL, "command": ["evaluate", EVIL]},
    )
    page = check(make_report([run], title=EVIL).html)
    assert page.text.count(EVIL) >= 6
    assert "{{ 7 * 7 }}" in page.text


def test_the_policy_allows_the_style_sheet_and_pictures_alone(tmp_path):
    page = check(make_report([make_run(tmp_path / "run")]).html)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv")]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    assert "unsafe" not in policy


def test_an_unfinished_run_is_marked(tmp_path):
    report = make_report([make_run(tmp_path / "run", finished=False)])
    page = check(report.html)
    assert "Unfinished: 15 of 30 images" in page.text
    assert not report.runs[0]["finished"]
    assert report.runs[0]["images"] == 15


def test_without_labels_ties_and_many_classes(tmp_path):
    page = check(make_report([make_run(tmp_path / "plain", labelled=False)]).html)
    assert "have no labels" in page.text
    page = check(make_report([make_run(tmp_path / "ties", ties=3)]).html)
    assert "Ties" in page.text
    many = make_run(tmp_path / "many", classes=[f"kind {n}" for n in range(300)], images=900)
    page = check(make_report([many]).html)
    assert "30 most frequent mistakes" in page.text
    assert "200 worst of 300" in page.text


def test_a_trained_network(tmp_path):
    metrics = {
        "label": "zero-shot: trained on synthetic images",
        "learnt": True,
        "speed": {"images_per_second": 1234.5, "seconds_per_image": 0.0101, "device": "cpu", "batch": 256},
    }
    run = make_run(tmp_path / "run", calls=0, settings={}, kind="trained network", metrics=metrics)
    page = check(make_report([run]).html)
    assert "the network alone 1,234.5 images per second" in page.text
    assert "10.1 ms" in page.text
    assert "this measures memory" in page.text
    assert "zero-shot: trained on synthetic images" in page.text
    assert "calls per image" not in page.text


def test_runs_side_by_side(tmp_path):
    runs = [make_run(tmp_path / f"run{seed}", seed=seed, calls=10**seed, right=0.4 + 0.2 * seed) for seed in (1, 2, 3)]
    report = make_report(runs)
    page = check(report.html)
    assert [one["letters"] for one in report.paired] == [["A", "B"], ["A", "C"], ["B", "C"]]
    assert report.paired[0]["images"] == 30
    assert report.differences == []
    assert "A − B" in page.text
    assert [one["href"] for one in page.all("a")] == ["#all", "#run-a", "#run-b", "#run-c"]
    other = make_run(tmp_path / "other", images=12)
    mixed = make_report([runs[0], other])
    assert mixed.paired == []
    assert "compare their numbers with care" in check(mixed.html).text


def test_a_page_stays_small(tmp_path, photographs, scored, monkeypatch):
    whole = make_report([scored], data=photographs).html
    monkeypatch.setattr(pages, "LARGEST", len(whole.encode()) - 1)
    assert check(make_report([scored], data=photographs).html).all("img") != []
    monkeypatch.setattr(pages, "LARGEST", 1000)
    with pytest.raises(InputError, match="Report fewer runs"):
        make_report([scored], data=photographs)


def test_what_is_no_run_is_refused(tmp_path, scored):
    with Run.open(tmp_path / "compared", Manifest({"task": {"name": "made"}}, {})):
        (tmp_path / "compared" / "rows").mkdir()
    with pytest.raises(RunError, match=r"compared is a comparison: its page is comparison\.html"):
        make_report([tmp_path / "compared"])
    with pytest.raises(RunError, match="no run"):
        make_report([tmp_path / "none"])
    with pytest.raises(RunError, match="not a run"):
        make_report([tmp_path])
    with pytest.raises(InputError, match="twice"):
        make_report([scored, scored / ".." / scored.name])
    with pytest.raises(InputError, match="at least one"):
        make_report([])
    empty = make_run(tmp_path / "empty", images=0)
    with pytest.raises(RunError, match="no finished image"):
        make_report([empty])
    text = (make_run(tmp_path / "newer") / "manifest.json").read_text()
    (tmp_path / "newer" / "manifest.json").write_text(text.replace('"schema": 1', '"schema": 2'))
    with pytest.raises(RunError, match="Upgrade"):
        make_report([tmp_path / "newer"])


def test_where_a_page_cannot_go(tmp_path, scored):
    report = make_report([make_run(tmp_path / "run")])
    assert write_report(report, tmp_path / "new" / "page.html") == len(report.html.encode())
    assert (tmp_path / "new" / "page.html").read_text("utf-8") == report.html
    with pytest.raises(InputError, match="--force"):
        write_report(report, tmp_path / "new" / "page.html")
    write_report(report, tmp_path / "new" / "page.html", replace=True)
    with pytest.raises(InputError, match=r"\.html"):
        check_out(tmp_path / "page.pdf")
    with pytest.raises(InputError, match="directory"):
        check_out(tmp_path)
    with pytest.raises(InputError, match="cannot be written"):
        check_out(tmp_path / "new" / "page.html" / "page.html")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setattr(pages, "find_spec", lambda name: None if name == package else sys)
    with pytest.raises(InputError, match=rf"{package}.*diffsight\[report\]"):
        make_report([tmp_path])
