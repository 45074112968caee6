import numpy as np
import pytest
from PIL import Image
from pipelines import save_dit, save_stable_diffusion

from diffsight import load


@pytest.fixture(scope="session")
def sd(tmp_path_factory):
    return load(save_stable_diffusion(tmp_path_factory.mktemp("sd")), device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def dit(tmp_path_factory):
    return load(save_dit(tmp_path_factory.mktemp("dit")), device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(40)]


@pytest.fixture
def folder(tmp_path, pictures):
    """The first 20 pictures as files in two class folders."""
    for number, picture in enumerate(pictures[:20]):
        place = tmp_path / "pictures" / ("cat" if number < 10 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number:02d}.png")
    return tmp_path / "pictures"
