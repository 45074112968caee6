import json
import re

import pytest

from diffsight.backbones.cards import assets

NAMES = ["--classes", "trouser,bag"]
QUICK = ["--steps", 2, "--network", "test_resnet", "--epochs", 1, "--device", "cpu"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("bag", "trouser"):
        (folder / name).mkdir()
        for number, path in enumerate(sorted((assets() / "samples" / name).glob("*.png"))[:6]):
            (folder / name / f"{number}.png").write_bytes(path.read_bytes())
    return folder


def test_from_class_names_to_a_file_and_what_the_set_is_like(run, photographs, tmp_path):
    out, file = tmp_path / "out", tmp_path / "model.onnx"
    done = run("distil", *NAMES, "--per-class", 6, "--trick", "base", "--out", out, "--export", file, *QUICK)
    assert done.code == 0, done.err
    assert "test_resnet for 2 classes, from 12 generated images and 0 photographs" in done.out
    assert "Protocol: zero-shot: trained on generated images alone; tiny-fashion was trained on the classes" in done.out
    assert done.out.count("no claim about zero-shot skill") == 1
    assert file.stat().st_size > 1000

    where = ["--cache", tmp_path / "cache", "--device", "cpu"]
    told = run("diversity", out / "synthetic", "--real", photographs, "--agreement", "self", *where)
    assert told.code == 0, told.err
    assert "(generated), features of tiny-fashion" in told.out
    assert re.search(r"all +12 +\d+\.\d\d +0\.\d{3} +\d+\.\d%", told.out)
    assert "The Vendi score grows with the number of images" in told.out
    assert re.search(r"ORACLE, against folder:.*\(needs real images", told.out)
    alone = json.loads(run("diversity", out / "synthetic", *where, "--json").out)
    assert (alone["oracle"], alone["pooled"]["images"]) == (None, 12)

    found = run("gaussian", out / "synthetic", "--task", photographs, *where)
    assert found.code == 0, found.err
    assert "with 12 generated images" in found.out
    assert "Protocol: zero-shot: Gaussians on features of generated images (GDC), shared covariance" in found.out
    values = json.loads(
        run("gaussian", out / "synthetic", "--task", photographs, "--covariance", "per-class", *where, "--json").out
    )
    assert (values["covariance"], values["scored"], values["denoiser_calls"]) == ("per-class", 12, 0)


def test_photographs_are_another_protocol(run, photographs, tmp_path):
    arguments = ["distil", *NAMES, "--images", photographs, "--draws", 4, *QUICK]
    done = run(*arguments, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert (found["protocol"], found["sources"]["generated"], found["sources"]["photographs"]) == ("distilled", 0, 12)
    assert not (tmp_path / "out" / "synthetic").exists()
    cost = run(*arguments, "--per-class", 2, "--dry-run")
    assert re.search(r"synthesize +4 +\d+ .*\nlabel +12 +\d+ .*\ntrain +15 +0 ", cost.out), cost.out
    assert "Protocol: distilled." in cost.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil", *NAMES], "Where should it all go?"),
        (["distil", "--out", "x"], "Which classes?"),
        (["distil", "--classes", "bag", "--out", "x"], "at least two classes; got only 'bag'"),
        (["distil", "--classes", "a/b,bag", "--out", "x"], "path separator"),
        (["distil", *NAMES, "--out", "x", "--per-class", 0], "nothing to learn from"),
        (["distil", *NAMES, "--out", "x", "--export", "model.pt"], "ends in .onnx"),
        (["distil", *NAMES, "--out", "x", "--images", "nowhere"], "There is no folder"),
        (["diversity", "nowhere"], "There is no folder"),
        (["gaussian", "nowhere", "--task", "no-such-task"], "There is no task 'no-such-task'"),
    ],
)
def test_what_cannot_be_done_is_refused(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.iterdir())


def test_features_have_to_be_of_a_known_model(run, photographs):
    done = run("diversity", photographs)
    assert done.code == 2
    assert "say whose features by --features MODEL" in done.err
