import numpy as np
import pytest
from scipy import special, stats

from diffsight.errors import InputError
from diffsight.scoring.elimination import Staged
from diffsight.scoring.policies import replay
from diffsight.scoring.racing import PooledRace
from diffsight.zero_shot.calibration import Platt, Temperature, fit_platt, fit_temperature, gaps, posterior, survivors


def table(draws, means, rng):
    return rng.standard_normal((draws, len(means))) + 3 * rng.standard_normal((draws, 1)) + means


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def pruned(rng):
    return replay(Staged((3, 1), (10, 100)), table(100, np.linspace(0, 0.5, 8), rng)).errors


def test_gaps_are_paired_on_common_draws():
    errors = np.array([[1.0, 2.0, 0.5], [9.0, 11.0, np.nan], [2.0, 5.0, np.nan]])
    assert survivors(errors).tolist() == [True, True, False]
    assert gaps(errors).tolist() == [0, 2, -0.5]


@pytest.mark.parametrize("convert", [posterior, Temperature(50.0).probabilities], ids=["posterior", "temperature"])
def test_eliminated_arms_are_less_likely_than_survivors(convert, pruned):
    p, alive = convert(pruned), survivors(pruned)
    assert alive.sum() == 3
    assert p.sum() == pytest.approx(1)
    assert p[~alive].max() < p[alive].min()
    assert p.min() > 0
    # Ahead at the time or not: what was dropped stays dropped.
    pruned[:10, ~alive] -= 100
    p = convert(pruned)
    assert p.sum() == pytest.approx(1)
    assert p[~alive].max() < p[alive].min()


@pytest.mark.parametrize("convert", [posterior, Temperature(1e6).probabilities], ids=["posterior", "temperature"])
def test_hopeless_arms_are_still_ordered(convert):
    errors = np.tile([0.0, 1e3, 1e3], (50, 1)) + np.random.default_rng(1).standard_normal((50, 3)) * 1e-3
    errors[30:, 2] = np.nan
    p = convert(errors)
    assert p[0] > p[1] > p[2] > 0


@pytest.mark.parametrize("draws", [2, 5, 40])
def test_posterior_of_two_arms_is_students(draws, rng):
    errors = table(draws, [0.0, 0.3], rng)
    above = stats.ttest_rel(errors[:, 0], errors[:, 1], alternative="less").pvalue
    assert posterior(errors) == pytest.approx([1 - above, above], rel=1e-9)


def test_posterior_is_calibrated(rng):
    confidence, right = [], []
    for _ in range(800):
        means = rng.normal(0, 0.5, 5)
        p = posterior(table(30, means, rng))
        confidence.append(p.max())
        right.append(p.argmax() == means.argmin())
    confidence, right = np.array(confidence), np.array(right)
    for low, high in ((0.2, 0.6), (0.6, 0.9), (0.9, 1.0)):
        part = (confidence > low) & (confidence <= high)
        assert part.sum() > 80
        noise = 3 * 0.5 / part.sum() ** 0.5
        assert confidence[part].mean() == pytest.approx(right[part].mean(), abs=noise)


def test_posterior_ignores_units_and_what_is_common(rng):
    errors = table(20, [0.0, 0.2, 0.4], rng)
    assert posterior(1e-3 * errors + 7) == pytest.approx(posterior(errors), rel=1e-6)


def test_evidence_caps_what_draws_are_worth(rng):
    errors = table(400, [0.0, 0.3, 0.6], rng)
    capped = [posterior(errors, evidence=evidence).max() for evidence in (1, 10, 100, 400)]
    assert capped == sorted(capped)
    assert capped[0] < 0.6 < capped[-1]
    assert capped[-1] == posterior(errors).max()
    votes = (errors[:, :2].argmin(axis=1) == 0).mean()
    assert posterior(errors[:, :2], evidence=1)[0] == pytest.approx(votes, abs=0.08)


def test_evidence_makes_it_a_matter_of_difficulty(rng):
    # A race stops when it is sure; what it then says of an easy and of a hard image must not be the same.
    easy, hard = (replay(PooledRace(), table(1000, [0.0, gap, gap, gap], rng)).errors for gap in (2.0, 0.3))
    assert len(hard) > len(easy)
    assert posterior(easy, evidence=10).max() > posterior(hard, evidence=10).max()


def test_equal_arms_are_equally_likely(rng):
    errors = table(20, [0.0, 5.0, 5.0], rng)
    errors[:, 1] = errors[:, 0]
    p = posterior(errors)
    assert p[0] == p[1] == pytest.approx(0.5, abs=1e-3)
    assert posterior(np.ones((4, 3))) == pytest.approx(1 / 3)


