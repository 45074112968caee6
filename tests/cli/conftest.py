from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pipelines import save_dit, save_stable_diffusion

from diffsight.cli import main, output


@pytest.fixture(scope="session")
def sd(tmp_path_factory):
    """A text-to-image model of a few thousand random weights."""
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def dit(tmp_path_factory):
    """A class-conditional model of the classes cat, dog and bird."""
    return save_dit(tmp_path_factory.mktemp("dit"))


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Two images in each of the folders cat and dog."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    """The command line in this process: exit code, stdout and stderr."""
    monkeypatch.setattr(output, "SECONDS_BETWEEN_LINES", float("inf"))  # However slow the computer is.

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return call
