"""What a GPU changes: the numbers by rounding only, and nothing else. Skipped where there is none."""

import numpy as np
import pytest
import torch
from digit_folders import write_generated

from diffsight import DiffusionClassifier, Exhaustive, load
from diffsight.backbones.cards import assets
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.backbones.sampling import Sampler, draw
from diffsight.backbones.speed import speed_up
from diffsight.data.images import images_from
from diffsight.diffusion.transfer import fetch, send
from diffsight.features.extractor import FeatureExtractor
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.settings import MatchSettings
from diffsight.synthesis.options import TrainSettings
from diffsight.synthesis.trainer import train
from diffsight.synthesis.training_set import open_training_set

pytestmark = pytest.mark.gpu
CLASSES = ["bag", "sandal", "trouser"]
MIB = 2**20


@pytest.fixture(scope="module")
def pictures():
    return [sorted((assets() / "samples" / name).iterdir())[0] for name in CLASSES]


@pytest.fixture(scope="module")
def on_cpu():
    return load("tiny-fashion", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def on_gpu():
    return load("tiny-fashion", device="cuda", dtype="fp32")


@pytest.fixture
def exact(monkeypatch):
    """Convolutions in fp32 and not in TF32, torch's default on a GPU."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def classifier(backbone, **options):
    return DiffusionClassifier(backbone, CLASSES, policy=Exhaustive(num_draws=16), batch_size=64, **options).fit()


def errors(model, pictures, batch_size=64):
    """All errors of all pictures, and the engine that found them."""
    engine = model.setup_.engine(batch_size)
    images = encode_images(model.setup_.backbone, by_content(images_from(pictures), []))
    done = {one.id: one for finished in engine.run(images) for one in finished}
    assert not any(one.failure for one in done.values())
    return np.stack([done[key].errors for key in sorted(done)]), engine


@pytest.mark.usefixtures("exact")
def test_labels_and_scores_are_those_of_the_cpu(on_cpu, on_gpu, pictures):
    one, other = classifier(on_cpu), classifier(on_gpu)
    assert other.predict(pictures).tolist() == one.predict(pictures).tolist() == CLASSES
    np.testing.assert_allclose(errors(other, pictures)[0], errors(one, pictures)[0], rtol=1e-3, atol=1e-4)


def test_bf16_gives_near_scores(on_cpu, pictures):
    one, other = classifier(on_cpu), classifier(load("tiny-fashion", device="cuda"))
    assert other.setup_.backbone.dtype == torch.bfloat16
    exact_errors, near = errors(one, pictures)[0], errors(other, pictures)[0]
    assert near.dtype == np.float32
    assert np.corrcoef(exact_errors[..., 1].ravel(), near[..., 1].ravel())[0, 1] > 0.99
    assert other.predict(pictures).tolist() == CLASSES


@pytest.mark.usefixtures("exact")
def test_batch_size_and_batches_in_flight_change_nothing(on_gpu, pictures):
    model = classifier(on_gpu)
    expected, engine = errors(model, pictures)
    assert engine.depth == 2
    for batch_size in (7, 1000):
        np.testing.assert_allclose(errors(model, pictures, batch_size)[0], expected, rtol=1e-4, atol=1e-5)


def test_channels_last_changes_nothing(pictures):
    backbone = load("tiny-fashion", device="cuda", dtype="fp32")
    expected = errors(classifier(backbone), pictures)[0]
    found = errors(classifier(speed_up(backbone, channels_last=True)), pictures)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


def test_tensors_come_and_go_in_order():
    device = torch.device("cuda")
    numbers = [torch.full((1000,), float(number)) for number in range(50)]
    coming = [fetch(send(number, device) * 2) for number in numbers]
    for number, one in zip(numbers, coming, strict=True):
        assert torch.equal(one.wait(), number * 2)


def test_out_of_memory_halves_the_batch_and_loses_nothing(on_gpu, pictures):
    model = DiffusionClassifier(on_gpu, CLASSES, policy=Exhaustive(num_draws=700)).fit()
    expected, engine = errors(model, pictures, batch_size=256)
    assert engine.batch_size == 256
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 256 * MIB) / total)
    try:
        found, engine = errors(model, pictures, batch_size=6000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert engine.batch_size < 6000
    assert engine.calls == 3 * 3 * 700
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-3)


def test_images_are_drawn(on_cpu, on_gpu):
    noise = torch.randn(2, *on_gpu.latent_shape, generator=torch.Generator().manual_seed(0))
    found = [
        backbone.decode(
            draw(
                backbone,
                backbone.condition(CLASSES[:2]),
                torch.tensor([1.0, 3.0]),
                noise,
                sampler=Sampler(name="dpm++", steps=5),
            )
        ).cpu()
        for backbone in (on_cpu, on_gpu)
    ]
    assert (found[0] - found[1]).abs().mean() < 0.02


def test_texts_are_matched(on_cpu, on_gpu, pictures):
    texts = [f"a photo of a {name}" for name in CLASSES]
    settings = MatchSettings(draws=8)
    for score in ("pmi", "attention"):
        one, other = (
            ImageTextMatcher(backbone, score, settings=settings).score(pictures, texts) for backbone in (on_cpu, on_gpu)
        )
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999


def test_features_are_taken(on_cpu, on_gpu, pictures):
    one, other = (
        FeatureExtractor(backbone, ["mid", "dec.0"], [30, 200]).transform(pictures) for backbone in (on_cpu, on_gpu)
    )
    assert one.shape == other.shape
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.999


def test_a_network_is_trained(tmp_path):
    pytest.importorskip("timm")
    training = open_training_set(write_generated(tmp_path / "set", 20))
    settings = TrainSettings(network="test_resnet", epochs=2, batch_size=16, flip=False, patience=None)
    trained = train(training, tmp_path / "out", settings=settings, device="cuda")
    (model,) = trained.classifiers
    assert len(model.predict(training.source)) == 60
