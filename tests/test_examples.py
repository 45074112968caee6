"""Every example runs as its first lines say, on the photographs that come with the package."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffsight.backbones.cards import assets

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Some of the sample images: what examples say of all of them is shown in the README."""
    place = tmp_path_factory.mktemp("photographs")
    for folder in (assets() / "samples").iterdir():
        (place / folder.name).mkdir()
        for file in sorted(folder.iterdir())[:6]:
            (place / folder.name / file.name).write_bytes(file.read_bytes())
    return place


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run_as_they_say(example, photographs, tmp_path):
    usage = re.search(r"^    python (examples/\S+) (.*)$", example.read_text(encoding="utf-8"), re.MULTILINE)
    assert usage[1] == f"examples/{example.name}"
    given = {"PHOTOGRAPHS": str(photographs), "OUT": str(tmp_path / "out")}
    arguments = [given[word] for word in usage[2].split() if word in given]
    threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    done = subprocess.run(
        [sys.executable, example, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HUB_OFFLINE": "1", **threads},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
