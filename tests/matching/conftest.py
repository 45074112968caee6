import numpy as np
import pytest
from PIL import Image
from pipelines import save_stable_diffusion

from diffsight.backbones.loading import load


@pytest.fixture(scope="session")
def tiny():
    """The embedded trained model."""
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A randomly initialised Stable Diffusion of the real classes, as it is loaded from a folder."""
    return load(save_stable_diffusion(tmp_path_factory.mktemp("sd")), device="cpu", dtype="fp32")


@pytest.fixture(scope="session")
def pictures():
    """Six pictures, all different."""
    rng = np.random.default_rng(3)
    return [Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(6)]
