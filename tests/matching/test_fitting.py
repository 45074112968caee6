"""Fitting learns from examples and from nothing else, leaves the model as it was, and refuses what cannot be learnt."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import save_dit
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from diffsight.backbones.cards import assets
from diffsight.backbones.loading import load
from diffsight.data.queries import Query
from diffsight.data.splits import few_shot_queries
from diffsight.errors import InputError, ModelError, NumericsError
from diffsight.matching.candidates import candidate_sets
from diffsight.matching.fitting import differentiable, fit_adapter
from diffsight.matching.losses import set_loss
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.options import FitOptions, fit_options
from diffsight.matching.scores import PMI, Attention, DenoisingError, Hybrid
from diffsight.matching.settings import MatchSettings, match_preset
from diffsight.matching.statistics import Statistics
from diffsight.matching.training import Trainer
from diffsight.matching.weighing import Weighted, fit_weights

NAMES = ("trouser", "sneaker", "bag", "dress", "coat", "pullover")
FEW = MatchSettings(draws=4)


def photograph(name, index):
    with Image.open(sorted((assets() / "samples" / name).iterdir())[index]) as image:
        return image.copy()


@pytest.fixture(scope="module")
def queries():
    """Twelve photographs of clothes, each with three captions, the right one in changing places."""
    found = []
    for number, name in enumerate(NAMES):
        for index in range(2):
            texts = [f"a photo of a {NAMES[(number + step) % len(NAMES)]}" for step in (1, 2)]
            texts.insert((number + index) % 3, f"a photo of a {name}")
            found.append(
                Query(
                    id=f"{name} {index}",
                    images=(photograph(name, index),),
                    texts=tuple(texts),
                    positive=(number + index) % 3,
                )
            )
    return found


@pytest.fixture(scope="module")
def others():
    """A text with images, and images with as many texts."""
    images = tuple(photograph(name, 2) for name in NAMES[:3])
    texts = tuple(f"a photo of a {name}" for name in NAMES[:3])
    return [
        Query(id="images", images=images, texts=texts[1:2], positive=1),
        Query(id="grid", images=images[:2], texts=texts[:2]),
    ]


def made_up(attention, gain, *, times=None):
    """Statistics whose features are these, of shape (draws, pairs, columns) and (draws, pairs)."""
    draws, pairs, columns = attention.shape
    return Statistics(
        errors=(10 - gain) ** 2,
        null_errors=np.full((draws, pairs), 100.0),
        attention=attention,
        null_attention=np.zeros_like(attention),
        columns=tuple(f"mid.0/{head}" for head in range(columns)),
        size=1,
        times=np.arange(draws) / draws if times is None else times,
    )


def problem(seed, *, count=40, candidates=5, columns=6, draws=4, column=2):
    """Queries that one column of attention answers."""
    rng = np.random.default_rng(seed)
    found, sets = [], []
    for _ in range(count):
        statistics = made_up(rng.normal(size=(draws, candidates, columns)), 0.1 * rng.normal(size=(draws, candidates)))
        right = int(statistics.attention[:, :, column].mean(0).argmax())
        found.append(statistics)
        sets.append([np.array([right, *np.delete(np.arange(candidates), right)])])
    return found, sets


def accuracy(weights, statistics, sets):
    means = scores_of(weights, statistics)
    return np.mean([mean.argmax() == own[0] for mean, some in zip(means, sets, strict=True) for own in some])


def pair_problem(seed=0, *, count=60):
    """Pairs whose gain never differs, so that nothing pulls to the zero-shot score; and their differences."""
    rng = np.random.default_rng(seed)
    attention = rng.normal(size=(count, 1, 2, 3))
    statistics = [made_up(one, np.ones((1, 2))) for one in attention]
    difference = attention[:, 0, 1] - attention[:, 0, 0]
    right = (difference @ [1.0, -0.5, 0.0] + rng.logistic(size=count) > 0).astype(int)
    own = difference.std(axis=0, mean=0) ** 2 / 2  # spread in a pair, squared, with one degree of freedom for each pair
    spread = np.sqrt((count * own + 4 * own.mean()) / (count + 4))
    return statistics, [[np.array([one, 1 - one])] for one in right], difference / spread, right, spread


def test_infonce_of_pairs_is_logistic_regression_on_differences():
    statistics, sets, difference, right, spread = pair_problem()
    weights, loss = fit_weights(statistics, sets, FitOptions(bands=1, ridge=2.0))
    # The penalty is ridge · 3 columns that differ; scikit-learn has its inverse before the loss.
    model = LogisticRegression(C=1 / 6, fit_intercept=False, tol=1e-10, max_iter=1000).fit(difference, right)
    np.testing.assert_allclose(weights[0, :3], model.coef_[0] / spread, rtol=1e-5)
    chances = model.predict_proba(difference)[np.arange(len(right)), right]
    assert loss == pytest.approx(-np.log(chances).mean(), rel=1e-5)


def test_hinge_of_pairs_is_a_support_vector_machine_on_differences():
    statistics, sets, difference, right, spread = pair_problem(1)
    weights, loss = fit_weights(statistics, sets, FitOptions(bands=1, ridge=1.0, loss="hinge", margin=1.0))
    model = LinearSVC(loss="hinge", C=1 / 3, fit_intercept=False, tol=1e-8, max_iter=1_000_000)
    expected = model.fit(difference, right).coef_[0]

    def objective(found):
        gaps = np.where(right == 1, 1, -1) * (difference @ found)
        return np.maximum(0, 1 - gaps).sum() + 3 / 2 * found @ found

    found = weights[0, :3].numpy() * spread
    # The corner is rounded off by 0.001 log 2 for each of 60 sets at most.
    assert objective(expected) <= objective(found) <= objective(expected) + 60 * 0.001 * math.log(2)
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert loss == pytest.approx(np.maximum(0, 1 - np.where(right == 1, 1, -1) * (difference @ found)).mean())


def scores_of(weights, statistics):
    score = Weighted(tuple(map(tuple, weights.tolist())))
    return [score.per_draw(one, np.ones(len(one.times))).mean(0) for one in statistics]


def test_the_pull_is_to_the_zero_shot_score():
    statistics, sets = problem(0)
    for loss in ("infonce", "hinge"):
        weights, _ = fit_weights(statistics, sets, FitOptions(bands=2, ridge=1e9, loss=loss))
        torch.testing.assert_close(weights[:, :-1], torch.zeros(2, 6, dtype=torch.float64), atol=1e-6, rtol=0)
        assert weights[0, -1] == pytest.approx(float(weights[1, -1]), rel=1e-6)
        assert weights[0, -1] > 0
    spread = np.sqrt(np.mean([mean.var(ddof=1) for mean in scores_of(weights, statistics)]))
    assert spread == pytest.approx(1, abs=1e-6)


def test_the_zero_shot_score_is_as_loud_as_it_is_right():
    """Its factor is that of logistic regression with one column, but for the prior, and never negative."""
    rng = np.random.default_rng(0)
    found = []
    for share in (1.0, 0.9, 0.5, 0.1):
        gain = rng.normal(size=(200, 1, 2)) * 0.1
        statistics = [made_up(np.zeros((1, 2, 0)), one) for one in gain]
        right = np.where(rng.random(200) < share, gain[:, 0].argmax(1), gain[:, 0].argmin(1))
        sets = [[np.array([one, 1 - one])] for one in right]
        weights, _ = fit_weights(statistics, sets, FitOptions(bands=1, ridge=1e9, attention=False))
        found.append(float(weights))
        if share == 0.9:
            difference = (gain[:, 0, 1] - gain[:, 0, 0])[:, None]
            free = LogisticRegression(C=1e9, fit_intercept=False, tol=1e-8).fit(difference, right).coef_.item()
            assert found[-1] == pytest.approx(free, rel=0.05)
    assert found[0] > found[1] > found[2] > found[3] > 0


@pytest.mark.parametrize("loss", [{}, {"loss": "hinge", "margin": 1.0}], ids=["infonce", "hinge"])
def test_weights_find_what_separates(loss):
    statistics, sets = problem(1)
    weights, final = fit_weights(statistics, sets, FitOptions(bands=1, ridge=1e-3, **loss))
    assert accuracy(weights, statistics, sets) == 1
    assert final < 0.05
    unseen = problem(2, count=100)
    zero_shot, _ = fit_weights(statistics, sets, FitOptions(bands=1, ridge=1e9))
    assert accuracy(weights, *unseen) > 0.9
    assert accuracy(zero_shot, *unseen) < 0.4


def test_a_stronger_ridge_learns_less():
    statistics, sets = problem(3)
    losses = [fit_weights(statistics, sets, FitOptions(ridge=ridge))[1] for ridge in (0.01, 0.1, 1.0, 10.0, 1e9)]
    assert all(less < more for less, more in pairwise(losses))


def test_one_example_does_not_spoil_what_the_zero_shot_score_can_do():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        statistics, sets = problem(seed, count=201, candidates=2)
        # Here the gain answers, nine times in ten: the single example may well be one that it gets wrong.
        gains = [one.null_errors[0, 0] ** 0.5 - np.sqrt(one.errors) for one in statistics]
        sets = [
            [np.array([right, 1 - right])]
            for gain in gains
            for right in [int(gain.mean(0).argmax()) if rng.random() < 0.9 else int(gain.mean(0).argmin())]
        ]
        unseen = statistics[1:], sets[1:]
        zero_shot, _ = fit_weights(statistics[:1], sets[:1], FitOptions(ridge=1e9))
        fitted, _ = fit_weights(statistics[:1], sets[:1], FitOptions())
        assert accuracy(fitted, *unseen) > accuracy(zero_shot, *unseen) - 0.1


def test_sets_of_different_sizes_and_bands_without_a_draw():
    wide, narrow = problem(4, count=5), problem(5, count=5, candidates=2)
    statistics = [*wide[0], *(replace(one, times=one.times / 2) for one in narrow[0])]
    statistics = [replace(one, times=one.times * 0.49) for one in statistics]
    weights, loss = fit_weights(statistics, [*wide[1], *narrow[1]], FitOptions(bands=2))
    assert math.isfinite(loss)
    assert weights.isfinite().all()
    # Where nothing was measured, the zero-shot weights stay.
    assert (weights[1, :-1] == 0).all()
    assert weights[1, -1] > 0


def test_the_order_of_candidates_and_queries_does_not_matter_to_weights():
    statistics, sets = problem(6, candidates=3)
    first, _ = fit_weights(statistics, sets, FitOptions())
    back = [
        replace(one, **{name: getattr(one, name)[:, ::-1] for name in ("errors", "null_errors", "attention")})
        for one in statistics[::-1]
    ]
    again, _ = fit_weights(back, [[2 - own for own in some] for some in sets[::-1]], FitOptions())
    torch.testing.assert_close(first, again, rtol=1e-6, atol=1e-8)


def test_losses_are_their_formulas():
    gaps = torch.tensor([[-0.8, -0.3], [0.5, -math.inf]])
    scores = torch.tensor([[1.0, 0.2, 0.7]])
    torch.testing.assert_close(set_loss(gaps)[:1], -scores.log_softmax(1)[:, 0])
    torch.testing.assert_close(set_loss(gaps, margin=0.4, softness=0.0), torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(set_loss(gaps, margin=0.4, softness=1e-3), torch.tensor([0.1, 0.9]))


def test_a_grid_is_a_choice_in_each_row_and_column(others):
    images, grid = others
    assert [own.tolist() for own in candidate_sets(grid)] == [[0, 1], [3, 2], [0, 2], [3, 1]]
    assert [own.tolist() for own in candidate_sets(images)] == [[1, 0, 2]]


@pytest.mark.parametrize(
    "score",
    [PMI(), DenoisingError(), *(Attention(null=x) for x in ("ignore", "subtract", "average")), Hybrid(alpha=2, beta=3)],
    ids=str,
)
def test_scores_with_a_gradient_are_the_scores(score):
    rng = np.random.default_rng(0)
    pairs, null = rng.uniform(1, 2, size=(2, 4, 3, 3 + 5))
    null[:] = null[:, :1]
    columns = ("mid.0/0", "mid.0/1", "up.1/0", "up.1/1", "up.1/2")
    weights = rng.uniform(1, 2, size=4)
    statistics = Statistics(
        errors=pairs[:, :, 1],
        null_errors=null[:, :, 1],
        attention=pairs[:, :, 3:],
        null_attention=null[:, :, 3:],
        columns=columns,
        size=7,
        times=np.zeros(4),
    )
    tensors = [torch.from_numpy(x) for x in (pairs, null, np.repeat(weights[:, None], 3, 1))]
    found = differentiable(score, *tensors, columns=columns, size=7).numpy()
    expected = score.per_draw(statistics, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # Left out, the empty text is gone from differences too.
    tensors[1] = None
    found = differentiable(score, *tensors, columns=columns, size=7).numpy()
    np.testing.assert_allclose(np.diff(found, axis=1), np.diff(expected, axis=1), atol=1e-12)


def right(matcher, queries):
    return np.mean([match.best == query.positive for match, query in zip(matcher.match(queries), queries, strict=True)])


def test_fitted_weights_match_at_least_as_well_as_before(tiny, queries, others):
    calls = []
    adapter = fit_adapter(tiny, [*queries, *others], settings=FEW, progress=lambda *call: calls.append(call))
    assert adapter.weights.shape == (4, 17)
    assert (adapter.notes["examples"], adapter.notes["failed"]) == (14, 0)
    assert calls == [(14, 14, None), (14, 14, adapter.notes["loss"])]
    matcher = ImageTextMatcher(tiny, settings=FEW, adapter=adapter)
    assert right(matcher, queries) >= right(ImageTextMatcher(tiny, settings=FEW), queries) > 0.7
    # What was fitted is what is matched with: the loss of the matcher's own scores.
    (texts,), grid = ([m.scores for m in matcher.match([q])] for q in (queries[0], others[1]))
    alone = fit_adapter(tiny, [others[1]], settings=FEW, options=FitOptions(ridge=1e12))
    (scores,) = (m.scores for m in ImageTextMatcher(tiny, settings=FEW, adapter=alone).match([others[1]]))
    table = torch.from_numpy(scores)
    expected = -(table.log_softmax(1).diagonal() + table.log_softmax(0).diagonal()).sum() / 4
    assert alone.notes["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert texts.shape == (1, 3)
    assert len(grid) == 1


def test_weights_of_the_gain_alone_need_no_attention(tiny, queries, tmp_path):
    options = FitOptions(attention=False, bands=2)
    assert fit_adapter(tiny, queries[:2], settings=FEW, options=options).weights.shape == (2, 1)
    dit = load(save_dit(tmp_path / "dit"), device="cpu", dtype="fp32")
    query = Query(id="q", images=(photograph("bag", 0),), texts=("cat", "dog"), positive=0)
    assert fit_adapter(dit, [query], settings=FEW, options=options).weights.shape == (2, 1)
    assert fit_adapter(dit, [query], settings=FEW, options=FitOptions(kind="lora", steps=1)).lora
    for kind in ("weights", "prompt"):
        with pytest.raises(InputError, match="attention=False"):
            fit_adapter(dit, [query], settings=FEW, options=kind)


TRAINED = {
    "prompt": FitOptions(kind="prompt", steps=15, learning_rate=3e-2),
    "lora": FitOptions(kind="lora", steps=15, learning_rate=3e-3),
}


def cross_entropy(matcher, queries, temperature=5e-3):
    found = [torch.from_numpy(match.scores.ravel() / temperature).log_softmax(0) for match in matcher.match(queries)]
    return -np.mean([float(one[query.positive]) for one, query in zip(found, queries, strict=True)])


@pytest.mark.parametrize("kind", list(TRAINED))
@pytest.mark.parametrize("loss", ["infonce", "hinge"])
def test_training_makes_the_loss_smaller_and_leaves_the_model_alone(tiny, queries, kind, loss):
    before = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    modules, attributes = list(tiny.network.named_modules()), set(vars(tiny.network))
    plain = ImageTextMatcher(tiny, settings=MatchSettings(draws=12))
    untrained = cross_entropy(plain, queries[:2])
    calls = []
    options = replace(TRAINED[kind], loss=loss)
    adapter = fit_adapter(tiny, queries[:2], options=options, settings=FEW, progress=lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(step + 1, 15) for step in range(15)]
    assert adapter.notes["loss"] == pytest.approx(np.mean([calls[-1][2], calls[-2][2]]))
    assert list(tiny.network.named_modules()) == modules
    assert set(vars(tiny.network)) == attributes
    after = tiny.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(value.requires_grad or value.grad is not None for value in tiny.network.parameters())
    trained = ImageTextMatcher(tiny, settings=plain.settings, adapter=adapter)
    assert cross_entropy(trained, queries[:2]) < 0.97 * untrained
    assert cross_entropy(plain, queries[:2]) == untrained


@pytest.mark.parametrize("score", ["attention", Hybrid(null="average"), "error"], ids=str)
@pytest.mark.parametrize("kind", list(TRAINED))
def test_every_score_and_every_form_of_query_can_be_trained(small, others, kind, score):
    score = replace(Attention(), null="subtract") if score == "attention" else score
    settings = MatchSettings(draws=2, score=DenoisingError() if score == "error" else score)
    adapter = fit_adapter(small, others, options=FitOptions(kind=kind, steps=2), settings=settings)
    learnt = [adapter.prompt] if kind == "prompt" else [x for name, x in adapter.lora.items() if "lora_B" in name]
    assert all(value.isfinite().all() for value in learnt)
    assert any(value.abs().max() > 0 for value in learnt)


def test_an_error_while_training_leaves_the_network_as_it_was(tiny, queries):
    modules = list(tiny.network.named_modules())

    def stop(*call):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_adapter(tiny, queries[:1], options="lora", settings=FEW, progress=stop)
    assert list(tiny.network.named_modules()) == modules
    with pytest.raises(NumericsError, match="learning rate"):
        fit_adapter(tiny, queries[:1], options=replace(TRAINED["prompt"], learning_rate=1e30), settings=FEW)


def learnt(adapter):
    return {"weights": adapter.weights, "prompt": adapter.prompt, **(adapter.lora or {})}


def assert_same(one, two, **tolerances):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if value is not None:
            torch.testing.assert_close(value, two[name], msg=name, **tolerances)


@pytest.mark.parametrize("kind", ["weights", "prompt", "lora"])
def test_the_same_seed_learns_the_same_and_touches_no_random_state(tiny, queries, kind):
    options = FitOptions(kind=kind, seed=4, **({} if kind == "weights" else {"steps": 3}))
    state = torch.random.get_rng_state()
    one, two = (fit_adapter(tiny, queries[:2], options=options, settings=FEW) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(learnt(one), learnt(two), rtol=0, atol=0)
    assert one.notes == two.notes
    if kind != "weights":
        other = fit_adapter(tiny, queries[:2], options=replace(options, seed=5), settings=FEW)
        assert other.notes["loss"] != one.notes["loss"]


@pytest.mark.parametrize("kind", ["prompt", "lora"])
def test_neither_the_order_of_candidates_nor_the_batch_size_decides(tiny, queries, others, kind):
    """Rows that do not fit into one call have the same gradient in several."""
    some = [queries[0], *others]
    settings = MatchSettings(draws=4, score=Hybrid())
    options = FitOptions(kind=kind, steps=3, draws_per_step=3)
    whole = fit_adapter(tiny, some, options=options, settings=settings)
    parts = fit_adapter(tiny, some, options=options, settings=settings, batch_size=5)
    turned = [
        replace(queries[0], texts=queries[0].texts[::-1], positive=2 - queries[0].positive),
        replace(others[0], images=others[0].images[::-1]),
        replace(others[1], images=others[1].images[::-1], texts=others[1].texts[::-1]),
    ]
    back = fit_adapter(tiny, turned, options=options, settings=settings)
    # AdamW divides each gradient by its size, so that its rounding errors near 0 are not small.
    tolerances = {"rtol": 0, "atol": 0.1 * options.rate}
    assert_same(learnt(whole), learnt(parts), **tolerances)
    assert_same(learnt(whole), learnt(back), **tolerances)
    assert parts.notes["loss"] == pytest.approx(whole.notes["loss"], rel=1e-3)
    assert back.notes["loss"] == pytest.approx(whole.notes["loss"], rel=1e-3)


def test_paired_draws_are_shared_and_unpaired_ones_are_not(tiny, queries, monkeypatch):
    seen = []
    values = Trainer._values

    def watched(self, work, part):
        seen.append(work)
        return values(self, work, part)

    monkeypatch.setattr(Trainer, "_values", watched)
    options = FitOptions(kind="prompt", steps=2, draws_per_step=4, temperature=1e-3)
    fit_adapter(tiny, queries[:1], options=options, settings=FEW)
    assert [len(work.levels) for work in seen] == [4, 4]
    # The empty text says the same of all candidates, and is not run.
    assert all(len(work.rows) == 3 * 4 for work in seen)
    for work in seen:
        quarter = work.levels // 250
        assert quarter.tolist() == [0, 1, 2, 3]
    assert seen[0].levels.tolist() != seen[1].levels.tolist()
    assert seen[0].bank != seen[1].bank
    seen.clear()
    fit_adapter(tiny, queries[:1], options=replace(options, paired=False, draws_per_step=1), settings=FEW)
    assert [len(work.levels) for work in seen] == [3, 3]
    assert all(len(work.rows) == 3 * 2 for work in seen)
    assert all(len(np.unique(work.rows[:, 1])) == 3 for work in seen)


def test_the_paper_trains_low_rank_matrices_unpaired(small, queries):
    options = fit_options("discffusion")
    assert (options.kind, options.rank, options.scale, options.loss, options.margin) == ("lora", 4, 4, "hinge", 0.1)
    assert (options.rate, options.weight_decay, options.steps_for(95)) == (1e-4, 1e-2, 50 * 95)
    assert (options.paired, options.draws_per_step) == (False, 1)
    settings = match_preset("discffusion")
    adapter = fit_adapter(small, queries[:2], options=fit_options("discffusion", {"epochs": 1}), settings=settings)
    assert (adapter.notes["rank"], adapter.notes["alpha"], adapter.notes["examples"]) == (4, 4.0, 2)


def test_a_few_shots_are_tested_on_other_images(tiny, queries):
    train, test = few_shot_queries(queries, count=6, seed=0)
    assert not {*train.tolist()} & {*test.tolist()}
    adapter = fit_adapter(tiny, [queries[place] for place in train], settings=FEW)
    unseen = [queries[place] for place in test]
    plain, fitted = (ImageTextMatcher(tiny, settings=FEW, adapter=x) for x in (None, adapter))
    assert right(fitted, unseen) >= right(plain, unseen) - 0.2


def test_what_cannot_be_learnt_from_is_refused_or_left_out(tiny, queries, tmp_path, caplog):
    with pytest.raises(InputError, match="no query"):
        fit_adapter(tiny, [])
    with pytest.raises(InputError, match="1 of 2 queries have no positive, such as 'trouser 0'"):
        fit_adapter(tiny, [replace(queries[0], positive=None), queries[1]])
    gone = Query(id="gone", images=(tmp_path / "gone.png",), texts=("a", "b"), positive=0)
    with pytest.raises(InputError, match=r"None of 1 queries.*gone\.png"):
        fit_adapter(tiny, [gone])
    long = replace(queries[0], id="long", texts=("a photo " * 40, "a bag", "a coat"))
    for kind in ("weights", "prompt"):
        options = FitOptions(kind=kind, **({} if kind == "weights" else {"steps": 1}))
        notes = fit_adapter(tiny, [gone, queries[0], long], settings=FEW, options=options).notes
        assert (notes["examples"], notes["failed"]) == (1, 2)
    assert "Query gone is not learnt from" in caplog.text
    assert "Query long is not learnt from" in caplog.text
    with pytest.raises(InputError, match="has no gradient"):
        fit_adapter(tiny, queries[:1], options="lora", settings=replace(FEW, score=Weighted(((0.0, 1.0),))))
    with pytest.raises(InputError, match="3 draws cannot fill 4 bands"):
        fit_adapter(tiny, queries[:1], settings=MatchSettings(draws=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "lorra"}, "'lora'"),
        ({"loss": "mse"}, "loss 'mse'"),
        ({"bands": 0}, "bands"),
        ({"ridge": 0.0}, "ridge"),
        ({"ridge": math.inf}, "ridge"),
        ({"seed": -1}, "seed"),
        ({"loss": "hinge", "margin": -1.0}, "margin"),
        ({"margin": 0.2}, "has no margin"),
        ({"kind": "lora", "loss": "hinge", "temperature": 2.0}, "has no temperature"),
        ({"temperature": 2.0}, "prompt and lora, not of weights"),
        ({"rank": 8}, "lora, not of weights"),
        ({"kind": "lora", "tokens": 8}, "prompt, not of lora"),
        ({"kind": "prompt", "bands": 8}, "weights, not of prompt"),
        ({"kind": "lora", "steps": 0}, "steps"),
        ({"kind": "lora", "steps": 5, "epochs": 5}, "not both"),
        ({"kind": "lora", "learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        FitOptions(**values)


def test_options_have_names(tiny, queries):
    assert fit_options("lora", {"rank": 8, "epochs": 2}) == FitOptions(kind="lora", rank=8, epochs=2)
    assert FitOptions(**FitOptions(kind="lora", rank=8).to_dict()) == FitOptions(kind="lora", rank=8)
    assert FitOptions(kind="lora", epochs=3).steps_for(5) == 15
    assert fit_options("discffusion", {"steps": 7}).steps_for(95) == 7
    with pytest.raises(InputError, match="wrong type"):
        fit_options("lora", {"learning_rate": "fast"})
    with pytest.raises(InputError, match=r"no option 'rang'.*'rank'"):
        fit_options("lora", {"rang": 8})
    with pytest.raises(InputError, match="'weights'"):
        fit_options("weight")
    with pytest.raises(InputError, match="'discffusion'"):
        fit_adapter(tiny, queries, options="discfusion")


def test_memory_that_ends_is_a_smaller_batch_or_an_error(tiny, queries, monkeypatch):
    values = Trainer._values
    sizes = []

    def small_device(self, work, part):
        rows = len(work.rows[part])
        sizes.append(rows)
        if rows > limit:
            raise torch.OutOfMemoryError
        return values(self, work, part)

    options = FitOptions(kind="prompt", steps=2, draws_per_step=2, temperature=1e-3)
    whole = fit_adapter(tiny, queries[:1], options=options, settings=FEW)
    monkeypatch.setattr(Trainer, "_values", small_device)
    limit = 3
    cut = fit_adapter(tiny, queries[:1], options=options, settings=FEW)
    assert sizes[:2] == [6, 3]
    assert set(sizes[1:]) == {3}
    assert_same(learnt(whole), learnt(cut), rtol=0, atol=0.1 * options.rate)
    limit = 0
    with pytest.raises(ModelError, match="does not fit the device"):
        fit_adapter(tiny, queries[:1], options=options, settings=FEW)
