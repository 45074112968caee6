import json

import numpy as np
import pytest
import torch

from diffsight.errors import InputError
from diffsight.scoring.elimination import Exhaustive, Policy, Staged
from diffsight.scoring.policies import POLICIES, policy_from_dict, replay
from diffsight.scoring.racing import PairedTTest, PooledRace, Race

ALL = [Exhaustive(), Staged(), Staged(paper_exact=True), PairedTTest(), Race(), PooledRace()]
FOUR = ((20, 10, 5, 1), (20, 50, 100, 500))
# Classes, keep, samples, calls of the paper's code, nominal calls (fact sheet §1.4).
PAPER = {
    "cifar10": (10, (5, 1), (50, 500), 2750, 2750),
    "stl10": (10, (5, 1), (100, 500), 3000, 3000),
    "pets": (37, (5, 1), (25, 250), 2050, 2050),
    "aircraft": (100, *FOUR, 5550, 5100),
    "food101": (101, *FOUR, 5570, 5120),
    "flowers102": (102, *FOUR, 5590, 5140),
    "objectnet": (113, (25, 10, 5, 1), (50, 100, 500, 1000), 14400, 13400),
    "imagenet": (1000, (500, 50, 10, 1), (50, 100, 500, 1000), 124500, 100000),
    "cifar100": (100, *FOUR, 5550, 5100),
    "cifar10-fast": (10, (5, 1), (25, 250), 1375, 1375),
}


