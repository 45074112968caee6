import pytest

from diffsight.backbones import load
from diffsight.backbones.cards import assets
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import folder_task
from diffsight.scoring.elimination import Exhaustive
from diffsight.zero_shot.settings import Settings


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Two photographs of each of three classes, and one file that is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("bag", "sandal", "trouser"):
        (folder / name).mkdir()
        for file in sorted((assets() / "samples" / name).iterdir())[:2]:
            (folder / name / file.name).write_bytes(file.read_bytes())
    (folder / "bag" / "broken.png").write_text("not an image")
    return folder


@pytest.fixture(scope="session")
def scored(photographs, tmp_path_factory):
    """A real run of the embedded model on them."""
    out = tmp_path_factory.mktemp("scored") / "run"
    settings = Settings(policy=Exhaustive(num_draws=12))
    evaluate(make_job(folder_task(photographs), load("tiny-fashion", device="cpu"), settings=settings), out)
    return out
