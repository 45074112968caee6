"""Where everything is known in closed form, the classifier is Bayes' rule."""

import numpy as np
import pytest
import torch
from gaussians import SCHEDULE, contest, encoded, mixture, run, winners
from scipy import stats

from diffsight.diffusion.weighting import by_name
from diffsight.scoring.elimination import Exhaustive
from diffsight.zero_shot.settings import Settings


def test_errors_have_their_expectation():
    backbone = mixture()
    x0, _ = backbone.sample(4, seed=1)
    setup = contest(backbone, policy=Exhaustive(num_draws=1000))
    scored, _ = run(setup, encoded(x0), batch_size=1000)
    expected = backbone.expected_errors(x0)[:, setup.scorer.levels].mean(1).numpy()
    measured = np.stack([s.errors[:, :, 1].mean(0) for s in scored])
    np.testing.assert_allclose(measured, expected, rtol=0.05)


def test_with_enough_draws_the_classifier_is_bayes_rule():
    backbone = mixture()
    x0, labels = backbone.sample(200, seed=2)
    scored, _ = run(contest(backbone, policy=Exhaustive(num_draws=600)), encoded(x0), batch_size=2000)
    found, bayes = winners(scored), backbone.bayes(x0)
    assert (found == bayes).mean() >= 0.97
    assert abs((found == labels).mean() - (bayes == labels).mean()) <= 0.02
    assert 0.6 < (bayes == labels).mean() < 0.98  # the task is neither trivial nor hopeless


def test_the_default_policy_loses_bayes_answer_no_more_often_than_it_says():
    backbone = mixture(seed=3)
    x0, _ = backbone.sample(300, seed=4)
    policy = Settings().policy
    scored, engine = run(contest(backbone), encoded(x0), batch_size=500)
    wrong = int((winners(scored) != backbone.bayes(x0)).sum())
    undecided = sum(len(s.errors) >= policy.max_draws for s in scored)
    # An error rate above the stated one would be seen as so many wrong with a probability of 1e-4 at most.
    assert stats.binom.sf(wrong - undecided - 1, len(scored), policy.error) > 1e-4
    assert engine.calls < 0.8 * len(scored) * policy.max_draws * len(backbone.means)


@pytest.mark.parametrize("output", ["x0", "v", "flow"])
def test_what_the_network_predicts_makes_no_difference(output):
    backbones = [mixture(output="eps"), mixture(output=output)]
    x0, _ = backbones[0].sample(5, seed=5)
    setups = [contest(backbone, policy=Exhaustive(num_draws=50)) for backbone in backbones]
    expected, measured = (np.stack([s.errors for s in run(setup, encoded(x0))[0]]) for setup in setups)
    np.testing.assert_allclose(measured, expected, rtol=2e-4, atol=1e-5)


def test_likelihood_weights_recover_log_likelihood_ratios():
    backbone = mixture()
    x0, _ = backbone.sample(50, seed=6)
    errors = backbone.expected_errors(x0)
    truth = backbone.log_likelihoods(x0)
    truth = (truth - truth[:, :1])[:, 1:].numpy().ravel()
    ratios = {}
    for name in ("vdm", "uniform"):
        weights = by_name(name, SCHEDULE).to("eps", SCHEDULE).values
        bound = -(weights[None, :, None] * errors).sum(1)
        ratios[name] = (bound - bound[:, :1])[:, 1:].numpy().ravel()
    slope = (ratios["vdm"] @ truth) / (truth @ truth)
    np.testing.assert_allclose(ratios["vdm"] / slope, truth, atol=1e-3 * np.abs(truth).max())
    assert np.corrcoef(ratios["uniform"], truth)[0, 1] > 0.99


def test_a_tie_is_reported():
    backbone = mixture(classes=3)
    twins = torch.stack([backbone.means[0], backbone.means[0], backbone.means[2]])
    backbone = type(backbone)(means=twins)
    x0, _ = backbone.sample(20, seed=7)
    for policy in (Exhaustive(num_draws=20), Settings().policy):
        scored, _ = run(contest(backbone, policy=policy), encoded(x0))
        both = [s for s in scored if s.alive[0]]
        assert both
        assert all(s.alive[1] for s in both)
