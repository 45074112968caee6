import numpy as np
import pytest
from scipy import integrate, stats

from diffsight.errors import InputError
from diffsight.scoring.evidence import normal_evidence, paired_p_values, sharpest_at, sign_evidence
from diffsight.scoring.policies import replay
from diffsight.scoring.racing import PairedTTest, PooledRace, Race

RACES = [PairedTTest(max_draws=64), Race(max_draws=64), PooledRace(max_draws=64)]


def table(draws, gaps, seed=0, size=1.0):
    rng = np.random.default_rng(seed)
    shape = (draws, len(gaps))
    return 3 * rng.standard_normal((draws, 1)) + size * rng.standard_normal(shape) + np.asarray(gaps)


def lost_best(policy, errors, best=0):
    """Whether the test itself (not the least mean at the end) gave the best arm up."""
    played = replay(policy, errors)
    return bool(np.isnan(played.errors[-1, best])) or (len(played.errors) < len(errors) and not played.alive[best])


def algorithm_1(errors, min_scores, max_scores, cutoff):
    """Clark & Jaini's Alg. 1, line by line."""
    scores = {arm: [] for arm in range(errors.shape[1])}
    calls = 0
    for n in range(1, max_scores + 1):
        for arm in scores:
            scores[arm].append(errors[n - 1, arm])
            calls += 1
        best = min(scores, key=lambda arm: np.mean(scores[arm]))
        if n >= min_scores:
            p = {arm: stats.ttest_rel(scores[best], scores[arm]).pvalue for arm in scores if arm != best}
            scores = {arm: values for arm, values in scores.items() if arm == best or p[arm] >= cutoff}
        if len(scores) == 1:
            break
    return min(scores, key=lambda arm: np.mean(scores[arm])), calls


@pytest.mark.parametrize("seed", range(2))
def test_t_test_is_algorithm_1(seed):
    errors = table(200, np.linspace(0, 1, 8), seed)
    played = replay(PairedTTest(max_draws=200), errors)
    winner, calls = algorithm_1(errors, 20, 200, 2e-3)
    assert np.flatnonzero(played.alive).tolist() == [winner]
    assert played.calls == calls < 8 * 200


def test_p_values_are_scipys():
    errors = table(30, [0.0, 0.3, 1.0, 30.0])
    expected = [stats.ttest_rel(errors[:, arm], errors[:, 0]).pvalue for arm in (1, 2, 3)]
    assert paired_p_values(errors[:, 1:] - errors[:, :1]) == pytest.approx(expected, rel=1e-9)


def test_p_values_of_degenerate_differences():
    assert paired_p_values(np.array([[1.0, 0.0]])).tolist() == [1, 1]
    assert paired_p_values(np.tile([1.0, 0.0], (5, 1))).tolist() == [0, 1]


@pytest.mark.parametrize("policy", [PairedTTest(min_draws=2), Race(min_draws=2), PooledRace(min_draws=2)], ids=str)
def test_a_single_draw_decides_nothing(policy):
    decision = policy.next(np.array([[0.0, 100.0]]), np.ones(2, dtype=bool))
    assert decision.alive.all()
    assert decision.draws == (1,)


@pytest.mark.parametrize("shift", [0.0, 0.4, 1.5])
def test_normal_evidence_is_a_bayes_factor(shift):
    d = np.random.default_rng(1).standard_normal((12, 1)) + shift
    d *= np.sign(d.mean())
    n, effect_variance = len(d), 0.1
    t = d.mean() / d.std(ddof=1) * n**0.5

    def weighted(effect):
        return stats.nct.pdf(t, n - 1, effect * n**0.5) * stats.norm.pdf(effect, scale=effect_variance**0.5)

    factor = integrate.quad(weighted, -4, 4)[0] / stats.t.pdf(t, n - 1)
    assert normal_evidence(d, effect_variance=effect_variance).item() == pytest.approx(np.log(factor), abs=1e-5)


def test_normal_evidence_of_a_known_variance():
    d = np.abs(np.random.default_rng(2).standard_normal((12, 4000)))
    n, effect_variance = len(d), 0.1
    pooled = d.var(axis=0, ddof=1).mean()
    z = d.mean(axis=0) * (n / pooled) ** 0.5
    known = (z**2 * effect_variance * n / (1 + effect_variance * n) - np.log1p(effect_variance * n)) / 2
    assert normal_evidence(d, effect_variance=effect_variance, prior=1e5) == pytest.approx(known, abs=0.05, rel=0.01)


