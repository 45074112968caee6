import json
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.preprocessing import KernelCenterer

from diffsight.errors import InputError
from diffsight.features.cka import CKAAccumulator, CKAWarning, cka, cka_matrix
from diffsight.features.hsic import hsic

ESTIMATORS = ("unbiased", "biased")
KERNELS = ("linear", "rbf")


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def related(rows, *widths, seed=0, noise=1.0):
    """Columns that see the same eight latent numbers of each image, under noise."""
    latent = gaussian(rows, 8, seed=seed)
    return [
        latent @ gaussian(8, width, seed=seed + index) + noise * gaussian(rows, width, seed=seed + 100 + index)
        for index, width in enumerate(widths, start=1)
    ]


def gram(x):
    return x @ x.T


def trace_form(k, l, estimator):  # noqa: E741
    """HSIC as the papers print it: Gretton et al. 2005, and Song et al. 2007, eq. 5."""
    n = len(k)
    if estimator == "biased":
        h = torch.eye(n).double() - 1 / n
        return float(torch.trace(k @ h @ l @ h) / (n - 1) ** 2)
    k, l = k - torch.diag(k.diagonal()), l - torch.diag(l.diagonal())  # noqa: E741
    ones = torch.ones(n).double()
    value = torch.trace(k @ l) + (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return float((value - 2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3)))


def naive(batches, estimator="unbiased"):
    """CKA of (x, y) batches pair by pair, from the trace form: HSIC averaged over the images, then the ratio."""
    grams = [(len(x), gram(x), gram(y)) for x, y in batches]
    xy, xx, yy = (
        sum(n * trace_form(pair[a], pair[b], estimator) for n, *pair in grams) for a, b in [(0, 1), (0, 0), (1, 1)]
    )
    return xy / (xx * yy) ** 0.5


def null_deviation(n):
    return (2 / (n * (n - 3))) ** 0.5


@pytest.mark.parametrize("n", [4, 5, 8, 33])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hsic_is_the_trace_form(n, estimator):
    x, y = related(n, 3, 9, seed=n)
    expected = trace_form(gram(x), gram(y), estimator)
    assert hsic(gram(x), gram(y), estimator=estimator) == pytest.approx(expected, rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("n", [4, 5, 6])
def test_unbiased_hsic_is_the_mean_over_distinct_images(n):
    # The population's HSIC is E[k(1,2) l(1,2)] + E[k(1,2)] E[l(3,4)] - 2 E[k(1,2) l(1,3)].
    k, l = (gram(x) for x in related(n, 2, 3, seed=n))  # noqa: E741
    terms = [k[a, b] * (l[a, b] + l[c, d] - 2 * l[a, c]) for a, b, c, d in permutations(range(n), 4)]
    assert hsic(k, l) == pytest.approx(float(sum(terms)) / len(terms), rel=1e-10)


def test_unbiased_hsic_ignores_the_diagonals():
    k, l = (gram(x) for x in related(9, 4, 4))  # noqa: E741
    assert hsic(k + torch.diag(gaussian(9)), l) == pytest.approx(hsic(k, l), rel=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 3, 2, 2), (30,)], ids=str)
def test_a_column_is_like_itself(shape, estimator, kernel):
    x = gaussian(*shape)
    assert cka(x, x, estimator=estimator, kernel=kernel) == pytest.approx(1, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(6, 20),
    width=st.integers(2, 24),
    log_scale=st.floats(-20, 20),
    shift=st.floats(-100, 100),
    estimator=st.sampled_from(ESTIMATORS),
    kernel=st.sampled_from(KERNELS),
)
def test_rotation_scale_and_shift_change_nothing(seed, rows, width, log_scale, shift, estimator, kernel):
    x, y = related(rows, width, 5, seed=seed)
    rotation = torch.linalg.qr(gaussian(width, width, seed=seed)).Q
    # A shift by many standard deviations costs digits of the activations themselves.
    moved = (x @ rotation + shift) * 10**log_scale
    before, after = (cka(column, y, estimator=estimator, kernel=kernel) for column in (x, moved))
    assert after == pytest.approx(before, abs=1e-8)


