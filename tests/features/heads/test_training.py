from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler
from torch import nn

from diffsight.errors import InputError, NumericsError
from diffsight.features.heads.columns import ArrayColumns, Averaged, Columns, Subset
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.recipes import RECIPES, Recipe, find_recipe
from diffsight.features.heads.scaling import fit_scaling
from diffsight.features.heads.specs import CNN, MLP, Attention, DifFormer, Linear
from diffsight.features.heads.training import Probe, _accuracies, fit_heads

SHORT = Recipe(epochs=3, batch_size=16)
CLASSES = 3


@dataclass
class Spy:
    """Columns that write down what is read."""

    columns: Columns
    reads: list = field(default_factory=list)

    @property
    def names(self):
        return self.columns.names

    @property
    def views(self):
        return self.columns.views

    def __len__(self):
        return len(self.columns)

    def shape(self, column):
        return self.columns.shape(column)

    def rows(self, column, indices, view):
        self.reads.append((column, indices.tolist(), view))
        return self.columns.rows(column, indices, view)


@pytest.fixture(scope="module")
def labels():
    return np.random.default_rng(0).integers(CLASSES, size=50)


@pytest.fixture(scope="module")
def columns(labels):
    """Two columns whose first channels tell the class, with two noisy views."""
    rng = np.random.default_rng(1)
    arrays = {}
    for name, shape in {"dec.1@90": (8, 4, 4), "mid@90": (5, 2, 2)}.items():
        maps = rng.standard_normal((len(labels), 2, *shape))
        maps[np.arange(len(labels)), :, labels] += 1
        arrays[name] = torch.from_numpy(maps * 3 + 10).float()
    return ArrayColumns(arrays)


def train(columns, labels, probes, **options):
    return fit_heads(columns, labels, probes, **({"recipe": SHORT, "device": "cpu"} | options))


def weights(fitted):
    return fitted.head.network.state_dict()


def assert_same(first, second, tolerance=1e-5):
    for key, value in weights(first).items():
        torch.testing.assert_close(value, weights(second)[key], atol=tolerance, rtol=tolerance)


BOTH = ("dec.1@90", "mid@90")
PROBES = [
    Probe(columns=("dec.1@90",), head=Linear(pool=1), learning_rate=1e-3),
    Probe(columns=("dec.1@90",), head=Linear(pool=1), learning_rate=1e-1),
    Probe(columns=("dec.1@90",), head=Linear(pool=2), weight_decay=0.5),
    Probe(columns=("mid@90", "dec.1@90"), head=Linear()),
    Probe(columns=BOTH, head=MLP(hidden=(6,), pool=2)),
    Probe(columns=BOTH, head=CNN(widths=(6,))),
    Probe(columns=("dec.1@90",), head=Attention(blocks=1, heads=2)),
    Probe(columns=BOTH, head=DifFormer(dim=8, blocks=1, heads=2, size=2, norm="batch")),
]


