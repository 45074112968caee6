"""Benchmarks at their smallest: synthesis in two processes and continued, and speed on small networks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffsight.data.sources import open_source
from diffsight.errors import SourceError

ROOT = Path(__file__).parents[1]
TRICKS, FILTERS = ("class-prompt", "merged"), ("filters-none",)
SMALL = {
    "per-class": 6,
    "filter-per-class": 3,
    "steps": 2,
    "rows": 30,
    "seeds": 1,
    "epochs": 1,
    "batch": 16,
    "test": 40,
    "zero-shot-images": 1,
    "photographs": 4,
    "draws": 2,
    "agreement": 1,
    "diverse": 6,
    "networks": "test_resnet",
    "device": "cpu",
    "dtype": "fp32",
}


def run(*more):
    options = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    command = [
        sys.executable,
        ROOT / "benchmarks" / "synthesis.py",
        *options,
        "--tricks",
        *TRICKS,
        "--filters",
        *FILTERS,
    ]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def photographs():
    try:
        for split in ("train", "test"):
            open_source("torchvision:fashion-mnist", split=split)
    except SourceError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_synthesis_is_measured_from_sets_to_tables(photographs, tmp_path):
    work, figures = tmp_path / "work", tmp_path / "figures"
    kinds = ("sets", "train", "gdc")
    first = run("--work", work, "--figures", figures, "--jobs", "2", "--part", *kinds)
    parts = {path.name: path.read_text() for path in (work / "parts").glob("*.jsonl")}
    found = [json.loads(text) for text in parts.values()]
    assert {one["part"] for one in found} == {"set", "train", "gdc"}
    images = {one["name"]: one["images"] for one in found if one["part"] == "train"}
    assert images["class-prompt"] == images["merged"] == images["real"] == 60
    assert images["distilled+merged"] == 64
    assert images["filters-none"] == 30
    assert "real photographs (ceiling) | 60 |" in first.stdout
    assert {path.name for path in figures.iterdir()} == {
        f"synthesis-{name}.png" for name in ("tricks", "class-prompt", "merged")
    }
    lost = next(name for name in parts if name.startswith("gdc_merged"))
    (work / "parts" / lost).unlink()
    again = run("--work", work, "--part", *kinds)
    assert again.stdout.partition("Sets, as")[0] == first.stdout.partition("Sets, as")[0]
    assert again.stderr.count(" s  ") == 1
    after = {path.name: path.read_text() for path in (work / "parts").glob("*.jsonl")}
    del after[lost], parts[lost]
    assert after == parts


def test_speed_is_measured_as_far_as_the_budget_goes(tmp_path):
    file = tmp_path / "gpu.json"
    options = ["--size", "small", "--model", "dit", "--budget", "4", "--json", file]
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert found["peak_flops"] > 0
    assert all(row["rate"] > 0 and row["share_of_peak"] > 0 for row in found["rows"])
    left_out = [name for name, note in found["notes"].items() if note.startswith("left out")]
    assert any("compile" in name for name in left_out)
    assert all(f"{name}: {found['notes'][name]}" in done.stdout for name in left_out)


def test_what_classes_could_share_is_measured():
    """The benchmark itself checks that outputs stay the same."""
    command = [sys.executable, ROOT / "benchmarks" / "sharing.py", "--rows", "20", "--repeats", "1", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert re.search(r"before the text: \d+\.\d% of the time", done.stdout)
    assert re.search(r"keys and values looked up: \d\.\d\d times", done.stdout)
    assert "before the text 5.08%" in done.stdout
