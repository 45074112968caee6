import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from diffsight.backbones.encoding import by_content
from diffsight.backbones.layers import intermediates
from diffsight.data.images import images_from
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ImageError, InputError, PromptError
from diffsight.features.extraction import plan
from diffsight.features.extractor import FeatureExtractor
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool


def straightforward(backbone, picture, layer, level, draw=0, seed=0):
    """One image, one layer, one timestep, one draw, the whole network: the oracle."""
    ids = []
    list(by_content(images_from([picture]), ids))
    x0 = backbone.encode(backbone.transform(picture)[None])
    eps = NoiseBank(seed).noise(ids[0], [draw], x0.shape[1:])
    index = torch.tensor([level])
    alpha, sigma = backbone.schedule.at(index, like=x0)
    (layer,) = [known for known in backbone.layers if known.name == layer]
    args = (alpha * x0 + sigma * eps, index, backbone.condition(()).nulls(1))
    return intermediates(backbone, *args, [layer], stop_early=False)[0]


@pytest.mark.parametrize("name", ["sd", "dit"])
def test_batches_of_everything_equal_one_thing_at_a_time(name, request, pictures):
    backbone = request.getfixturevalue(name)
    layers = [layer.name for layer in backbone.layers][::-1]
    levels = [300, 20]
    noise = Noise(kind="resample", draws=2)
    maps = FeatureExtractor(backbone, layers, levels, noise=noise, pool=None, batch_size=7).maps(pictures[:5])
    assert list(maps) == [f"{layer}@{level}" for level in levels for layer in layers]
    for number, picture in enumerate(pictures[:5]):
        for layer in layers:
            for level in levels:
                for draw in range(2):
                    expected = straightforward(backbone, picture, layer, level, draw)[0]
                    found = maps[f"{layer}@{level}"][number, draw]
                    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_features_depend_neither_on_batch_nor_on_neighbours(sd, pictures, batch_size):
    extractor = FeatureExtractor(sd, ["dec.0"], [50, 500], batch_size=batch_size)
    whole = FeatureExtractor(sd, ["dec.0"], [50, 500]).transform(pictures)
    order = np.random.default_rng(1).permutation(len(pictures))[:18]
    np.testing.assert_allclose(extractor.transform([pictures[i] for i in order]), whole[order], atol=1e-5)


def test_mean_noise_is_the_mean_of_the_draws(sd, pictures):
    apart = FeatureExtractor(sd, ["mid"], [100], noise=Noise(kind="resample", draws=3)).maps(pictures[:4])["mid@100"]
    mean = FeatureExtractor(sd, ["mid"], [100], noise=Noise(kind="mean", draws=3)).maps(pictures[:4])["mid@100"]
    torch.testing.assert_close(mean[:, 0], apart.mean(1))
    assert apart.shape[1] == 3
    assert not torch.allclose(apart[:, 0], apart[:, 1])


def test_fixed_noise_is_the_first_draw(sd, pictures):
    fixed = FeatureExtractor(sd, ["mid"], [100]).maps(pictures[:4])["mid@100"]
    several = FeatureExtractor(sd, ["mid"], [100], noise=Noise(kind="resample", draws=2)).maps(pictures[:4])["mid@100"]
    torch.testing.assert_close(fixed[:, 0], several[:, 0])


def test_no_noise_shows_the_scaled_image(sd, pictures):
    found = FeatureExtractor(sd, ["enc.0"], [999], noise="none", pool=None).maps(pictures[:1])["enc.0@999"][0, 0]
    x0 = sd.encode(sd.transform(pictures[0])[None])
    expected = sd.network.conv_in(x0 * float(sd.schedule.alpha[999]))[0]
    torch.testing.assert_close(found, expected)