@pytest.mark.parametrize(
    "recipe",
    [
        SHORT,
        replace(RECIPES["gd2024/linear"], epochs=4),
        replace(SHORT, optimizer="sgd", learning_rate=0.05, momentum=0.9),
    ],
    ids=["adamw", "paper", "momentum"],
)
def test_each_probe_gets_what_it_would_get_alone(columns, labels, recipe):
    together = train(columns, labels, PROBES, recipe=recipe, validation=(columns, labels))
    for probe, fitted in zip(PROBES, together, strict=True):
        (alone,) = train(columns, labels, [probe], recipe=recipe)
        assert_same(fitted, alone)
        assert fitted.losses == pytest.approx(alone.losses, rel=1e-5)
        torch.testing.assert_close(fitted.head.logits(columns), alone.head.logits(columns), atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_one_alone(columns, labels):
    state = torch.get_rng_state()
    first, again, other = (train(columns, labels, PROBES[5:6], seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert_same(first, again, tolerance=0)
    assert any(not torch.equal(value, weights(other)[key]) for key, value in weights(first).items())


def test_one_pass_per_epoch_over_the_columns_that_are_needed(columns, labels):
    spy = Spy(columns)
    probes = [replace(PROBES[0], learning_rate=rate) for rate in (0.1, 0.01, 0.001)]
    train(spy, labels, probes, recipe=replace(SHORT, standardize=False))
    assert {name for name, _, _ in spy.reads} == {"dec.1@90"}
    sizes = [len(indices) for _, indices, _ in spy.reads]
    assert sizes == [13, 13, 12, 12] * SHORT.epochs  # 50 rows in batches of at most 16, shared out evenly
    for epoch in range(SHORT.epochs):
        reads = spy.reads[epoch * 4 : (epoch + 1) * 4]
        assert sorted(index for _, indices, _ in reads for index in indices) == list(range(50))
        assert {view for _, _, view in reads} == {epoch % 2}
        assert all(indices == sorted(indices) for _, indices, _ in reads)
    assert spy.reads[0][1] != spy.reads[4][1]


def test_no_step_has_a_single_row(columns, labels):
    spy = Spy(Subset(columns, np.arange(9)))
    (fitted,) = train(spy, labels[:9], PROBES[5:6], recipe=Recipe(epochs=1, batch_size=2))
    assert min(len(indices) for _, indices, _ in spy.reads) == 2
    assert np.isfinite(fitted.losses).all()


def test_every_row_is_scored_once_and_views_are_averaged(columns, labels):
    (fitted,) = train(columns, labels, PROBES[7:])
    spy = Spy(columns)
    logits = fitted.head.logits(spy, batch_size=16)
    for view in (0, 1):
        for name in BOTH:
            seen = [index for column, indices, at in spy.reads if (column, at) == (name, view) for index in indices]
            assert seen == list(range(50))
    single = [
        fitted.head.logits(ArrayColumns({name: array[:, [view]] for name, array in columns.arrays.items()}))
        for view in (0, 1)
    ]
    torch.testing.assert_close(logits, (single[0] + single[1]) / 2, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, fitted.head.logits(columns, batch_size=7), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fitted.head.probabilities(columns).sum(dim=1), torch.ones(50))


def test_evaluation_between_epochs_changes_nothing(columns, labels):
    # The original's evaluation left the heads in evaluation mode, and so froze their BatchNorm.
    for probe in (PROBES[5], PROBES[7]):
        (without,) = train(columns, labels, [probe])
        (watched,) = train(columns, labels, [probe], validation=(columns, labels))
        assert_same(without, watched, tolerance=0)
        assert without.accuracies == ()
        assert len(watched.accuracies) == len(watched.losses) == SHORT.epochs
        logits = watched.head.logits(columns)
        assert watched.accuracies[-1] == (logits.argmax(dim=1).numpy() == labels).mean()
        assert not any(module.training for module in watched.head.network.modules())
        assert not any(parameter.requires_grad for parameter in watched.head.network.parameters())


def test_a_tie_is_an_error(columns, labels):
    flat = ArrayColumns({"dec.1@90": torch.zeros(50, 1, 8, 4, 4)})
    probe = Probe(columns=("dec.1@90",), head=MLP(hidden=(1,), pool=1), learning_rate=1e-30)
    (fitted,) = train(columns, labels, [probe], validation=(flat, labels))
    state = weights(fitted)
    assert fitted.accuracies[-1] in [(labels == index).mean() for index in range(CLASSES)]
    state["layers.2.weight"].zero_()
    state["layers.2.bias"].zero_()
    assert _accuracies([fitted.head], flat, labels) == [0.0]


def test_what_diverges_leaves_the_others_alone(columns, labels):
    wild = Probe(columns=BOTH, head=MLP(hidden=(6,), pool=2), learning_rate=1e30)
    recipe = replace(SHORT, optimizer="sgd", learning_rate=0.01)
    seen = []
    first, bad, last = train(
        columns, labels, [PROBES[0], wild, PROBES[3]], recipe=recipe, progress=lambda *at: seen.append(at)
    )
    assert (first.diverged, bad.diverged, last.diverged) == (False, True, False)
    assert bad.result is None
    assert 1 <= len(bad.losses) < SHORT.epochs
    with pytest.raises(NumericsError, match="diverged in epoch"):
        _ = bad.head
    for probe, fitted in ((PROBES[0], first), (PROBES[3], last)):
        assert_same(fitted, train(columns, labels, [probe], recipe=recipe)[0])
    assert seen == [(step + 1, 12) for step in range(12)]
    with pytest.raises(NumericsError, match="All 2 probes diverged"):
        train(columns, labels, [wild, wild], recipe=recipe)


def test_standardisation_is_scikit_learns():
    rng = np.random.default_rng(2)
    maps = rng.standard_normal((40, 3, 6, 5, 5)).astype(np.float32) * np.geomspace(1e-3, 1e2, 6)[:, None, None]
    maps += np.array([0, 1, -100, 1000, 0.5, -3e4])[:, None, None]
    maps = maps.astype(np.float32)
    maps[:, :, 4] = 0.1  # constant, and not exact in binary
    columns = ArrayColumns({"x": maps})
    scaling = fit_scaling(columns, ["x"])["x"]
    by_channel = maps.astype(np.float64).transpose(0, 1, 3, 4, 2).reshape(-1, 6)
    oracle = StandardScaler().fit(by_channel)
    np.testing.assert_allclose(scaling.mean, oracle.mean_, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scaling.scale, oracle.scale_, rtol=1e-6)
    assert scaling.scale[4] == 1
    assert scaling(torch.from_numpy(maps[:, 0]))[:, 4].abs().max() < 1e-6


def test_standardisation_does_not_depend_on_how_it_is_read(monkeypatch, columns):
    whole = fit_scaling(columns, BOTH)
    monkeypatch.setattr("diffsight.features.heads.scaling._VALUES_AT_ONCE", 3 * 8 * 4 * 4)
    for name, scaling in fit_scaling(columns, BOTH).items():
        torch.testing.assert_close(scaling.mean, whole[name].mean, rtol=1e-7, atol=0)
        torch.testing.assert_close(scaling.scale, whole[name].scale, rtol=1e-6, atol=0)


def test_standardisation_is_of_the_training_rows_and_belongs_to_the_head(columns, labels):
    (fitted,) = train(Subset(columns, np.arange(20)), labels[:20], PROBES[3:4], classes=list("abc"))
    expected = fit_scaling(ArrayColumns({name: array[:20] for name, array in columns.arrays.items()}), BOTH)
    for name in BOTH:
        torch.testing.assert_close(fitted.head.scaling[name].mean, expected[name].mean)
    assert fitted.head.classes == ("a", "b", "c")
    scaled = {name: expected[name](columns.arrays[name][:, 0]) for name in BOTH}
    torch.testing.assert_close(
        fitted.head.logits(Subset(ArrayColumns({n: a[:, :1] for n, a in columns.arrays.items()}), np.arange(50))),
        fitted.head.network(scaled),
        atol=1e-5,
        rtol=1e-5,
    )
    assert train(columns, labels, PROBES[:1], recipe=replace(SHORT, standardize=False))[0].head.scaling == {}


def test_the_papers_recipe_is_plain_sgd_with_torchs_step_schedule():
    recipe = RECIPES["gd2024/attention"]
    assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.epochs) == ("sgd", 0, 0, 28)
    assert (recipe.learning_rate, recipe.batch_size, recipe.standardize) == (5e-2, 128, False)
    assert RECIPES["gd2024/linear"].learning_rate == 1e-2
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
    for epoch in range(28):
        assert recipe.factor(epoch, 0.0) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert [Recipe().factor(0, share) for share in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


def test_training_is_gradient_descent_on_cross_entropy(columns, labels):
    probe = Probe(columns=("mid@90",), head=Linear())
    recipe = Recipe(optimizer="sgd", learning_rate=0.1, weight_decay=0.01, schedule="constant", epochs=2, batch_size=50)
    (fitted,) = train(columns, labels, [probe], recipe=recipe, seed=5)
    layer = probe.head.build({"mid@90": (5, 2, 2)}, CLASSES, torch.Generator().manual_seed(5)).layers[0]
    weight, bias = (parameter.detach().double() for parameter in layer.parameters())
    scaling = fit_scaling(columns, ["mid@90"])["mid@90"]
    losses = []
    for view in range(2):
        x = scaling(columns.arrays["mid@90"][:, view]).flatten(1).double()
        p = (x @ weight.T + bias).softmax(dim=1)
        losses.append(-float(p[range(50), labels].log().mean()))
        delta = (p - torch.eye(CLASSES, dtype=torch.float64)[labels]) / 50
        weight = weight - 0.1 * (delta.T @ x + 0.01 * weight)
        bias = bias - 0.1 * (delta.sum(dim=0) + 0.01 * bias)
    torch.testing.assert_close(weights(fitted)["layers.0.weight"].double(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights(fitted)["layers.0.bias"].double(), bias, atol=1e-6, rtol=1e-5)
    assert fitted.losses == pytest.approx(losses, rel=1e-5)


def test_columns_may_be_memory_mapped_half_precision(tmp_path, columns, labels):
    array = columns.arrays["mid@90"].half().numpy()
    np.save(tmp_path / "mid.npy", array)
    mapped = ArrayColumns({"mid@90": np.load(tmp_path / "mid.npy", mmap_mode="r")})
    probe = Probe(columns=("mid@90",), head=Linear())
    assert_same(*(train(each, labels, [probe])[0] for each in (mapped, ArrayColumns({"mid@90": array}))), tolerance=0)


def test_averaged_columns_have_one_view(columns):
    averaged = Averaged(columns)
    assert (len(averaged), averaged.views, averaged.names) == (50, 1, BOTH)
    mean = columns.arrays["mid@90"][[3, 4]].mean(dim=1)
    torch.testing.assert_close(averaged.rows("mid@90", np.array([3, 4]), 0), mean)


def test_gradients_are_on_while_training_wherever_it_is_called_from(columns, labels):
    with torch.no_grad():
        (fitted,) = train(columns, labels, PROBES[:1])
    assert_same(fitted, train(columns, labels, PROBES[:1])[0], tolerance=0)


@pytest.mark.parametrize(
    ("head", "least"),
    [("linear", 0.915), ("mlp", 0.945), ("logistic", 0.925), ("knn", 0.95), (CNN(widths=(32, 64)), 0.91)],
    ids=["linear", "mlp", "logistic", "knn", "cnn"],
)
def test_digits_are_recognised(head, least):
    images, labels = load_digits(return_X_y=True)
    maps = images.reshape(-1, 1, 1, 8, 8)
    train, test = np.arange(0, len(labels), 2), np.arange(1, len(labels), 2)
    fitted = fit_head(ArrayColumns({"x": maps[train]}), labels[train], head, recipe=Recipe(epochs=15), device="cpu")
    accuracy = (fitted.logits(ArrayColumns({"x": maps[test]})).argmax(dim=1).numpy() == labels[test]).mean()
    assert accuracy > least


def test_values_that_are_not_finite_name_their_row(columns, labels):
    for value, word in ((float("nan"), "NaN"), (float("inf"), "inf")):
        broken = {name: array.clone() for name, array in columns.arrays.items()}
        broken["mid@90"][17, 1, 2, 0, 1] = value
        for recipe in (SHORT, replace(SHORT, standardize=False)):
            with pytest.raises(InputError, match=rf"Column 'mid@90' holds {word} in row 17 \(view 1\)"):
                train(ArrayColumns(broken), labels, PROBES[3:4], recipe=recipe)
        (fitted,) = train(columns, labels, PROBES[3:4])
        with pytest.raises(InputError, match="row 17"):
            fitted.head.logits(ArrayColumns(broken))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(49, dtype=int)}, "49 labels and 50 rows"),
        ({"labels": np.zeros(50, dtype=int)}, "at least 2 classes"),
        ({"labels": np.arange(50) - 1}, "from 0 to 48; got -1"),
        ({"classes": ["a", "b"]}, "from 0 to 1; got 0 to 2"),
        ({"probes": []}, "no probe"),
        ({"probes": [Probe(columns=("dec.2@90",), head=Linear())]}, r"no column 'dec.2@90'. Did you mean 'dec.1@90'"),
        ({"probes": [Probe(columns=("mid@90", "mid@90"), head=Linear())]}, "several different ones"),
        ({"probes": [Probe(columns=(), head=Linear())]}, "needs one column"),
        ({"recipe": "gd2024/liner"}, "'gd2024/linear'"),
        ({"validation": (0, np.zeros(7, dtype=int))}, "7 labels and 50 rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_together_is_refused(columns, labels, change, message):
    arguments = {"labels": labels, "probes": PROBES[:1], "recipe": SHORT} | change
    if "validation" in arguments:
        arguments["validation"] = (columns, arguments["validation"][1])
    with pytest.raises(InputError, match=message):
        fit_heads(columns, arguments.pop("labels"), arguments.pop("probes"), device="cpu", **arguments)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "no column"),
        ({"x": np.zeros((3, 1, 4))}, r"axes \(rows, views"),
        ({"x": np.zeros((3, 0, 4, 1, 1))}, "none of them empty"),
        ({"x": np.zeros((3, 1, 4, 1, 1)), "y": np.zeros((4, 1, 4, 1, 1))}, "agree in rows and views"),
    ],
)
def test_arrays_that_are_no_columns_are_refused(arrays, message):
    with pytest.raises(InputError, match=message):
        ArrayColumns(arrays)


