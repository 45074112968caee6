import numpy as np
import pytest
from scipy import stats

from diffsight.errors import InputError
from diffsight.scoring.evidence import chance_to_overtake
from diffsight.scoring.policies import replay
from diffsight.scoring.racing import Forecast


def test_the_chance_to_overtake_is_that_of_simulated_futures():
    rng = np.random.default_rng(0)
    count, horizon = 6, 20
    seen = rng.normal(0.4, 1.0, size=(count, 1))
    stated = chance_to_overtake(seen, horizon=horizon, prior=8.0)[0]
    # Posterior of mean and variance under the flat prior, then the draws to come, by brute force.
    futures = 200_000
    variance = (count - 1) * seen.var(ddof=1) / rng.chisquare(count - 1, futures)
    mean = rng.normal(seen.mean(), np.sqrt(variance / count))
    rest = rng.normal(mean * (horizon - count), np.sqrt(variance * (horizon - count)))
    assert stated == pytest.approx((rest + seen.sum() < 0).mean(), abs=0.005)


def test_pooling_is_scipys_t_test_with_more_freedom():
    rng = np.random.default_rng(1)
    differences = rng.normal(0.3, 1.0, size=(5, 4))
    endless = chance_to_overtake(differences, horizon=10**9, prior=0.0)
    expected = stats.ttest_1samp(differences, 0, alternative="greater").pvalue
    np.testing.assert_allclose(endless, expected, rtol=1e-6)
    variance = (8 * differences.var(axis=0, ddof=1).mean() + 4 * differences.var(axis=0, ddof=1)) / 12
    t = differences.mean(axis=0) / np.sqrt(variance / 5)
    np.testing.assert_allclose(chance_to_overtake(differences, horizon=10**9, prior=8.0), stats.t.sf(t, 12), rtol=1e-6)


@pytest.mark.parametrize("error", [0.02, 0.1])
def test_of_two_arms_the_wrong_one_is_dropped_no_more_often_than_stated(error):
    rng = np.random.default_rng(2)
    policy = Forecast(error=error, max_draws=32)
    images = 1000
    gaps = rng.uniform(-3, 3, size=images)  # flat, far beyond what the draws can blur
    wrong, calls = 0, 0
    for gap in gaps:
        table = rng.normal([0, gap], size=(32, 2))
        result = replay(policy, table)
        wrong += not result.alive[table.mean(axis=0).argmin()]
        calls += result.calls
    assert stats.binomtest(wrong, images, error, alternative="greater").pvalue > 1e-3
    assert calls < 0.5 * images * 2 * 32


@pytest.mark.parametrize("arms", [3, 30])
def test_a_look_drops_the_winner_no_more_often_than_stated(arms):
    rng = np.random.default_rng(3)
    policy = Forecast()
    wrong = looks = 0
    for _ in range(150):
        table = rng.normal(size=(64, arms)) + rng.uniform(0, 3, size=arms)
        winner, alive, seen = table.mean(axis=0).argmin(), np.ones(arms, dtype=bool), np.empty((0, arms))
        while (decision := policy.next(seen, alive)).draws:
            looks += (decision.alive != alive).any()
            alive = decision.alive
            seen = np.where(alive, table[: decision.draws[-1] + 1], np.nan)
        looks += (decision.alive != alive).any()
        wrong += not decision.alive[winner]
    assert stats.binomtest(wrong, looks, policy.error, alternative="greater").pvalue > 1e-3


def test_all_draws_give_the_answer_of_all_draws():
    table = np.random.default_rng(4).normal(size=(64, 3)) * 1e-6 + [1, 1, 1]
    result = replay(Forecast(error=1e-9), table)
    assert len(result.errors) == 64
    assert result.alive.argmax() == table.mean(axis=0).argmin()


def test_equal_arms_tie_and_stop_at_once():
    column = np.random.default_rng(5).normal(size=(64, 1))
    result = replay(Forecast(), np.concatenate([column, column, column + 5], axis=1))
    assert result.alive.tolist() == [True, True, False]
    assert result.calls <= 3 * 3 + 2 * 2


@pytest.mark.parametrize(
    "wrong", [{"error": 0.0}, {"error": 1.5}, {"growth": 0.9}, {"min_draws": 1}, {"prior": -1.0}, {"max_draws": 2}]
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(InputError):
        Forecast(**wrong)