def test_other_linear_maps_do_change_it():
    x = gaussian(60, 10)
    stretched = x * torch.tensor([10.0] + [1.0] * 9)
    assert cka(x, stretched) < 0.6


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_feature_form_is_gram_form(estimator):
    x, y = related(64, 5, 7)
    wide = torch.nn.functional.pad(x, (0, 100))  # the same Gram matrix, from more features than there are images
    expected = naive([(x, y)], estimator)
    assert cka(x, y, estimator=estimator) == pytest.approx(expected, abs=1e-10)
    assert cka(wide, y, estimator=estimator) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("widths", [(3, 5, 2), (30, 200, 5)], ids=["features", "grams"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_pairs_at_once_are_the_pairs_one_by_one(estimator, widths):
    columns = dict(zip("abc", related(40, *widths), strict=True))
    matrix = cka_matrix(columns, estimator=estimator, batch_size=None)
    expected = [[naive([(x, y)], estimator) for y in columns.values()] for x in columns.values()]
    np.testing.assert_allclose(matrix.values, expected, rtol=0, atol=1e-10)
    across = cka_matrix({"b": columns["b"]}, columns, estimator=estimator, batch_size=None)
    np.testing.assert_allclose(across.values, np.array(expected)[1:2], rtol=0, atol=1e-10)
    assert (across.names_x, across.names_y, across.values.dtype) == (("b",), ("a", "b", "c"), np.float64)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_order_of_images_does_not_matter_at_once(estimator, kernel):
    x, y = related(50, 20, 30)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    options = {"estimator": estimator, "kernel": kernel}
    assert cka(x[order], y[order], **options) == pytest.approx(cka(x, y, **options), abs=1e-12)
    assert abs(cka(x[order], y, **options) - cka(x, y, **options)) > 0.1


def test_unbiased_law_of_unrelated_columns():
    # The distribution over pairings is exact: mean 0 and variance 2 / (n (n - 3)), here by enumeration for n = 6.
    x, y = gaussian(6, 3), gaussian(6, 2, seed=1).exp()
    columns = {str(order): y[list(order)] for order in permutations(range(6))}
    values = cka_matrix({"x": x}, columns, batch_size=None).values
    assert values.shape == (1, 720)
    assert values.mean() == pytest.approx(0, abs=1e-10)
    assert (values**2).mean() == pytest.approx(null_deviation(6) ** 2, rel=1e-8)


@pytest.mark.parametrize(("n", "seeds"), [(32, 30), (256, 8)])
def test_independent_gaussians(n, seeds):
    p = 512
    pairs = [(gaussian(n, p, seed=2 * seed), gaussian(n, p, seed=2 * seed + 1)) for seed in range(seeds)]
    unbiased = np.mean([cka(x, y) for x, y in pairs])
    biased = np.mean([cka(x, y, estimator="biased") for x, y in pairs])
    assert abs(unbiased) < 4 * null_deviation(n) / seeds**0.5
    assert biased == pytest.approx(p / (p + n), abs=0.02)  # 0.94 and 0.67


def test_unbiased_minibatches_are_as_good_as_all_images():
    x, y = related(768, 128, 256, noise=5.0)
    sizes = (16, 64, 256, None)
    unbiased, biased = (
        [cka_matrix({"x": x}, {"y": y}, estimator=name, batch_size=size).values[0, 0] for size in sizes]
        for name in ESTIMATORS
    )
    assert max(unbiased) - min(unbiased) < 0.03
    assert max(biased) - min(biased) > 0.3


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_hsic_is_averaged_before_the_ratio(estimator):
    # Equal columns on a large scale, then unrelated ones on a small scale, which should hardly count.
    x, y = gaussian(40, 4), gaussian(40, 4, seed=1) / 10
    x[20:] /= 10
    y[:20] = x[:20]
    batches = [(x[:20], y[:20]), (x[20:], y[20:])]
    value = cka_matrix({"x": x}, {"y": y}, estimator=estimator, batch_size=20).values[0, 0]
    assert value == pytest.approx(naive(batches, estimator), abs=1e-10)
    assert value > 0.999
    assert np.mean([naive([batch], estimator) for batch in batches]) < 0.7


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_batches_count_by_their_rows(estimator):
    x, y = related(30, 50, 60)
    bounds = [0, 16, 25, 30]
    sums = CKAAccumulator(["x"], ["y"], estimator=estimator)
    for start, stop in pairwise(bounds):
        sums.update({"x": x[start:stop]}, {"y": y[start:stop]})
    expected = naive([(x[start:stop], y[start:stop]) for start, stop in pairwise(bounds)], estimator)
    assert sums.result().values[0, 0] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("rows", "batch_size", "batches"),
    [(40, None, 1), (40, 40, 1), (40, 256, 1), (41, 40, 2), (10, 4, 2), (7, 4, 1)],
)
def test_every_image_is_used_in_batches_of_equal_size(rows, batch_size, batches):
    x, y = related(rows, 50, 60)
    matrix = cka_matrix({"x": x}, {"y": y}, batch_size=batch_size)
    assert (matrix.images, matrix.left_out, matrix.batches) == (rows, 0, batches)
    bounds = [rows * index // batches for index in range(batches + 1)]
    expected = naive([(x[start:stop], y[start:stop]) for start, stop in pairwise(bounds)])
    assert matrix.values[0, 0] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("two_sides", [False, True], ids=["one side", "two sides"])
def test_a_stream_is_like_all_at_once(kernel, two_sides):
    columns = dict(zip("abc", related(24, 5, 80, 7), strict=True))
    others = {"b": columns["a"], "d": columns["b"] + 1} if two_sides else None
    sums = CKAAccumulator(list(columns), list(others) if others else None, kernel=kernel)
    for start in range(0, 24, 8):
        part = {name: column[start : start + 8] for name, column in columns.items()}
        sums.update(part, {name: column[start : start + 8] for name, column in others.items()} if others else None)
    streamed, at_once = sums.result(), cka_matrix(columns, others, kernel=kernel, batch_size=8)
    np.testing.assert_array_equal(streamed.values, at_once.values)
    assert (streamed.images, streamed.batches) == (24, 3)


def test_batches_too_small_are_left_out_and_counted():
    x = gaussian(19, 30)
    sums = CKAAccumulator(["x"])
    sums.update({"x": x[:2]})
    with pytest.raises(InputError, match="No batch had the 4 rows"):
        sums.result()
    sums.update({"x": x[2:16]})
    sums.update({"x": x[16:]})
    matrix = sums.result()
    assert (matrix.images, matrix.left_out, matrix.batches) == (14, 5, 1)
    assert "14 (5 left out)" in str(matrix)


@pytest.mark.parametrize("bandwidth", [0.2, 0.5, 2.0])
def test_rbf_is_scikit_learns(bandwidth):
    x, y = related(25, 6, 40)
    kernels = []
    for column in (x, y):
        distances = np.sort(torch.pdist(column).numpy())
        sigma = bandwidth * distances[(len(distances) - 1) // 2]
        kernels.append(rbf_kernel(column.numpy(), gamma=1 / (2 * sigma**2)))
    centred = [KernelCenterer().fit_transform(kernel) for kernel in kernels]
    expected = (centred[0] * centred[1]).sum() / np.prod([np.linalg.norm(kernel) for kernel in centred])
    assert cka(x, y, kernel="rbf", estimator="biased", bandwidth=bandwidth) == pytest.approx(expected, abs=1e-10)
    k, l = map(torch.from_numpy, kernels)  # noqa: E741
    expected = trace_form(k, l, "unbiased") / (trace_form(k, k, "unbiased") * trace_form(l, l, "unbiased")) ** 0.5
    assert cka(x, y, kernel="rbf", bandwidth=bandwidth) == pytest.approx(expected, abs=1e-10)


def test_wide_rbf_is_linear():
    # Alvarez, arXiv:2112.09305.
    x, y = related(30, 6, 40)
    assert cka(x, y, kernel="rbf", bandwidth=1000.0) == pytest.approx(cka(x, y), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_does_not_overflow(dtype, device):
    x, y = ((1e4 * column / column.std() + 1e4).to(dtype) for column in related(20, 30, 400))
    value = cka(x.to(device), y.to(device))
    assert value == pytest.approx(naive([(x.double(), y.double())]), abs=1e-8)
    assert cka(x.to(device), y.to(device), kernel="rbf") == pytest.approx(cka(x, y, kernel="rbf"), abs=1e-8)


def test_arrays_views_and_tensors_with_gradients_are_welcome():
    x, y = related(12, 24, 30)
    array = x.numpy().copy()
    array.flags.writeable = False  # as a memory map that is open for reading
    image_like = y.reshape(12, 2, 3, 5).permute(0, 2, 3, 1).requires_grad_()
    assert cka(array, image_like) == pytest.approx(cka(x, y), abs=1e-12)


def undefined(columns, **options):
    """The matrix, and what is said of it."""
    with pytest.warns(CKAWarning) as caught:
        matrix = cka_matrix(columns, **options)
    (warning,) = caught
    return matrix, str(warning.message)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("width", [3, 300])
def test_constant_column_is_nan_with_a_warning_and_leaves_the_others_alone(width, estimator, kernel):
    x, y = related(30, width, width)
    # The mean of ten equal float64 numbers often is not quite that number.
    columns = {"x": x, "flat": gaussian(width, seed=9).expand(30, width), "dead": torch.zeros(30, 5), "y": y}
    matrix, message = undefined(columns, estimator=estimator, kernel=kernel, batch_size=10)
    assert "'flat' (constant), 'dead' (constant)." in message
    without = cka_matrix({"x": x, "y": y}, estimator=estimator, kernel=kernel, batch_size=10)
    np.testing.assert_allclose(matrix.values[::3, ::3], without.values, rtol=0, atol=1e-12)
    assert np.isnan(matrix.values[1:3]).all()
    assert np.isnan(matrix.values[:, 1:3]).all()


@pytest.mark.parametrize("width", [5, 50], ids=["features", "grams"])
def test_one_different_image_is_no_structure_and_not_a_ratio_of_rounding_errors(width):
    y = gaussian(40, 4)
    for seed in range(10):
        x = gaussian(width, seed=seed).repeat(40, 1)
        x[seed] += gaussian(width)
        matrix, message = undefined({"x": x, "y": y})
        assert np.isnan(matrix.values).tolist() == [[True, True], [True, False]]
        assert "'x' (all images but one are alike" in message
        assert "'y'" not in message
        assert np.isfinite(cka(x, y, estimator="biased"))


def test_orthogonal_images_have_no_structure():
    _, message = undefined({"x": torch.eye(20, 200).double() * gaussian(20, 1)})
    assert "none is like another" in message


def test_rbf_without_a_width():
    x = torch.cat([torch.zeros(15, 6).double(), gaussian(5, 6)])
    matrix, message = undefined({"x": x, "y": gaussian(20, 3)}, kernel="rbf")
    assert "'x' (its median distance is 0" in message
    assert np.isnan(matrix.values).sum() == 3


def test_single_value_warns_too():
    with pytest.warns(CKAWarning, match="'y' of the second side"):
        assert np.isnan(cka(gaussian(20, 3), torch.ones(20, 3)))


@pytest.mark.parametrize("width", [3, 60])
def test_column_may_be_constant_in_some_batches(width):
    x, y = related(30, width, 50)
    x[:10] = 3
    value = cka_matrix({"x": x}, {"y": y}, batch_size=10).values[0, 0]
    batches = [(x[start : start + 10], y[start : start + 10]) for start in (0, 10, 20)]
    assert value == pytest.approx(naive(batches), abs=1e-10)


def test_matrix_as_json_and_text():
    x, y = related(30, 20, 20)
    matrix, _ = undefined({"enc.1": x, "a long name": y, "dead": torch.zeros(30, 2)}, kernel="rbf", batch_size=15)
    values = json.loads(json.dumps(matrix.to_dict(), allow_nan=False))
    assert values.pop("values") == [[*matrix.values[0, :2], None], [*matrix.values[1, :2], None], [None, None, None]]
    assert values == {
        "names_x": ["enc.1", "a long name", "dead"],
        "names_y": ["enc.1", "a long name", "dead"],
        "images": 30,
        "left_out": 0,
        "batches": 2,
        "estimator": "unbiased",
        "kernel": "rbf",
        "bandwidth": 0.5,
    }
    title, header, first, _, last = str(matrix).splitlines()
    assert title == "unbiased rbf CKA, images: 30, batches: 2"
    assert header.split(maxsplit=1) == ["enc.1", "a long name         dead"]
    assert first.startswith("enc.1")
    assert "1.00" in first
    assert last.split() == ["dead", "nan", "nan", "nan"]


def columns(rows=8, **changes):
    return {"x": gaussian(rows, 3), "y": gaussian(rows, 5)} | changes


def holed(value):
    x = gaussian(12, 4)
    x[9, 2] = x[10, 0] = value
    return x


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cka(gaussian(3, 2), gaussian(3, 2)), "unbiased estimator needs at least 4 rows at once; got 3"),
        (lambda: cka(gaussian(1, 2), gaussian(1, 2), estimator="biased"), "at least 2 rows at once; got 1"),
        (lambda: cka(gaussian(0, 2), gaussian(0, 2)), "got 0"),
        (lambda: cka(gaussian(8, 2), gaussian(9, 2)), r"columns of \[8, 9\] rows"),
        (lambda: cka_matrix(columns(z=gaussian(9, 2))), r"columns of \[8, 9\] rows"),
        (lambda: cka_matrix(columns(), batch_size=3), "at least 4 rows at once; got 3"),
        (lambda: cka_matrix(columns(12, bad=holed(torch.nan)), batch_size=4), "'bad' is not finite in row 9"),
        (lambda: cka_matrix(columns(12), {"bad": holed(torch.inf)}), "'bad' of the second side is not finite in row 9"),
        (lambda: cka_matrix({}), "Columns need names"),
        (lambda: cka_matrix(columns(), {}), "Columns need names"),
        (lambda: cka_matrix({"": gaussian(8, 2)}), "Columns need names"),
        (lambda: CKAAccumulator(["a", "b", "a"]), "used twice"),
        (lambda: cka_matrix(columns(), estimator="unbaised"), "Did you mean 'unbiased'"),
        (lambda: cka_matrix(columns(), kernel="rfb"), "Did you mean 'rbf'"),
        (lambda: cka(gaussian(8, 2), gaussian(8, 2), kernel="rbf", bandwidth=0), "bandwidth"),
        (lambda: cka(gaussian(8, 2), gaussian(8, 2), bandwidth=torch.nan), "bandwidth"),
        (lambda: CKAAccumulator(["x"]).update(columns()), r"must have the columns \['x'\]; got \['x', 'y'\]"),
        (lambda: CKAAccumulator(["x", "y"], ["z"]).update(columns()), r"must have the columns \['z'\]; got \[\]"),
        (lambda: CKAAccumulator(["x"]).result(), "No batch"),
        (lambda: hsic(torch.eye(5), torch.eye(6)), r"\(5, 5\) and \(6, 6\)"),
        (lambda: hsic(torch.ones(5, 4), torch.ones(5, 4)), "square"),
        (lambda: hsic(torch.eye(3), torch.eye(3)), "at least 4 rows"),
        (lambda: hsic(torch.eye(5), torch.eye(5), estimator="b"), "Unknown estimator 'b'"),
    ],
)
def test_what_makes_no_sense_is_refused(call, says):
    with pytest.raises(InputError, match=says):
        call()


def test_refused_batch_leaves_no_trace():
    x = gaussian(12, 40)
    sums = CKAAccumulator(["x", "y"])
    sums.update({"x": x, "y": x[:, :30]})
    before = sums.result().to_dict()
    with pytest.raises(InputError, match="row 21"):
        sums.update({"x": x, "y": holed(torch.nan)})
    assert sums.result().to_dict() == before
