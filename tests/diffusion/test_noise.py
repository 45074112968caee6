import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import InputError

SHAPE = (4, 5, 3)
GOLDEN = [
    [1.05675268, -0.915916979, -0.485002011, -2.38631487, -0.406484693, 1.41308212],
    [0.242775247, 2.42214322, -0.0789211616, 1.62596691, 0.504519761, 0.0672200993],
    [-1.37353468, 1.04908776, 0.584955633, -1.90593886, 0.429112226, -0.51928997],
]
GOLDEN_SHARED = [0.0987075046, -0.495585769, -0.693834245, 0.172059223]


@settings(deadline=None)
@given(draws=st.lists(st.integers(0, 60), min_size=1, max_size=12), seed=st.integers(0, 2**70))
def test_a_draw_is_the_same_whoever_asks(draws, seed):
    bank = NoiseBank(seed)
    together = bank.noise("cat.png", draws, SHAPE)
    alone = torch.cat([bank.noise("cat.png", [draw], SHAPE) for draw in draws])
    assert torch.equal(together, alone)


def test_order_does_not_matter():
    bank, order = NoiseBank(3), list(range(50))
    random.Random(0).shuffle(order)
    straight = bank.noise("a", range(50), SHAPE)
    assert torch.equal(bank.noise("a", order, SHAPE), straight[order])
    assert torch.equal(bank.noise("a", torch.tensor(order), SHAPE), straight[order])


def test_far_draws_need_no_near_ones():
    far = NoiseBank().noise("a", [10**12, 0], SHAPE)
    assert torch.equal(far[1:], NoiseBank().noise("a", [0], SHAPE))
    assert not torch.equal(far[0], far[1])


def test_images_draws_and_seeds_have_unrelated_noise():
    noises = torch.cat(
        [NoiseBank(seed).noise(name, range(4), (1000,)) for seed in (0, 1) for name in ("a", "b", "a ", "1 a")]
    )
    correlation = torch.corrcoef(noises) - torch.eye(len(noises))
    assert correlation.abs().max() < 0.15


def test_shapes_of_different_size_have_unrelated_noise():
    small, large = NoiseBank().noise("a", [0], (500,))[0], NoiseBank().noise("a", [0], (1000,))[0]
    assert torch.corrcoef(torch.stack([small, large[:500]]))[0, 1].abs() < 0.2


def test_a_shared_bank_is_the_same_for_all_images():
    bank = NoiseBank(7, shared=True)
    assert torch.equal(bank.noise("a", range(3), SHAPE), bank.noise("b", range(3), SHAPE))
    assert not torch.equal(bank.noise("", [0], SHAPE), NoiseBank(7).noise("", [0], SHAPE))


def test_noise_is_standard_normal():
    noise = NoiseBank(11).noise("moments", range(100), (10_000,)).double()
    assert abs(noise.mean()) < 4e-3
    assert noise.var() == pytest.approx(1, abs=6e-3)
    assert (noise**3).mean() == pytest.approx(0, abs=0.01)
    assert (noise**4).mean() == pytest.approx(3, abs=0.03)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.001, 0.999, 999)).double()
    uniform = torch.linspace(0.001, 0.999, 999).double()
    empirical = torch.searchsorted(noise.flatten().sort().values, quantiles) / noise.numel()
    assert (empirical - uniform).abs().max() < 0.002  # Kolmogorov-Smirnov at p = 0.0007
    assert noise.isfinite().all()


def test_neighbouring_values_and_draws_are_uncorrelated():
    noise = NoiseBank(5).noise("c", range(200), (1, 24, 24)).double()
    for a, b in ((noise[:-1], noise[1:]), (noise[..., 1:], noise[..., :-1]), (noise[..., 1:, :], noise[..., :-1, :])):
        assert abs((a * b).mean()) < 0.012


def test_the_stream_is_pinned():
    # Stored runs depend on these numbers. If they change, change STREAM, so that no old run is continued.
    noise = NoiseBank(0).noise("fashion-mnist/test/00042", [0, 7, 8], (2, 3))
    torch.testing.assert_close(noise, torch.tensor(GOLDEN).reshape(3, 2, 3), rtol=1e-6, atol=1e-7)
    shared = NoiseBank(42, shared=True).noise("", [0], (4,))
    torch.testing.assert_close(shared, torch.tensor([GOLDEN_SHARED]), rtol=1e-6, atol=1e-7)


def test_global_random_state_is_neither_used_nor_moved():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = NoiseBank().noise("a", [0], SHAPE)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(NoiseBank().noise("a", [0], SHAPE), first)


def test_file_names_that_are_not_text_have_noise_of_their_own():
    odd = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    assert not torch.equal(NoiseBank().noise(odd, [0], SHAPE), NoiseBank().noise("café.png", [0], SHAPE))


def test_no_draws_and_scalars():
    assert NoiseBank().noise("a", [], SHAPE).shape == (0, *SHAPE)
    assert NoiseBank().noise("a", [1, 2], ()).shape == (2,)


def test_fingerprint_follows_seed_and_sharing():
    banks = [NoiseBank(0), NoiseBank(1), NoiseBank(0, shared=True)]
    assert len({bank.fingerprint() for bank in banks}) == 3
    assert NoiseBank(0).fingerprint() == NoiseBank().fingerprint()


def test_misuse_is_refused():
    with pytest.raises(InputError, match="-1"):
        NoiseBank(-1)
    with pytest.raises(InputError, match="-4"):
        NoiseBank().noise("a", [1, -4], SHAPE)
    with pytest.raises(InputError, match="0"):
        NoiseBank().noise("a", [1], (4, 0))