def test_a_single_draw_gives_usable_probabilities():
    p = posterior(np.array([[1.0, 1.1, 3.0]]))
    assert p.sum() == pytest.approx(1)
    assert p[0] > p[1] > p[2] > 0
    assert p[0] < 0.9
    assert posterior(np.ones((1, 4))) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "errors",
    [np.empty((0, 3)), np.array([[1.0, np.nan]]), np.array([[1.0, 1.0], [np.nan, 1.0], [2.0, 1.0]]), [[1.0, np.inf]]],
    ids=["no draw", "never scored", "gap", "infinite"],
)
def test_broken_tables_are_refused(errors):
    with pytest.raises(InputError, match="at least one draw"):
        posterior(np.asarray(errors))


def test_temperature_is_recovered(rng):
    scale, images = 40.0, 1500
    means = rng.normal(1, 0.05, (images, 6))
    labels = np.array([rng.choice(6, p=special.softmax(-scale * row)) for row in means])
    tables = list(means[:, None, :])
    fitted = fit_temperature(tables, labels)
    assert fitted.scale == pytest.approx(scale, rel=0.1)
    p = np.stack([fitted.probabilities(errors) for errors in tables])
    assert p == pytest.approx(special.softmax(-fitted.scale * means, axis=1), rel=1e-6)

    def loss(scale):
        return -special.log_softmax(-scale * means, axis=1)[np.arange(images), labels].sum()

    assert loss(fitted.scale) < min(loss(0.97 * fitted.scale), loss(1.03 * fitted.scale))


def test_temperature_of_pruned_tables(rng):
    means = rng.normal(0, 0.5, (60, 6))
    tables = [replay(Staged((2, 1), (10, 40)), table(40, row, rng)).errors for row in means]
    labels = np.where(rng.random(60) < 0.2, rng.integers(6, size=60), means.argmin(axis=1))
    fitted = fit_temperature(tables, labels)
    p = np.stack([fitted.probabilities(errors) for errors in tables])
    likelihood = np.log(p[np.arange(60), labels]).mean()
    assert likelihood > np.log(1 / 6)
    for factor in (0.5, 2.0):
        other = np.stack([Temperature(fitted.scale * factor).probabilities(errors) for errors in tables])
        assert likelihood > np.log(other[np.arange(60), labels]).mean()


def test_temperature_stays_finite_where_all_is_right(rng):
    tables = [np.array([[0.0, 1.0, 1.5]]) + rng.random() for _ in range(50)]
    fitted = fit_temperature(tables, np.zeros(50, dtype=int))
    assert 1 < fitted.scale < 1e6
    assert fitted.probabilities(tables[0])[0] > 0.95


def test_temperature_is_flat_where_nothing_is_right(rng):
    tables = [np.array([[0.0, 1.0, 1.5]])] * 30
    assert fit_temperature(tables, np.full(30, 2)).probabilities(tables[0]) == pytest.approx(1 / 3, abs=0.01)


@pytest.mark.parametrize(
    ("tables", "labels", "message"),
    [
        ([np.ones((2, 3))], [0, 1], "one label per image"),
        ([], [], "one label per image"),
        ([np.arange(6.0).reshape(2, 3)], [3], "from 0 to 2"),
        ([np.ones((2, 3))], [0], "no scale to fit"),
    ],
)
def test_bad_calibration_sets_are_refused(tables, labels, message):
    with pytest.raises(InputError, match=message):
        fit_temperature(tables, np.array(labels, dtype=int))


def test_platt_learns_that_long_races_are_doubtful(rng):
    calls = rng.integers(80, 8000, 3000)
    truth = Platt(slope=-1.2, intercept=9.0)
    fitted = fit_platt(calls, rng.random(3000) < truth.confidence(calls))
    assert fitted.slope == pytest.approx(-1.2, abs=0.2)
    assert fitted.confidence(calls) == pytest.approx(truth.confidence(calls), abs=0.05)
    quick, slow = fitted.confidence(np.array([100, 8000]))
    assert quick > 0.9 > slow


@pytest.mark.parametrize(
    ("calls", "correct", "message"),
    [([10, 20], [True, True], "right and wrong"), ([0, 5], [True, False], "0")],
)
def test_platt_needs_something_to_learn_from(calls, correct, message):
    with pytest.raises(InputError, match=message):
        fit_platt(np.array(calls), np.array(correct))


def test_negative_scales_are_refused():
    with pytest.raises(InputError, match="at least 0"):
        Temperature(-1.0)


def test_inputs_are_not_modified(pruned):
    before = pruned.copy()
    posterior(pruned)
    Temperature(3.0).probabilities(pruned)
    assert np.array_equal(pruned, before, equal_nan=True)