def test_shared_noise_is_the_same_at_all_timesteps_and_only_then():
    noise = Noise(kind="resample", draws=2).eps("x", 1, [10, 20], (4, 8, 8)).unflatten(0, (2, 2))
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert not torch.equal(noise[0], noise[1])
    apart = Noise(kind="resample", draws=2, shared=False).eps("x", 1, [10, 20], (4, 8, 8))
    assert abs(float(torch.corrcoef(apart.flatten(1)).fill_diagonal_(0).abs().max())) < 0.3
    # A timestep's noise does not depend on which others were asked for.
    alone = Noise(kind="resample", draws=2, shared=False).eps("x", 1, [20], (4, 8, 8))
    assert torch.equal(alone, apart[1::2])


def test_views_are_told_apart_and_the_first_is_the_image(sd, pictures):
    views = FeatureExtractor(sd, ["mid"], [100], views=3).maps(pictures[:3])["mid@100"]
    alone = FeatureExtractor(sd, ["mid"], [100]).maps(pictures[:3])["mid@100"]
    assert views.shape[1] == 3
    torch.testing.assert_close(views[:, :1], alone)
    assert not torch.allclose(views[:, 1], views[:, 2])


def test_no_class_reaches_the_model_unless_it_is_asked_for(sd, dit, pictures):
    plain = FeatureExtractor(sd, ["mid"], [100])
    assert torch.equal(
        plain.fit().plan_.condition.null["encoder_hidden_states"], sd.condition([""]).tensors["encoder_hidden_states"]
    )
    prompted = FeatureExtractor(sd, ["mid"], [100], prompt="a cat")
    assert not np.allclose(plain.transform(pictures[:2]), prompted.transform(pictures[:2]))
    assert plain.plan_.fingerprint()["prompt"] == ""
    assert prompted.plan_.fingerprint()["prompt"] == "a cat"
    assert int(plan(dit).condition.null["class_labels"]) == dit.network.config.num_embeds_ada_norm
    with pytest.raises(PromptError, match="not one of them"):
        plan(dit, prompt="a photo")


def test_defaults_are_the_depths_of_the_papers(sd, dit):
    assert plan(sd).columns == (f"dec.0@{sd.schedule.nearest_level(2.35)}",)  # Block 6 of 9, as 24 of 37.
    assert plan(dit).layers[0].name == "block.0"
    assert float(sd.schedule.log_snr[plan(sd).levels[0]]) == pytest.approx(2.35, abs=0.02)


def test_transform_flattens_channel_by_channel(sd, pictures):
    extractor = FeatureExtractor(sd, ["dec.0", "mid"], [100, 20], pool=2)
    maps = extractor.maps(pictures[:3])
    expected = torch.cat([maps[name].flatten(1) for name in extractor.columns_], dim=1).numpy()
    flat = extractor.transform(pictures[:3])
    np.testing.assert_array_equal(flat, expected)
    assert flat[1, 2 * 4 + 1 * 2 + 0] == maps["dec.0@100"][1, 0, 2, 1, 0]


def test_it_is_a_scikit_learn_transformer(sd, pictures):
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    extractor = FeatureExtractor(sd, ["mid"], [100], pool=Pool("gem", 2))
    assert clone(extractor).get_params() == extractor.get_params()
    assert clone(extractor).backbone is sd  # Not copied.
    labels = [0, 1] * 10
    model = make_pipeline(extractor, LogisticRegression(max_iter=2000, C=100.0)).fit(pictures[:20], labels)
    assert model.predict(pictures[:20]).shape == (20,)