def table(draws, arms, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((draws, arms)) + 3 * rng.standard_normal((draws, 1)) + np.linspace(0, 0.5, arms)


def published(levels_to_errors, num_arms, keep, samples, num_levels=1000):
    """Li et al.'s Alg. 2 as their code does it, with sets and lists."""
    step = num_levels // samples[-1]
    all_levels = list(range(step // 2, num_levels, step))[: samples[-1]]
    visited, arms = [], list(range(num_arms))
    calls = 0
    for kept, count in zip(keep, samples, strict=True):
        stride = len(all_levels) // count
        new = [t for t in all_levels[stride // 2 :: stride][:count] if t not in visited]
        calls += len(new) * len(arms)
        visited += new
        arms = sorted(arms, key=lambda arm: levels_to_errors[visited, arm].mean())[:kept]
    return visited, arms, calls


@pytest.mark.parametrize("name", PAPER)
def test_calls_are_those_of_the_paper(name):
    arms, keep, samples, actual, nominal = PAPER[name]
    exact, nested = Staged(keep, samples, paper_exact=True), Staged(keep, samples)
    assert exact.max_calls(arms) == actual
    assert nested.max_calls(arms) == nominal
    errors = table(samples[-1], arms)
    assert replay(exact, errors).calls == actual
    assert replay(nested, errors).calls == nominal


def test_subsets_of_the_paper_are_not_nested():
    assert Staged(*PAPER["imagenet"][1:3], paper_exact=True).stage_ends == (50, 150, 550, 1000)
    assert Staged(*FOUR, paper_exact=True).stage_ends == (20, 70, 150, 500)


@pytest.mark.parametrize(("keep", "samples"), [((5, 1), (50, 500)), FOUR, ((7, 3, 1), (9, 30, 100))])
def test_paper_exact_is_the_published_loop(keep, samples):
    by_level = table(1000, 30)
    policy = Staged(keep, samples, paper_exact=True)
    levels, (winner,), calls = published(by_level, 30, keep, samples)
    assert policy.grid(1000).tolist() == levels
    played = replay(policy, by_level[policy.grid(1000).numpy()])
    assert np.flatnonzero(played.alive).tolist() == [winner]
    assert played.calls == calls


def test_nested_stages_are_evenly_spread():
    policy = Staged(*FOUR)
    for end in policy.stage_ends:
        counts = np.histogram(policy.grid(1000)[:end], bins=4, range=(0, 1000))[0]
        assert np.ptp(counts) <= 1


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_grid_has_a_level_for_every_draw(policy):
    grid = policy.grid(1000)
    assert grid.dtype == torch.int64
    assert len(grid) == policy.max_draws
    assert grid.min() >= 0
    assert grid.max() < 1000
    assert torch.equal(grid, policy.grid(1000))


def test_random_levels_are_uniform():
    grid = PairedTTest(max_draws=2000).grid(10)
    assert np.bincount(grid, minlength=10).min() > 150


def test_exhaustive_takes_the_least_mean():
    errors = table(100, 8)
    played = replay(Exhaustive(100), errors)
    assert np.flatnonzero(played.alive).tolist() == [errors.mean(axis=0).argmin()]
    assert played.calls == Exhaustive(100).max_calls(8) == 800
    assert Exhaustive(10, "midpoint").grid(1000).tolist() == list(range(50, 1000, 100))


def test_midpoint_needs_a_level_per_draw():
    with pytest.raises(InputError, match="101"):
        Exhaustive(101, "midpoint").grid(100)
    assert len(Exhaustive(101).grid(100)) == 101


def test_eliminated_arms_are_not_scored_again():
    errors = table(500, 10)
    seen = replay(Staged((5, 1), (50, 500)), errors).errors
    best = np.argsort(errors[:50].mean(axis=0))
    assert np.array_equal(np.isfinite(seen[50:]).all(axis=0), np.isin(np.arange(10), best[:5]))
    assert np.isnan(seen[50:, best[5:]]).all()
    assert np.array_equal(seen[:50], errors[:50])


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_exact_ties_are_reported(policy):
    errors = table(policy.max_draws, 6)
    best = errors[:, 0] - 5
    errors[:, 1] = errors[:, 4] = best
    assert np.flatnonzero(replay(policy, errors).alive).tolist() == [1, 4]


def test_a_tie_for_the_last_place_keeps_both():
    errors = np.tile([3.0, 1.0, 2.0, 2.0], (4, 1))
    decision = Staged((2, 1), (4, 8)).next(errors, np.ones(4, dtype=bool))
    assert decision.alive.tolist() == [False, True, True, True]


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_policies_are_pure(policy):
    errors, alive = table(50, 6), np.array([True, True, False, True, True, True])
    errors[20:, 2] = np.nan
    before = errors.copy(), alive.copy()
    first, second = policy.next(errors, alive), policy.next(errors, alive)
    assert np.array_equal(first.alive, second.alive)
    assert first.draws == second.draws
    assert np.array_equal(errors, before[0], equal_nan=True)
    assert np.array_equal(alive, before[1])
    first.alive[:] = False
    assert np.array_equal(alive, before[1])


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_eliminated_arms_do_not_come_back(policy):
    errors, alive = table(50, 6), np.array([True, True, False, True, True, True])
    errors[:, 2] -= 100
    assert not policy.next(errors, alive).alive[2]


def test_an_interrupted_stage_is_finished():
    decision = Staged((5, 1), (50, 500)).next(table(30, 10), np.ones(10, dtype=bool))
    assert decision.alive.all()
    assert decision.draws == tuple(range(30, 50))


@pytest.mark.parametrize("policy", ALL[1:], ids=str)
def test_a_single_arm_has_won(policy):
    decision = policy.next(np.empty((0, 3)), np.array([False, True, False]))
    assert decision.finished
    assert decision.alive.tolist() == [False, True, False]


@pytest.mark.parametrize("policy", ALL, ids=str)
def test_a_living_arm_must_be_scored(policy):
    errors = table(50, 3)
    errors[7, 2] = np.nan
    with pytest.raises(InputError, match=r"Arm 2 .* draw 7"):
        policy.next(errors, np.ones(3, dtype=bool))
    with pytest.raises(InputError, match="No arm is alive"):
        policy.next(errors, np.zeros(3, dtype=bool))


@pytest.mark.parametrize("policy", [*ALL, Staged(*FOUR), Race(error=0.01, block=4), Exhaustive(7, "midpoint")], ids=str)
def test_policies_survive_json(policy):
    values = json.loads(json.dumps(policy.to_dict()))
    assert policy_from_dict(values) == policy
    assert policy_from_dict(values).to_dict() == values
    assert isinstance(policy, Policy)
    assert hash(policy) == hash(policy_from_dict(values))


def test_missing_settings_are_the_defaults():
    assert policy_from_dict({"name": "pooled-race", "error": 0.01}) == PooledRace(error=0.01)
    assert set(POLICIES) == {"forecast", "exhaustive", "staged", "t-test", "race", "pooled-race"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "rase"}, "Did you mean 'race'"),
        ({}, "Known names"),
        ({"name": "race", "eror": 0.1}, "Did you mean 'error'"),
        ({"name": "race", "error": "small"}, "wrong type"),
        ({"name": "staged", "keep": 5}, "wrong type"),
    ],
)
def test_bad_descriptions_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        policy_from_dict(values)


@pytest.mark.parametrize(
    ("keep", "samples", "message"),
    [
        ((5, 5, 1), (1, 2, 3), "fall"),
        ((5, 1), (50, 50), "rise"),
        ((5, 2), (50, 500), "keep 1"),
        ((1,), (5, 10), "one entry per stage"),
        ((), (), "one entry per stage"),
        ((5, 1), (0, 10), "at least 1"),
    ],
)
def test_bad_stages_are_refused(keep, samples, message):
    with pytest.raises(InputError, match=message):
        Staged(keep, samples)


def test_replay_needs_enough_draws():
    with pytest.raises(InputError, match="needs draw 99; the table ends with 49"):
        replay(Exhaustive(100), table(50, 3))
    with pytest.raises(InputError, match="num_draws"):
        Exhaustive(0)
