import json
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from stored_runs import informative_errors, save_run

from diffsight.diffusion.schedule import ddpm, flow
from diffsight.errors import InputError, RunError
from diffsight.evaluation.learned_weights import ORACLE, PROTOCOL, learn_weights, load_weights, save_weights
from diffsight.evaluation.metrics.paired import compare_answers
from diffsight.evaluation.rescoring import Changes, rescore, rescore_run
from diffsight.evaluation.weight_fitting import fit_timestep_weights
from diffsight.scoring.elimination import Exhaustive

FORMS = [("buckets", "eps"), ("buckets", "x0"), ("cubic", "eps")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """400 images of which only the times from 0.3 to 0.6 tell anything."""
    errors, labels = informative_errors(400, 40)
    return save_run(tmp_path_factory.mktemp("learned") / "run", errors, labels)


@pytest.mark.parametrize(("form", "space"), FORMS)
def test_weights_find_the_times_that_tell_something(tmp_path, form, space):
    # No cubic is large in the middle and small at both ends.
    low, high = (0.3, 0.6) if form == "buckets" else (0.7, 1.0)
    worlds = [informative_errors(300, 40, good=(low, high), seed=seed) for seed in (0, 1)]
    run = save_run(tmp_path / "run", *worlds[0])
    elsewhere = save_run(tmp_path / "other", *worlds[1], source="folder:others")
    learnt = learn_weights(run, form=form, space=space)
    weights = learnt.weighting(ddpm(200)).to("eps", ddpm(200)).values.numpy()
    time = np.arange(200) / 200
    useful = (time >= low) & (time < high)
    assert (weights >= 0).all()
    assert weights[useful].mean() > 2 * weights[~useful].mean()
    assert learnt.loss_after < learnt.loss_before
    # On other images they are better, and the difference is not chance.
    again = rescore_run(elsewhere, Changes(weights=learnt))
    found = compare_answers(again.answers, rescore_run(elsewhere, Changes()).answers)
    assert found.images == 300
    assert found.difference.low > 0
    assert again.metrics["protocol"] == PROTOCOL
    assert again.metrics["left_out"] == 0


def test_buckets_are_those_of_the_definition(run):
    # Clark & Jaini: v of bucket floor(t / 0.05).
    learnt = learn_weights(run)
    values = learnt.weighting(ddpm(200)).values
    assert len(learnt.values) == 20
    width = Fraction(1, 20)
    assert values.tolist() == [learnt.values[Fraction(level, 200) // width] for level in range(200)]
    assert np.mean(learnt.values) == pytest.approx(1)


def test_cubic_is_a_polynomial_of_time(run):
    learnt = learn_weights(run, form="cubic")
    time = np.arange(200) / 200
    expected = np.polynomial.Polynomial(learnt.values)(time)
    assert learnt.weighting(ddpm(200)).values.numpy() == pytest.approx(np.maximum(expected, 0))
    assert expected.min() > -1e-3


def test_the_fit_is_the_least_of_its_loss():
    """The objective, written down again, is no smaller anywhere near."""
    errors, labels = informative_errors(60, 40)
    schedule, labels = ddpm(200), np.array(labels)
    levels = Exhaustive(num_draws=40).grid(200)
    fit = fit_timestep_weights(errors, labels, levels, schedule, ridge=1e-6)
    order = levels.numpy() * 20 // 200

    def loss(values, scale):
        logits = -scale * (errors * np.array(values)[order][None, :, None]).mean(axis=1)
        return float(np.mean(logsumexp(logits, axis=1) - logits[range(60), labels]))

    scales = np.exp(np.linspace(-4, 12, 400))
    best = min(loss(fit.values, scale) for scale in scales)
    assert fit.loss_after == pytest.approx(best, rel=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        near = np.abs(np.array(fit.values) + rng.normal(0, 0.3, 20))
        assert min(loss(near, scale) for scale in scales) >= best - 1e-4


@pytest.mark.parametrize("form", ["buckets", "cubic"])
def test_few_images_and_much_ridge_stay_near_uniform(form):
    errors, labels = informative_errors(6, 40)
    levels = Exhaustive(num_draws=40).grid(200)
    fit = fit_timestep_weights(errors, np.array(labels), levels, ddpm(200), form=form, ridge=1e6)
    assert fit.values == pytest.approx((1.0,) * 20 if form == "buckets" else (1.0, 0, 0, 0), abs=1e-3)


def test_images_that_were_learnt_from_are_left_out(run):
    learnt = learn_weights(run, share=0.25)
    labels = [int(label) for label in informative_errors(400, 40)[1]]
    assert len(learnt.images) == sum(round(labels.count(k) * 0.25 + 1e-9) for k in range(4))
    again = rescore_run(run, Changes(weights=learnt))
    assert again.metrics["left_out"] == len(learnt.images)
    assert again.metrics["scored"] == 400 - len(learnt.images)
    assert not set(learnt.images) & again.answers.labels.keys()
    assert again.metrics["protocol"] == PROTOCOL


def test_a_run_of_only_such_images_is_an_oracle(run):
    metrics = rescore(run, weights=learn_weights(run, share=1))
    assert metrics["protocol"] == ORACLE
    assert (metrics["scored"], metrics["left_out"]) == (400, 0)


def test_a_larger_share_contains_a_smaller(run):
    assert set(learn_weights(run, share=0.1).images) < set(learn_weights(run, share=0.3).images)
    assert learn_weights(run, seed=1).images != learn_weights(run).images


@pytest.mark.parametrize(("form", "space"), FORMS)
def test_a_file_gives_the_same_weights_again(run, tmp_path, form, space):
    learnt = learn_weights(run, form=form, space=space)
    file = save_weights(learnt, tmp_path / "new" / "weights.json")
    assert load_weights(file) == learnt
    shown = json.loads(file.read_text())
    assert shown["protocol"] == PROTOCOL
    assert shown["run"] == json.loads((run / "manifest.json").read_text())["fingerprint"]
    assert rescore(run, weights=load_weights(file)) == rescore(run, weights=learnt)


def broken(value, **changes):
    return json.dumps({k: v for k, v in (value | changes).items() if v is not ...})


def test_wrong_files_are_refused(run, tmp_path):
    file = save_weights(learn_weights(run), tmp_path / "weights.json")
    value = json.loads(file.read_text())
    for text, says in (
        ("{", "not JSON"),
        ("[]", "no file of learnt weights"),
        (json.dumps({"metrics": 1}), "no file of learnt weights"),
        (broken(value, format=2), "format 2"),
        (broken(value, values=...), "has no values"),
        (broken(value, values=[1.0] * 19), "20 finite numbers"),
        (broken(value, values="much"), "no list"),
        (broken(value, values=["much"] * 20), "damaged"),
        (broken(value, form="square"), "'square'"),
        (broken(value, space="pixels"), "'pixels'"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=says):
            load_weights(file)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(tmp_path / "none.json")
    with pytest.raises(RunError, match="cannot be written"):
        save_weights(learn_weights(run), file / "below.json")


def test_other_noise_levels_are_refused(run, tmp_path):
    learnt = learn_weights(run)
    with pytest.raises(InputError, match="noise levels"):
        learnt.weighting(flow(200))
    errors, labels = informative_errors(20, 40, steps=100)
    other = save_run(tmp_path / "run", errors, labels, steps=100)
    with pytest.raises(InputError, match="noise levels"):
        rescore(other, weights=learnt)


def test_what_contradicts_learnt_weights_is_refused(run):
    learnt = learn_weights(run, loss="l1")
    assert learnt.loss == "l1"
    with pytest.raises(InputError, match="loss 'l1', not for 'l2'"):
        rescore(run, weights=learnt, loss="l2")
    with pytest.raises(InputError, match="not both"):
        rescore(run, weights=learnt, weighting="vdm")


def test_prompts_of_a_class_count_with_their_mean(run, tmp_path):
    errors, labels = informative_errors(60, 40)
    rng = np.random.default_rng(5)
    apart = rng.normal(0, 0.1, errors.shape)
    double = np.concatenate([errors + apart, errors - apart], axis=2)
    one = save_run(tmp_path / "one", errors, labels)
    two = save_run(tmp_path / "two", double, labels, owner=[0, 1, 2, 3] * 2)
    assert learn_weights(two).values == pytest.approx(learn_weights(one).values, rel=1e-3, abs=1e-3)


def test_what_cannot_be_learnt_from_is_refused(run, tmp_path):
    errors, labels = informative_errors(30, 40)
    eliminated = errors.copy()
    eliminated[3, 15:, 1] = np.nan
    raced = save_run(tmp_path / "raced", eliminated, labels)
    with pytest.raises(InputError, match=r"parts of time have no draw .* 15 such draws"):
        learn_weights(raced, share=1)
    assert learn_weights(raced, form="cubic", share=1).draws == 15
    few = save_run(tmp_path / "few", errors[:, :3], labels)
    with pytest.raises(InputError, match="four levels"):
        learn_weights(few, form="cubic")
    with pytest.raises(InputError, match="no labelled images"):
        learn_weights(save_run(tmp_path / "unlabelled", errors, [None] * 30))
    with pytest.raises(InputError, match="'buckets'"):
        learn_weights(run, form="cubic", space="x0")
    with pytest.raises(InputError, match=r"Unknown form of weights 'bucket'.*'buckets'"):
        learn_weights(run, form="bucket")
    with pytest.raises(InputError, match="ridge"):
        learn_weights(run, ridge=0)
    with pytest.raises(InputError, match="no loss 'kl'"):
        learn_weights(run, loss="kl")


def test_errors_with_gaps_are_refused():
    with pytest.raises(InputError, match="without gaps"):
        fit_timestep_weights(
            np.full((2, 20, 2), np.nan), np.array([0, 1]), torch.arange(0, 200, 10), ddpm(200), form="buckets"
        )
