import numpy as np
import pytest
import torch
from gaussians import contest, encoded, mixture, run

from diffsight.backbones.encoding import Encoded
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ModelError
from diffsight.scoring.elimination import Exhaustive, Staged
from diffsight.scoring.policies import POLICIES, policy_from_dict
from diffsight.scoring.racing import PairedTTest, PooledRace
from diffsight.scoring.scorer import Requests, denoising_errors


@pytest.fixture(scope="module")
def backbone():
    return mixture()


@pytest.fixture(scope="module")
def images(backbone):
    return encoded(backbone.sample(12, seed=0)[0])


SMALL = {"staged": {"keep": [2, 1], "samples": [8, 40]}, "exhaustive": {"num_draws": 20}, "t-test": {"max_draws": 60}}


@pytest.mark.parametrize("name", list(POLICIES))
def test_results_do_not_depend_on_how_requests_are_packed(backbone, images, name):
    policy = policy_from_dict({"name": name, **SMALL.get(name, {"max_draws": 60})})
    setup = contest(backbone, policy=policy)
    reference, _ = run(setup, images, batch_size=10_000)
    alone = [run(setup, [image])[0][0] for image in images]
    for other in (
        run(setup, images, batch_size=7)[0],
        run(setup, images, batch_size=64, depth=2)[0],
        run(setup, images[::-1], batch_size=33)[0][::-1],
        alone,
    ):
        for one, two in zip(reference, other, strict=True):
            np.testing.assert_allclose(one.errors, two.errors, atol=1e-5)
            assert np.array_equal(one.alive, two.alive)
            assert one.calls == two.calls


def test_calls_are_counted_one_by_one(backbone, images):
    scored, engine = run(contest(backbone, policy=Staged(keep=(2, 1), samples=(10, 30))), images)
    assert [s.calls for s in scored] == [5 * 10 + 2 * 20] * len(images)
    assert engine.calls == sum(s.calls for s in scored)
    assert all(np.isfinite(s.errors[:, :, 0]).sum() == s.calls for s in scored)


def test_batches_are_full_until_the_images_run_out(backbone, images, monkeypatch):
    sizes = []
    setup = contest(backbone, policy=PooledRace(max_draws=64))
    original = type(setup.scorer).score

    def spy(self, x0, ids, requests):
        sizes.append(len(requests))
        return original(self, x0, ids, requests)

    monkeypatch.setattr(type(setup.scorer), "score", spy)
    run(setup, images, batch_size=32)
    tail = sizes.index(next(size for size in sizes if size < 32)) if min(sizes) < 32 else len(sizes)
    assert tail > len(sizes) / 2
    assert max(sizes) == 32


@pytest.mark.parametrize("cut", [1, 3, 10])
def test_a_snapshot_goes_on_bit_for_bit(backbone, images, cut):
    setup = contest(backbone, policy=PairedTTest(min_draws=10, max_draws=50, step=5))
    undisturbed, _ = run(setup, images, batch_size=16)
    stream = iter(images)
    first = setup.engine(16)
    done = {}
    for number, finished in enumerate(first.run(stream), start=1):
        done.update({s.id: s for s in finished})
        if number == cut:
            break
    state = {key: value.copy() for key, value in first.snapshot().items()}
    second = setup.engine(16)
    second.restore(state)
    rest = iter(images[second.admitted :])
    done.update({s.id: s for finished in second.run(rest) for s in finished})
    for expected in undisturbed:
        np.testing.assert_array_equal(done[expected.id].errors, expected.errors)
        assert done[expected.id].calls == expected.calls
    assert second.calls == sum(s.calls for s in undisturbed)


def test_a_failed_image_costs_nothing_and_stops_nobody(backbone, images):
    broken = Encoded(id="broken", x0=None, failure="not an image")
    scored, _ = run(contest(backbone, policy=Exhaustive(num_draws=4)), [*images[:2], broken, *images[2:4]])
    assert [s.failure for s in scored] == [None, None, "not an image", None, None]
    assert scored[2].calls == 0


def test_nan_from_the_network_is_a_failure_and_not_a_label(images):
    backbone = type(mixture())(means=mixture().means, poison=frozenset({3}))
    scored, _ = run(contest(backbone, policy=Exhaustive(num_draws=4)), images)
    assert all("not finite" in s.failure for s in scored)


def test_out_of_memory_halves_the_batch_and_loses_nothing(backbone, images, monkeypatch):
    setup = contest(backbone, policy=Exhaustive(num_draws=10))
    expected, _ = run(setup, images, batch_size=64)
    original = type(setup.scorer).score

    def small_device(self, x0, ids, requests):
        if len(requests) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, x0, ids, requests)

    monkeypatch.setattr(type(setup.scorer), "score", small_device)
    scored, engine = run(setup, images, batch_size=64)
    assert engine.batch_size <= 20
    for one, two in zip(expected, scored, strict=True):
        np.testing.assert_allclose(one.errors, two.errors, atol=1e-6)


def test_all_arms_of_an_image_see_the_same_draws(backbone, images):
    setup = contest(backbone, policy=Exhaustive(num_draws=5))
    noise = NoiseBank(seed=0).noise("x0", [3], backbone.latent_shape)
    x0 = images[0].x0[None]
    level = setup.scorer.levels[3:4]
    x_t = backbone.schedule.mix(x0, noise, level)
    prediction = backbone.predict(x_t.expand(5, -1, -1, -1), level.expand(5), setup.scorer.condition)
    expected = denoising_errors(prediction.eps, noise.expand(5, -1, -1, -1))
    requests = Requests(image=np.zeros(5, int), draw=np.full(5, 3), arm=np.arange(5))
    torch.testing.assert_close(setup.scorer.score(x0, ["x0"], requests), expected)


def test_losses_are_torchs_own():
    a, b = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    losses = denoising_errors(a, b)
    for row in range(3):
        expected = [f(a[row], b[row]) for f in (torch.nn.L1Loss(), torch.nn.MSELoss(), torch.nn.HuberLoss())]
        torch.testing.assert_close(losses[row], torch.stack(expected))


def test_errors_are_reduced_in_fp32():
    a, b = torch.randn(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    exact = (a.double() - b.double()).square().mean()
    assert denoising_errors(a, b)[0, 1].item() == pytest.approx(exact.item(), rel=1e-5)


def test_a_device_too_small_for_one_call_is_told(backbone, images, monkeypatch):
    setup = contest(backbone, policy=Exhaustive(num_draws=2))

    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(setup.scorer), "score", no_memory)
    with pytest.raises(ModelError, match="single denoiser call"):
        run(setup, images, batch_size=4)
