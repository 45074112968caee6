import json
import re

import numpy as np
import pytest
from PIL import Image
from pipelines import save_ddpm

from diffsight.backbones.cards import assets
from diffsight.features.cache import load_cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test writes into the cache of the person who runs it."""
    monkeypatch.setenv("DIFFSIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def samples():
    return assets() / "samples"


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    return save_ddpm(tmp_path_factory.mktemp("ddpm"))


def test_layers_are_listed_with_shape_and_cost(run, sd, ddpm):
    for model in (sd, ddpm):
        listed = run("layers", model)
        assert listed.code == 0
        header, *rows = listed.out.splitlines()
        assert header.split()[:2] == ["layer", "block"]
        assert [row.split()[1] for row in rows[:9]] == [f"b{number}" for number in range(1, 10)]
        assert rows[-1] == "Timesteps go from 0 (clean) to 999 (noise)."
        entries = json.loads(run("layers", model, "--json").out)["layers"]
        assert [entry["name"] for entry in entries] == [row.split()[0] for row in rows[:9]]
        assert all(0 < entry["share"] <= 1 and len(entry["shape"]) == 3 for entry in entries)


def test_layers_of_an_unknown_model_are_refused(run):
    refused = run("layers", "sd-15")
    assert refused.code == 2
    assert "Did you mean 'sd-1.5'" in refused.err


def test_features_are_written_and_continued(run, sd, photos, tmp_path):
    command = ["features", "extract", "--task", photos, "--model", sd, "--out", tmp_path / "features"]
    command += ["--layers", "mid, dec.0", "--timesteps", "90,20", "--grid", "2"]
    done = run(*command)
    assert done.code == 0, done.err
    assert "4 images, 0 failed" in done.out
    assert re.search(r"mid@90 +1 × 16 × 2 × 2", done.out)
    cache = load_cache(tmp_path / "features")
    assert cache.names == ("mid@90", "dec.0@90", "mid@20", "dec.0@20")
    again = json.loads(run(*command, "--json").out)
    assert again["images"] == 4
    assert [column["name"] for column in again["columns"]] == list(cache.names)
    refused = run(*command, "--seed", 1)
    assert refused.code == 2
    assert "noise.bank" in refused.err


def test_a_bad_image_is_told_and_the_rest_is_there(run, sd, tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    done = run("features", "extract", "--task", tmp_path, "--model", sd, "--out", tmp_path / "features")
    assert done.code == 3
    assert "1 images, 1 failed" in done.out
    assert "failed: b.png" in done.out


def test_the_cost_is_told_and_nothing_is_written(run, sd, photos, tmp_path):
    command = ["features", "extract", "--task", photos, "--model", sd, "--timesteps", "1,2,3", "--dry-run", "--json"]
    told = json.loads(run(*command, "--out", tmp_path / "features").out)
    assert told["calls"] == 4 * 3
    assert told["disk"].startswith("about 0.0 MB")
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layers", "dec.9"], "has no layer 'dec.9'"),
        (["--layers", "mid,b5"], "the same one"),
        (["--timesteps", "90,x"], "whole numbers separated by commas; got 'x'"),
        (["--timesteps", "1000"], "1000 is not a timestep"),
        (["--pool", "mean"], "Unknown pooling 'mean'"),
        (["--noise", "mean"], "does not go with draws=1"),
        (["--storage", "fp8"], "fp32 or fp16"),
        ([], "Give --out DIR"),
    ],
)
def test_wrong_options_are_refused(run, sd, photos, tmp_path, options, message):
    out = ["--out", tmp_path / "features"] if options else []
    refused = run("features", "extract", "--task", photos, "--model", sd, *options, *out)
    assert refused.code == 2
    assert message in refused.err
    assert not (tmp_path / "features").exists()


def test_a_probe_is_trained_measured_kept_and_used(run, samples, tmp_path):
    command = ["features", "probe", "--task", samples, "--layers", "mid", "--timesteps", "30", "--grid", "2"]
    done = run(*command, "--out", tmp_path / "probe")
    assert done.code == 0, done.err
    # 25 of the 100 photographs are for testing; guessing gives 10 %.
    assert float(re.search(r"accuracy +(\d+\.\d)%", done.out)[1]) > 50
    assert "mid@30 (512 numbers), head logistic (5,130 parameters)" in done.out
    metrics = json.loads((tmp_path / "probe" / "metrics.json").read_text())
    assert metrics["scored"] == 30
    assert re.search(r"time per image +[\d,.]+ ms on cpu, with reading it", done.out)
    used = run("features", "predict", tmp_path / "probe", samples / "bag", "--json")
    assert used.code == 0, used.err
    labels = [image["top"][0]["label"] for image in json.loads(used.out)["images"]]
    assert labels.count("bag") >= 7
    table = run("features", "predict", tmp_path / "probe", samples / "bag")
    assert "10 images, 0 failed" in table.out


def test_few_labels_with_several_seeds(run, samples):
    command = ["features", "probe", "--task", samples, "--per-class", 3, "--seeds", 3, "--head", "knn", "--json"]
    metrics = json.loads(run(*command, "--layers", "mid").out)
    assert metrics["train"] == {"images": 30, "failed": 0, "per_class": 3, "share": None}
    values = [seed["top1"]["value"] for seed in metrics["seeds"]]
    assert len(values) == 3
    assert metrics["mean"] == pytest.approx(np.mean(values))
    assert metrics["sd"] == pytest.approx(np.std(values, ddof=1))
    # What was extracted for one head is not extracted for the next.
    again = json.loads(run(*[part if part != "knn" else "logistic" for part in command], "--layers", "mid").out)
    assert metrics["denoiser_calls"] > 0
    assert again["denoiser_calls"] == 0
    assert again["speed"]["seconds"] > 0  # also of features that were kept


def test_a_probe_predicts_what_can_be_read(run, samples, tmp_path):
    run("features", "probe", "--task", samples, "--layers", "mid", "--out", tmp_path / "probe")
    Image.open(next((samples / "bag").iterdir())).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    used = run("features", "predict", tmp_path / "probe", tmp_path / "a.png", tmp_path / "b.png")
    assert used.code == 3
    assert re.search(r"a\.png +bag", used.out)
    assert "failed:" in used.out


def test_head_options_are_json(run, samples):
    command = ["features", "probe", "--task", samples, "--layers", "mid", "--grid", 4, "--head", "linear", "--json"]
    metrics = json.loads(run(*command, "--head-options", '{"pool": 2}').out)
    assert metrics["head"] == {"name": "linear", "pool": 2, "parameters": 5130}
    for wrong in ("{pool: 2}", "[2]"):
        refused = run(*command, "--head-options", wrong)
        assert refused.code == 2
        assert "JSON object" in refused.err
    refused = run(*command, "--head-options", '{"pol": 2}')
    assert "no option 'pol'" in refused.err
    assert "'pool'" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "linera"], "Did you mean 'linear'"),
        (["--per-class", "100"], "('ankle-boot') has 7 images"),
        (["--share", "2"], "share"),
        (["--per-class", "2", "--share", "0.1"], "not both"),
        (["--preset", "gd2023/linear-2", "--head", "knn"], "leave out --head"),
        (["--preset", "gd2023/linear-2", "--grid", "4", "--views", "2"], "leave out --grid and --views"),
        (["--preset", "gd2023/linear-2"], "no layer 'b24'"),
        (["--preset", "gd2023"], "Did you mean"),
        (["--recipe", "gd"], "Unknown recipe"),
    ],
)
def test_a_wrong_probe_is_refused(run, samples, options, message):
    extra = [] if "--recipe" not in options else ["--head", "linear", "--layers", "mid"]
    refused = run("features", "probe", "--task", samples, *options, *extra)
    assert refused.code == 2
    assert message in refused.err


def test_unlabelled_images_cannot_be_probed(run, sd, samples):
    refused = run("features", "probe", "--task", samples / "bag", "--model", sd)
    assert refused.code == 2
    assert "sub-folder for each class" in refused.err


def test_the_cost_of_a_probe_is_told(run, samples):
    told = json.loads(run("features", "probe", "--task", samples, "--views", 4, "--dry-run", "--json").out)
    # 70 training images in four views each, and 30 test images in one.
    assert told["images"] == 100
    assert told["calls"] == 70 * 4 + 30


def test_a_search_finds_a_setting_and_says_how_to_measure_it(run, samples, tmp_path):
    command = [
        "features",
        "search",
        "--task",
        samples,
        "--timesteps",
        "10,90",
        "--layers",
        "enc.3,mid,dec.0",
        "--per-class",
        6,
    ]
    done = run(*command, "--out", tmp_path / "search.json", "--figure", tmp_path / "map.png")
    assert done.code == 0, done.err
    assert (tmp_path / "map.png").stat().st_size > 5000
    kept = json.loads((tmp_path / "search.json").read_text())
    assert kept["best"]["accuracy"] == max(trial["accuracy"] for trial in kept["trials"])
    best = kept["best"]
    assert f"--layers {best['layer']} --timesteps {best['timestep']} --grid {best['size']}" in done.out
    assert json.loads(run(*command, "--json").out)["trials"] == kept["trials"]
    told = json.loads(run(*command, "--dry-run", "--json").out)
    assert told["calls"] >= kept["calls"]


def test_similarities_are_shown_and_drawn(run, sd, dit, photos, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(pictures / f"{number}.png")
    command = ["features", "cka", "--task", pictures, "--model", sd, "--layers", "mid,dec.0", "--timesteps", "50"]
    done = run(*command, "--figure", tmp_path / "cka.svg")
    assert done.code == 0, done.err
    assert "images: 8" in done.out
    assert (tmp_path / "cka.svg").stat().st_size > 5000
    other = json.loads(run(*command, "--with", dit, "--json").out)
    assert other["names_x"] == ["mid@50", "dec.0@50"]
    assert other["names_y"] == ["block.0@50", "block.1@50"]
    assert np.array(other["values"]).shape == (2, 2)
    refused = run("features", "cka", "--task", photos / "cat", "--model", sd)
    assert refused.code == 2
    assert "at least 4 images; got 2" in refused.err
    refused = run(*command, "--figure", tmp_path / "cka.txt")
    assert refused.code == 2
    assert "must end in" in refused.err