def test_sign_evidence_is_a_mixture():
    d = np.random.default_rng(3).standard_t(3, (15, 1)) + 0.5
    scale, effect_variance = np.array([1.7]), 0.2

    def weighted(bet):
        return np.exp(bet * d.sum() - bet**2 * np.square(d).sum() / 2) * stats.halfnorm.pdf(
            bet, scale=effect_variance**0.5 / scale.item()
        )

    mixture = integrate.quad(weighted, 0, 5)[0]
    assert sign_evidence(d, scale=scale, effect_variance=effect_variance).item() == pytest.approx(
        np.log(mixture), abs=1e-6
    )


def test_sign_evidence_is_fair_to_every_sequence_of_signs():
    # The mean over all 2^12 signs of fixed sizes is what makes it an e-value, whatever the sizes are.
    sizes = np.exp(np.random.default_rng(4).standard_normal(12) * 2)
    signs = 1 - 2 * ((np.arange(2**12)[None, :] >> np.arange(12)[:, None]) & 1)
    d = sizes[:, None] * signs
    scale = np.sqrt(np.square(d[:4]).mean(axis=0))
    assert 0.1 < np.exp(sign_evidence(d, scale=scale, effect_variance=0.1)).mean() <= 1


NOISE = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "levels of unlike size": lambda rng, shape: (
        rng.standard_normal(shape) * np.exp(3 * np.sin(2.4 * np.arange(shape[0])))[:, None]
    ),
    "heavy tails": lambda rng, shape: rng.standard_t(3, shape),
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("test", ["signs", "normal"])
def test_evidence_against_an_equal_arm_is_rarely_strong(test, noise):
    # Each column is a race of its own between two arms that are equally good, looked at after every draw.
    trials, level = 3000, 0.02
    d = NOISE[noise](np.random.default_rng(5), (200, trials))
    scale, effect_variance = np.sqrt(np.square(d[:8]).mean(axis=0)), sharpest_at(40, level)
    peak = np.full(trials, -np.inf)
    for seen in range(8, 201):
        if test == "signs":
            evidence = sign_evidence(d[:seen], scale=scale, effect_variance=effect_variance)
        else:
            evidence = normal_evidence(d[:seen], effect_variance=effect_variance)
        peak = np.maximum(peak, evidence)
    crossed = int((peak >= np.log(1 / level)).sum())
    assert crossed > 0
    assert stats.binomtest(crossed, trials, level, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("policy", [Race, PooledRace], ids=lambda policy: policy.name)
def test_the_best_arm_is_lost_no_more_often_than_stated(policy):
    # Equal arms are the worst case: each may count as the best.
    rng, trials, error = np.random.default_rng(6), 60, 0.1
    race = policy(error=error, max_draws=64, step=14)
    lost = sum(lost_best(race, rng.standard_normal((64, 4))) for _ in range(trials))
    assert stats.binomtest(lost, trials, error, alternative="greater").pvalue > 1e-3


def test_repeated_t_tests_are_wrong_more_often():
    trials, level = 1000, 0.02
    d = np.random.default_rng(5).standard_normal((100, trials))
    crossed = np.zeros(trials, dtype=bool)
    for seen in range(8, 101, 4):
        crossed |= paired_p_values(d[:seen]) < level
    assert stats.binomtest(int(crossed.sum()), trials, level, alternative="greater").pvalue < 1e-6


@pytest.mark.parametrize("policy", RACES, ids=str)
def test_a_clear_winner_is_found_early(policy):
    played = replay(policy, table(64, [2.0, 2.0, 0.0, 2.5, 3.0]))
    assert np.flatnonzero(played.alive).tolist() == [2]
    assert played.calls < policy.max_calls(5) / 2


@pytest.mark.parametrize("policy", RACES, ids=str)
def test_what_is_common_to_all_arms_does_not_matter(policy):
    errors = table(64, np.linspace(0, 1.5, 6))
    common = np.random.default_rng(6).integers(-50, 50, (64, 1))
    order = np.random.default_rng(7).permutation(6)
    plain, changed = replay(policy, errors), replay(policy, 4 * (errors + common)[:, order])
    assert np.array_equal(np.isfinite(plain.errors)[:, order], np.isfinite(changed.errors))
    assert np.array_equal(plain.alive[order], changed.alive)


@pytest.mark.parametrize("policy", [Race, PooledRace], ids=lambda policy: policy.name)
def test_less_error_costs_more_calls(policy):
    errors = table(200, np.linspace(0, 1, 10))
    calls = [replay(policy(error=error, max_draws=200), errors).calls for error in (0.2, 0.01, 1e-4)]
    assert calls == sorted(calls)
    assert calls[0] < calls[2]


def test_pooled_variance_saves_early_calls():
    errors = table(64, [0.0] + [4.0] * 30)
    own, pooled = (replay(PooledRace(min_draws=4, step=1, max_draws=64, prior=prior), errors) for prior in (0, 16))
    assert pooled.alive[0]
    assert pooled.calls < own.calls


def test_two_arms_have_no_variance_to_borrow():
    d = table(20, [0.5])
    assert normal_evidence(d, effect_variance=0.1, prior=30) == normal_evidence(d, effect_variance=0.1)


@pytest.mark.parametrize("policy", [Race, PooledRace], ids=lambda policy: policy.name)
def test_blocks_take_out_what_differs_between_levels(policy):
    levels = policy(max_draws=256).grid(1000).numpy() / 1000
    errors = table(256, [0.0, 0.5], size=0.3)
    errors[:, 1] += 3 * np.sin(2 * np.pi * levels)
    plain, blocked = (replay(policy(min_draws=16, max_draws=256, step=8, block=block), errors) for block in (1, 8))
    assert blocked.alive.tolist() == [True, False]
    assert blocked.calls < plain.calls


@pytest.mark.parametrize("policy", RACES, ids=str)
def test_equal_arms_end_early(policy):
    errors = table(64, [0.0, 0.0, 5.0])
    errors[:, 1] = errors[:, 0]
    played = replay(policy, errors)
    assert played.alive.tolist() == [True, True, False]
    assert len(played.errors) < 64


@pytest.mark.parametrize("policy", RACES, ids=str)
def test_the_last_draw_decides_what_no_test_could(policy):
    errors = table(64, [0.0, 0.0, 0.0])
    played = replay(policy, errors)
    survivors = np.isfinite(played.errors[-1])
    assert len(played.errors) == 64
    means = np.where(survivors, errors.mean(axis=0), np.inf)
    assert np.flatnonzero(played.alive).tolist() == [means.argmin()]


def test_draws_come_in_steps_and_stop_at_the_end():
    race, alive = Race(min_draws=10, max_draws=17, step=4), np.ones(2, dtype=bool)
    errors = table(17, [0.0, 0.0])
    asked = [race.next(errors[:seen], alive).draws for seen in (0, 10, 14, 17)]
    assert asked == [tuple(range(10)), (10, 11, 12, 13), (14, 15, 16), ()]


def test_rivals_that_are_out_still_count():
    # The error level covers the whole race: what was dropped at the start does not make later tests bolder.
    errors = table(200, [0.0, 0.6, *[9.0] * 200])
    alive = np.zeros(202, dtype=bool)
    alive[:2] = True
    errors[30:, 2:] = np.nan
    many = next(n for n in range(30, 200) if Race().next(errors[:n], alive).finished)
    few = next(n for n in range(30, 200) if Race().next(errors[:n, :2], alive[:2]).finished)
    assert few < many


def test_a_test_is_sharpest_where_it_was_tuned():
    def needed(tuned_for, gap):
        n = np.arange(2, 2000)
        effect_variance = sharpest_at(tuned_for, 0.01)
        z = gap * n / np.sqrt(n + 1 / effect_variance)
        return n[(z**2 - np.log1p(effect_variance * n)) / 2 >= np.log(100)][0]

    for tuned_for, gap in ((20, 0.8), (500, 0.16)):
        assert needed(tuned_for, gap) < min(needed(tuned_for * 20, gap), needed(tuned_for / 20, gap))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Race(error=0.0), "between 0 and 1"),
        (lambda: PooledRace(error=1.0), "between 0 and 1"),
        (lambda: PairedTTest(cutoff=2.0), "between 0 and 1"),
        (lambda: PairedTTest(min_draws=1), "at least 2"),
        (lambda: Race(min_draws=8, block=8), "at least 16"),
        (lambda: Race(min_draws=20, max_draws=10), "at least 20"),
        (lambda: Race(step=0), "step"),
        (lambda: Race(spacing="midpoint"), "spacing"),
        (lambda: PooledRace(prior=-1.0), "prior"),
    ],
)
def test_senseless_settings_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