def test_other_maps_than_those_fitted_to_are_refused(columns, labels):
    (fitted,) = train(columns, labels, PROBES[:1])
    with pytest.raises(
        InputError, match=r"fitted to maps of \(8, 4, 4\) in column 'dec\.1@90'; these have \(8, 2, 2\)"
    ):
        fitted.head.logits(ArrayColumns({"dec.1@90": np.zeros((2, 1, 8, 2, 2))}))
    with pytest.raises(InputError, match=r"no column 'dec\.1@90'"):
        fitted.head.logits(ArrayColumns({"mid@90": np.zeros((2, 1, 8, 4, 4))}))
    with pytest.raises(InputError, match="0 rows"):
        fitted.head.logits(Subset(columns, np.arange(0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "at least 1 epoch"),
        ({"batch_size": 1}, "at least 2 rows"),
        ({"learning_rate": 0.0}, "positive learning rate"),
        ({"learning_rate": float("nan")}, "positive learning rate"),
        ({"weight_decay": -1.0}, "no negative weight decay"),
        ({"optimizer": "sgd"}, "give one"),
        ({"momentum": 0.9}, "momentum is an option of SGD"),
        ({"optimizer": "sgd", "learning_rate": 1.0, "momentum": 1.0}, "below 1"),
    ],
    ids=str,
)
def test_recipes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Recipe(**options)
    with pytest.raises(InputError, match="more than 0"):
        Probe(columns=("x",), head=Linear(), learning_rate=0.0)


def test_recipes_go_by_name_or_as_they_are():
    assert find_recipe(None) == Recipe()
    assert find_recipe(SHORT) is SHORT
    assert find_recipe("gd2024/diffeed").batch_size == 16