def test_a_bad_image_is_a_failure_and_stops_nobody(sd, pictures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    mixed = [*pictures[:3], broken, *pictures[3:6]]
    (chunk,) = plan(sd, layers=["mid"]).run(images_from(mixed))
    assert chunk.positions == (0, 1, 2, 4, 5, 6)
    assert [one.position for one in chunk.failures] == [3]
    assert "broken.png" in chunk.failures[0].reason
    alone = FeatureExtractor(sd, ["mid"]).transform(pictures[:6])
    np.testing.assert_allclose(next(iter(chunk.features.values()))[:, 0].flatten(1).numpy(), alone, atol=1e-5)
    with pytest.raises(ImageError, match=r"X\[3\].*broken.png"):
        FeatureExtractor(sd, ["mid"]).transform(mixed)


def test_a_value_that_is_not_finite_is_a_failure_of_its_image(sd, pictures, monkeypatch):
    def poisoned(self, x_t, index, condition):
        x_t = x_t.clone()
        x_t[1] = float("nan")
        return original(self, x_t, index, condition)

    original = type(sd).predict
    monkeypatch.setattr(type(sd), "predict", poisoned)
    (chunk,) = plan(sd, layers=["enc.0"]).run(images_from(pictures[:4]))
    assert chunk.positions == (0, 2, 3)
    assert chunk.failures[0].position == 1
    assert "not finite" in chunk.failures[0].reason


def test_out_of_memory_halves_the_batch(sd, pictures, monkeypatch):
    sizes = []

    def small(self, x_t, index, condition):
        sizes.append(len(x_t))
        if len(x_t) > 4:
            raise torch.OutOfMemoryError("too much")
        return original(self, x_t, index, condition)

    original = type(sd).predict
    expected = FeatureExtractor(sd, ["mid"]).transform(pictures[:16])
    monkeypatch.setattr(type(sd), "predict", small)
    np.testing.assert_allclose(FeatureExtractor(sd, ["mid"]).transform(pictures[:16]), expected, atol=1e-5)
    assert max(sizes) == 16
    assert min(sizes) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ["dec.7"]}, "no layer 'dec.7'"),
        ({"layers": ["mid", "b5"]}, "the same one"),
        ({"layers": []}, "list of names"),
        ({"timesteps": [1000]}, "1000 is not a timestep.*0 .clean. to 999"),
        ({"timesteps": [-1]}, "-1 is not a timestep"),
        ({"timesteps": [90, 20, 90]}, "timestep 90 is there twice"),
        ({"timesteps": []}, "at least one timestep"),
        ({"views": 0}, "at least 1; got 0"),
        ({"noise": "fresh"}, "Unknown noise 'fresh'"),
        ({"pool": 0}, "at least 1; got 0"),
    ],
)
def test_what_makes_no_sense_is_refused(sd, options, message):
    with pytest.raises(InputError, match=message):
        FeatureExtractor(sd, **options).fit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "fixed", "draws": 2}, "does not go with draws=2"),
        ({"kind": "none", "draws": 3}, "does not go with draws=3"),
        ({"kind": "mean"}, "does not go with draws=1"),
        ({"kind": "resample", "draws": 0}, "at least 1; got 0"),
        ({"seed": -1}, "seed"),
    ],
)
def test_noise_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        Noise(**options)


def test_several_vectors_for_an_image_are_no_row_of_a_table(sd, pictures):
    with pytest.raises(InputError, match="give 2 vectors for each image"):
        FeatureExtractor(sd, ["mid"], noise=Noise(kind="resample", draws=2)).transform(pictures[:2])


def test_pooling_is_adaptive_and_never_enlarges():
    maps = torch.rand(2, 3, 8, 8, dtype=torch.float16)
    assert torch.equal(Pool(size=2)(maps), functional.adaptive_avg_pool2d(maps.float(), 2))
    assert torch.equal(Pool("max", 4)(maps), functional.max_pool2d(maps.float(), 2))
    assert torch.equal(Pool(size=16)(maps), maps.float())
    assert torch.equal(Pool(size=None)(maps), maps.float())
    torch.testing.assert_close(Pool("gem", 1, power=1.0)(maps), Pool(size=1)(maps))
    powers = maps.double().pow(3).mean((2, 3)).pow(1 / 3).float()
    torch.testing.assert_close(Pool("gem", 1)(maps)[:, :, 0, 0], powers, atol=1e-4, rtol=1e-4)


def test_grey_and_large_pictures_are_taken_as_any_classifier_takes_them(sd, pictures):
    grey = Image.fromarray(np.full((50, 70), 120, dtype=np.uint8))
    assert FeatureExtractor(sd, ["mid"]).transform([grey, pictures[0]]).shape == (2, 16)
