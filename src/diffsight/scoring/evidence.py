"""How strongly paired differences speak against an arm: the statistics of the sequential tests.

Differences have shape (draws, arms): errors of each rival minus those of the leader on the same draws. The e-values
hold at all looks together: under their assumptions the chance that one ever exceeds ``1 / level`` is at most ``level``.
"""

import numpy as np
from jaxtyping import Float
from scipy import special


def paired_p_values(differences: Float[np.ndarray, "draws arms"]) -> Float[np.ndarray, " arms"]:
    """Two-sided p-value of Student's paired t-test for each arm, as `scipy.stats.ttest_rel` has it.

    It is 1 where there is nothing to test: a single draw, or differences that are all zero.
    """
    count = len(differences)
    if count < 2:
        return np.ones(differences.shape[1])
    mean, spread = differences.mean(axis=0), differences.std(axis=0, ddof=1)
    t = np.divide(mean * count**0.5, spread, out=np.where(mean == 0, 0.0, np.inf), where=spread > 0)
    return 2 * special.stdtr(count - 1, -np.abs(t))


def sign_evidence(
    differences: Float[np.ndarray, "draws arms"], *, scale: Float[np.ndarray, " arms"], effect_variance: float
) -> Float[np.ndarray, " arms"]:
    """Log e-value against "the arm is no worse than the leader", for symmetric noise of any shape and size.

    Given how large the differences are, only their signs are random, and ``exp(b * sum(d) - b² * sum(d²) / 2)`` is a
    supermartingale for every ``b >= 0`` (de la Peña 1999). It is mixed over a half-normal ``b`` whose spread is
    ``sqrt(effect_variance) / scale``; the scale may depend on sizes, but must not change from look to look.

    Args:
        differences: Positive where the arm is worse.
        scale: Root mean square of some of each arm's differences.
        effect_variance: Prior variance of (mean / size of one draw), from `sharpest_at`.
    """
    total = np.divide(differences.sum(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)
    energy = np.divide(np.square(differences).sum(axis=0), scale**2, out=np.zeros_like(scale), where=scale > 0)
    width = 1 + effect_variance * energy
    z = total * np.sqrt(effect_variance / width)
    return np.log(2) - np.log(width) / 2 + z**2 / 2 + special.log_ndtr(z)


def normal_evidence(
    differences: Float[np.ndarray, "draws arms"], *, effect_variance: float, prior: float = 0.0
) -> Float[np.ndarray, " arms"]:
    """Log e-value against "the arm is no worse than the leader", for normal noise of unknown variance.

    The Bayes factor of an effect ``mean / sd ~ N(0, effect_variance)`` against none. With ``prior=0`` the variance has
    the right Haar prior, and the e-value is exact whatever the variance is (Lai 1976; Wang & Ramdas 2310.03722).
    Otherwise the variance has an inverse-gamma prior, worth ``prior`` draws, at the average over the other arms given:
    exact if variances of arms really scatter like that, and stronger with few draws.

    Args:
        differences: Positive where the arm is worse.
        effect_variance: Prior variance of (mean / size of one draw), from `sharpest_at`.
        prior: Degrees of freedom of the pooled variance; never more than those there are.
    """
    count, arms = differences.shape
    mean = differences.mean(axis=0)
    residual = np.square(differences - mean).sum(axis=0)
    freedom = min(prior, (arms - 1) * (count - 1))
    pooled = (residual.sum() - residual) / max((arms - 1) * (count - 1), 1)
    within = freedom * pooled + residual
    between = count * mean**2
    shrink = 1 / (1 + effect_variance * count)
    ratio = np.divide(within + between, within + shrink * between, out=np.ones(arms), where=between > 0)
    evidence = (np.log(shrink) + (freedom + count) * np.log(ratio)) / 2
    return np.where(mean > 0, evidence, -np.inf)


def chance_to_overtake(
    differences: Float[np.ndarray, "draws arms"], *, horizon: int, prior: float
) -> Float[np.ndarray, " arms"]:
    """Probability of each arm to have the lesser mean than the leader after ``horizon`` draws, given those so far.

    The mean of all draws, given ``n`` of them, is Student's ``t`` around their mean with variance
    ``s² (1 / n - 1 / horizon)`` (flat prior on the mean, normal draws): draws that are still to come are all that is
    uncertain. The variance is shrunk to the average over arms, as if that were known from ``prior`` more draws.

    Args:
        differences: Positive where the arm is worse.
        horizon: Draws in the whole race, more than there are.
        prior: Draws that the pooled variance is worth; with one arm there is nothing to pool.
    """
    count, arms = differences.shape
    mean = differences.mean(axis=0)
    residual = np.square(differences - mean).sum(axis=0)
    worth = prior if arms > 1 else 0.0
    freedom = worth + count - 1
    variance = (worth * residual.mean() / (count - 1) + residual) / freedom
    error = np.sqrt(variance * (1 / count - 1 / horizon))
    t = np.divide(mean, error, out=np.where(mean > 0, np.inf, 0.0), where=error > 0)
    return special.stdtr(freedom, -t)


def sharpest_at(draws: float, level: float) -> float:
    """The effect variance that makes a normal-mixture test sharpest after so many draws (Howard et al. 2021, §3.5)."""
    nats = 2 * np.log(1 / level)
    return float((nats + np.log1p(nats)) / draws)
