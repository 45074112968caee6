import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from pipelines import save_ddpm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from torch import nn

from diffsight import load
from diffsight.backbones.base import Layer
from diffsight.backbones.converting.adm_networks import KINDS, empty_network
from diffsight.backbones.layers import find_layers, intermediates, unet_layers
from diffsight.data.images import images_from
from diffsight.errors import ImageError, InputError, ModelError, NumericsError
from diffsight.features.diffeed import DifFeedClassifier
from diffsight.features.heads.recipes import RECIPES, Recipe
from diffsight.features.heads.specs import DifFormer, Linear, seeded
from diffsight.features.two_passes import DifFeed, TwoPasses, backward, feedback_pairs, plan_passes

HEAD = DifFormer(dim=8, blocks=1, heads=2)
# Channels and side of the blocks that the paper's DifFeed touches, from the authors' table of ADM-256 (fact sheet §1).
PAPER = {"b2": (256, 256), "b5": (256, 128), "b8": (512, 64), "b11": (512, 32), "b14": (1024, 16), "b17": (1024, 8)}
PAPER |= {"b21": (1024, 8), "b24": (1024, 16), "b27": (512, 32), "b30": (512, 64), "b33": (256, 128), "b36": (256, 256)}


@pytest.fixture(scope="module")
def photographs():
    """Two of the sample images of each of five classes."""
    folders = sorted(Path(str(files("diffsight") / "assets" / "samples")).iterdir())[:5]
    paths = [path for folder in folders for path in sorted(folder.glob("*.png"))[:2]]
    return paths, [path.parent.name for path in paths]


@pytest.fixture(scope="module")
def fitted(sd, pictures):
    return classifier(sd).fit(pictures[:6], LABELS)


LABELS = ["cat", "dog", "cat", "dog", "bird", "bird"]


def quick(**options):
    settings = {"epochs": 2, "batch_size": 3, "learning_rate": 1e-2, "standardize": False}
    return Recipe(**(settings | options))


def classifier(backbone, **options):
    return DifFeedClassifier(backbone, **({"head": HEAD, "recipe": quick()} | options))


def blocks(encoder, decoder):
    names = [*(f"enc.{i}" for i in range(encoder)), "mid", *(f"dec.{i}" for i in range(decoder))]
    return [Layer(name=name, path=f"module.{name}", number=i) for i, name in enumerate(names, start=1)]


def network_for(passes, seed=0):
    pairs = {source.name: target.name for source, target in passes.pairs.items()}
    make = torch.Generator().manual_seed(seed)
    return seeded(lambda: DifFeed(pairs, passes.shapes, passes.output.name, 3, HEAD), make)


def noised(passes, pictures):
    ids, x0 = passes.encode(images_from(pictures))
    return passes.noised(ids, x0, draw=0)


# What is fed back where.


def test_the_paper_s_pairs_on_the_paper_s_network():
    pairs = feedback_pairs(unet_layers(empty_network(KINDS["adm-256-uncond"])))
    found = {source.number: target.number for source, target in pairs.items()}
    assert found == {21: 17, 24: 14, 27: 11, 30: 8, 33: 5, 36: 2}


@pytest.mark.parametrize(
    ("size", "places"), [(4, [0, 1, 2, 3]), (6, [0, 1, 2, 3, 4, 5]), (12, [1, 3, 5, 7, 9, 11]), (1, [0])]
)
def test_smaller_unets_feed_back_from_the_same_depths(size, places):
    pairs = feedback_pairs(blocks(size, size))
    expected = {f"dec.{place}": f"enc.{size - 1 - place}" for place in places}
    assert {source.name: target.name for source, target in pairs.items()} == expected


def test_sources_by_any_name_and_in_any_order(sd):
    passes = plan_passes(sd, sources=["dec.2", "b6"])
    assert {source.name: target.name for source, target in passes.pairs.items()} == {"dec.2": "enc.1", "dec.0": "enc.3"}


def test_parameters_are_as_many_as_in_the_paper():
    shapes = {name: (channels, side, side) for name, (channels, side) in PAPER.items()}
    pairs = {f"b{block}": f"b{38 - block}" for block in (21, 24, 27, 30, 33, 36)}
    network = seeded(lambda: DifFeed(pairs, shapes, "b24", 1000, DifFormer()), None)
    feedback, head = (sum(p.numel() for p in part.parameters()) for part in (network.feedback, network.head))
    assert round(feedback / 1e6, 2) == 2.76
    assert round(head / 1e6, 2) == 27.79
    assert round((feedback + head) / 1e6, 1) == 30.5
    assert all(p.is_meta for p in network.parameters())


# The passes.


@pytest.mark.parametrize("training", [True, False])
def test_without_feedback_the_second_pass_is_the_first(sd, pictures, training):
    passes = plan_passes(sd, layer="dec.1")
    network, x_t = network_for(passes).train(training), noised(passes, pictures[:3])
    fed = passes.second(x_t, network.feedback(passes.first(x_t)))["dec.1"]
    for connection in network.feedback.connections:
        nn.init.zeros_(connection[0].weight)
    unfed = passes.second(x_t, network.feedback(passes.first(x_t)))["dec.1"]
    (plain,) = intermediates(sd, x_t, torch.full((3,), 85), sd.condition(()).nulls(3), find_layers(sd, ["dec.1"]))
    assert torch.equal(unfed, plain)
    assert not torch.allclose(fed, plain)


def test_each_block_feeds_its_mirror_and_no_other(sd, pictures):
    passes = plan_passes(sd, layer="dec.3")
    network, x_t = network_for(passes).eval(), noised(passes, pictures[:2])
    added = network.feedback(passes.first(x_t))
    encoder = find_layers(sd, ["enc.0", "enc.1", "enc.2", "enc.3"])
    rows = (torch.full((2,), 85), sd.condition(()).nulls(2))
    plain = intermediates(sd, x_t, *rows, encoder)
    seen = []
    handles = [
        sd.network.get_submodule(layer.path).register_forward_hook(
            lambda *args: seen.append(args[2][0] if isinstance(args[2], tuple) else args[2])
        )
        for layer in encoder
    ]
    passes.second(x_t, {name: value if name == "enc.3" else torch.zeros_like(value) for name, value in added.items()})
    for handle in handles:
        handle.remove()
    assert all(torch.equal(before, after) for before, after in zip(plain[:3], seen[:3], strict=True))
    with torch.no_grad():
        source = passes.first(x_t)["dec.0"]
        by_hand = torch.einsum("oi,bihw->bohw", network.feedback.connections[0][0].weight[:, :, 0, 0], source)
        expected = nn.functional.relu(by_hand / (1 + 1e-5) ** 0.5)
    torch.testing.assert_close(added["enc.3"], expected)


def test_nothing_runs_after_what_is_needed(sd, pictures):
    passes, ran = plan_passes(sd, sources=["dec.0", "dec.1"], layer="dec.0"), []
    x_t = noised(passes, pictures[:2])
    handles = [
        sd.network.get_submodule(layer.path).register_forward_hook(lambda *_, name=layer.name: ran.append(name))
        for layer in sd.layers
    ]
    network_for(passes)(passes, x_t)
    for handle in handles:
        handle.remove()
    encoder = ["enc.0", "enc.1", "enc.2", "enc.3", "mid"]
    assert ran == [*encoder, "dec.0", "dec.1", *encoder, "dec.0"]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_gradients_are_those_of_the_plain_loss_however_many_rows_at_once(sd, pictures, batch_size):
    passes = plan_passes(sd)
    x_t, targets = noised(passes, pictures[:5]), torch.tensor([0, 1, 2, 1, 0])
    plain, ours = network_for(passes).train(), network_for(passes).train()
    expected = nn.functional.cross_entropy(plain(passes, x_t), targets)
    expected.backward()
    loss = backward(ours, passes, x_t, targets, batch_size=batch_size)
    torch.testing.assert_close(loss, expected.detach())
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=lambda text, name=name: f"{name}: {text}")
        # The head's class token is zero at first, and so is what its query sees.
        assert a.grad.abs().sum() > 0 or name.startswith("head"), name
    for (name, a), b in zip(ours.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert all(p.grad is None for p in sd.network.parameters())


# Training.


def test_the_loss_falls_on_photographs(photographs):
    paths, labels = photographs
    backbone = load("tiny-fashion", device="cpu")
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    head = DifFormer(dim=32, blocks=1, heads=2)
    model = DifFeedClassifier(backbone, head=head, recipe=quick(epochs=12, batch_size=10, learning_rate=3e-3))
    steps = []
    model.fit(paths, labels, progress=lambda done, total: steps.append((done, total)))
    assert len(model.losses_) == 12
    assert model.losses_[-1] < 0.3 * model.losses_[0]
    assert model.score(paths, labels) >= 0.8
    assert steps == [(done, 12) for done in range(1, 13)]
    assert all(torch.equal(value, before[key]) for key, value in backbone.network.state_dict().items())
    assert not backbone.network.training
    assert not model.network_.training


def test_predicting_while_training_changes_nothing(sd, pictures, fitted):
    seen = []
    model = classifier(sd)

    def evaluate(done, total):
        seen.append((model.network_.training, model.predict(pictures[:2]), model.network_.training))

    model.fit(pictures[:6], LABELS, progress=evaluate)
    assert len(seen) == 4
    assert all(before and after for before, _, after in seen)
    assert torch.equal(model.logits(pictures[:6]), fitted.logits(pictures[:6]))
    norms = [m for m in model.network_.feedback.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert all(int(norm.num_batches_tracked) == 4 for norm in norms)


def test_a_seed_decides_everything(sd, pictures, fitted):
    torch.manual_seed(1)
    again = classifier(sd).fit(pictures[:6], LABELS)
    other = classifier(sd, seed=1).fit(pictures[:6], LABELS)
    assert again.losses_ == fitted.losses_
    assert torch.equal(again.logits(pictures[:6]), fitted.logits(pictures[:6]))
    assert other.losses_ != fitted.losses_


def test_out_of_memory_halves_the_batch_of_a_prediction(sd, pictures, fitted, monkeypatch):
    def small(self, x_t, index, condition):
        if len(x_t) > 4:
            raise torch.OutOfMemoryError("too much")
        sizes.append(len(x_t))
        return original(self, x_t, index, condition)

    sizes, original, expected = [], type(sd).predict, fitted.decision_function(pictures[:9])
    monkeypatch.setattr(type(sd), "predict", small)
    np.testing.assert_allclose(fitted.decision_function(pictures[:9]), expected, atol=1e-4)
    assert max(sizes) <= 4


def test_batch_size_does_not_change_what_is_learnt(sd, pictures, fitted):
    model = classifier(sd, batch_size=2).fit(pictures[:6], LABELS)
    torch.testing.assert_close(model.logits(pictures[:6]), fitted.logits(pictures[:6]), rtol=1e-3, atol=1e-4)
    batch = [
        classifier(sd, batch_size=size, head=replace(HEAD, norm="batch")).fit(pictures[:6], LABELS).losses_
        for size in (1, 16)
    ]
    assert batch[0] == pytest.approx(batch[1], rel=1e-4)


@pytest.mark.parametrize(("views", "encodings"), [(1, 1), (2, 3)])
def test_noise_is_fresh_in_every_epoch_and_latents_are_kept_for_one_view(sd, pictures, monkeypatch, views, encodings):
    encoded, draws, encode, mix = [], [], type(sd).encode, TwoPasses.noised
    monkeypatch.setattr(type(sd), "encode", lambda self, images: encoded.append(images) or encode(self, images))

    def spy(self, ids, x0, *, draw):
        draws.append(draw)
        return mix(self, ids, x0, draw=draw)

    monkeypatch.setattr(TwoPasses, "noised", spy)
    model = classifier(sd, views=views, recipe=quick(epochs=3)).fit(pictures[:6], LABELS)
    assert draws == [0, 0, 1, 1, 2, 2]
    assert len(encoded) == encodings
    assert torch.equal(encoded[0], encoded[-1])  # The views of the epochs 0 and 2 are the image itself.
    assert views == 1 or not torch.equal(encoded[0], encoded[1])
    model.predict(pictures[:2])
    assert draws[6:] == [0]


def test_the_paper_s_recipe_and_a_last_batch_of_one(sd, pictures):
    paper = replace(RECIPES["gd2024/diffeed"], epochs=4)
    steps = []
    model = classifier(sd, recipe=paper)
    model.fit(pictures[:17], [0, 1] * 8 + [0], progress=lambda done, total: steps.append(total))
    assert steps == [8] * 8
    assert len(model.losses_) == 4


def test_the_denoiser_may_compute_in_half_precision(sd, pictures, fitted):
    model = classifier(load(sd.name, device="cpu", dtype="bf16")).fit(pictures[:6], LABELS)
    assert {p.dtype for p in model.network_.parameters()} == {torch.float32}
    assert model.losses_ == pytest.approx(fitted.losses_, rel=0.05)


@pytest.mark.parametrize("null", [True, False])
def test_a_class_conditional_model_sees_its_null_class(pictures, tmp_path, null):
    pixels = load(save_ddpm(tmp_path, names=("cat", "dog"), null=null), device="cpu", dtype="fp32")
    model = classifier(pixels, recipe=quick(epochs=1))
    if null:
        assert model.fit(pictures[:6], LABELS).predict(pictures[:3]).shape == (3,)
    else:
        with pytest.raises(ModelError, match="has no null class"):
            model.fit(pictures[:6], LABELS)


# Recognition.


def test_an_image_is_recognised_whatever_stands_beside_it(sd, pictures, fitted):
    together = fitted.logits(pictures[:20])
    torch.testing.assert_close(fitted.logits([pictures[17]])[0], together[17], rtol=1e-5, atol=1e-5)
    backwards = clone(fitted).set_params(batch_size=3)
    backwards.network_, backwards.passes_, backwards.classes_ = fitted.network_, fitted.passes_, fitted.classes_
    found = backwards.logits(pictures[:20][::-1])
    torch.testing.assert_close(found.flip(0), together, rtol=1e-5, atol=1e-5)


def test_it_is_a_classifier(sd, pictures, fitted):
    assert list(fitted.classes_) == ["bird", "cat", "dog"]
    assert set(fitted.predict(pictures[:6])) <= set(LABELS)
    chances = fitted.predict_proba(pictures[:6])
    np.testing.assert_allclose(chances.sum(axis=1), 1, rtol=1e-6)
    assert np.array_equal(fitted.classes_[chances.argmax(axis=1)], fitted.predict(pictures[:6]))
    assert fitted.decision_function(pictures[:6]).shape == (6, 3)
    assert clone(fitted).get_params()["backbone"] is sd
    with pytest.raises(NotFittedError):
        clone(fitted).predict(pictures[:1])
    two = classifier(sd).fit(pictures[:4], [7, 3, 7, 3])
    margin = two.decision_function(pictures[:4])
    assert margin.shape == (4,)
    assert np.array_equal(two.predict(pictures[:4]), np.where(margin > 0, 7, 3))


# On disk.


def test_what_is_saved_can_be_read(sd, pictures, fitted, tmp_path):
    fitted.save(tmp_path / "new" / "model")
    assert sorted(path.suffix for path in (tmp_path / "new" / "model").iterdir()) == [".json", ".safetensors"]
    for backbone in (sd, None):  # By its name, which is its folder.
        model = DifFeedClassifier.load(tmp_path / "new" / "model", backbone)
        assert torch.equal(model.logits(pictures[:6]), fitted.logits(pictures[:6]))
        assert np.array_equal(model.predict(pictures[:6]), fitted.predict(pictures[:6]))
    numbers = classifier(sd, sources=["dec.1"], layer="dec.2", timestep=40, seed=5).fit(pictures[:4], [7, 3, 7, 3])
    numbers.save(tmp_path)
    assert torch.equal(DifFeedClassifier.load(tmp_path, sd).logits(pictures[:6]), numbers.logits(pictures[:6]))
    assert DifFeedClassifier.load(tmp_path, sd).predict(pictures[:6]).dtype == numbers.predict(pictures[:6]).dtype


def test_another_model_is_refused(fitted, tmp_path):
    fitted.save(tmp_path)
    with pytest.raises(ModelError, match="trained on another model"):
        DifFeedClassifier.load(tmp_path, load("tiny-fashion", device="cpu"))


def cut(folder):
    path = folder / "diffeed.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def edit(**changes):
    def change(folder):
        path = folder / "diffeed.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        cut,
        lambda folder: (folder / "diffeed.safetensors").unlink(),
        lambda folder: (folder / "diffeed.json").write_text("{"),
        lambda folder: (folder / "diffeed.json").write_text("[]"),
        edit(version=2),
        edit(classes=["cat", "dog"]),
        edit(sources=["dec.0"]),
        edit(head={"name": "linear"}),
        edit(head={"name": "difformer", "dim": 16, "heads": 2}),
        edit(identity=None),
    ],
)
def test_what_is_damaged_is_refused(sd, fitted, tmp_path, damage):
    fitted.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ModelError, match="holds no DifFeed that can be read"):
        DifFeedClassifier.load(tmp_path, sd)


def test_labels_that_json_would_change_are_not_saved(sd, pictures, tmp_path):
    model = classifier(sd, recipe=quick(epochs=1)).fit(pictures[:4], [0.5, 1.5, 0.5, 1.5])
    with pytest.raises(InputError, match=r"0\.5 is neither"):
        model.save(tmp_path)


def test_a_folder_that_cannot_be_written_is_an_error(fitted, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot be written"):
        fitted.save(tmp_path / "file")


# Refusals.


def test_models_without_a_mirror_are_refused(dit, pictures):
    with pytest.raises(InputError, match="0 encoder and 0 decoder blocks"):
        classifier(dit).fit(pictures[:2], [0, 1])
    with pytest.raises(InputError, match="toy has 5 encoder and 6 decoder blocks"):
        feedback_pairs(blocks(5, 6), name="toy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": ["mid"]}, "Only dec.0 to dec.3 of .* not 'mid'"),
        ({"sources": ["enc.1"]}, "not 'enc.1'"),
        ({"sources": ["dec.1", "b7"]}, "same one"),
        ({"sources": []}, "list of names"),
        ({"layer": "dec.9"}, "no layer 'dec.9'"),
        ({"layer": "enc.3"}, "must run after enc.3"),
        ({"layer": "conv_in"}, "must run after enc.3"),
        ({"timestep": 1000}, "not a timestep"),
        ({"views": 0}, "views"),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"recipe": Recipe()}, "standardize=False"),
        ({"recipe": "no such"}, "Unknown recipe"),
        ({"head": Linear()}, "is a DifFormer"),
    ],
)
def test_settings_that_make_no_sense_are_refused(sd, pictures, options, message):
    with pytest.raises(InputError, match=message):
        classifier(sd).set_params(**options).fit(pictures[:2], [0, 1])


@pytest.mark.parametrize("labels", [[0, 1], [[0], [1], [0]], [1, 1, 1]])
def test_labels_that_do_not_fit_are_refused(sd, pictures, labels):
    with pytest.raises(InputError, match=r"give one for each|at least 2 classes"):
        classifier(sd).fit(pictures[:3], labels)


def test_an_image_that_cannot_be_read_is_named(sd, pictures, fitted, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"nothing")
    images = [*pictures[:18], bad]
    with pytest.raises(ImageError, match=r"X\[18\].*bad\.png"):
        fitted.predict(images)
    model = classifier(sd)
    with pytest.raises(ImageError, match=r"X\[18\].*bad\.png"):
        model.fit(images, [0, 1] * 9 + [0])
    with pytest.raises(NotFittedError):
        model.predict(pictures[:1])


def test_a_training_that_diverges_is_told(sd, pictures):
    model = classifier(sd, recipe=quick(optimizer="sgd", learning_rate=1e30))
    with pytest.raises(NumericsError, match="diverged in epoch 1"):
        model.fit(pictures[:6], LABELS)
    with pytest.raises(NotFittedError):
        model.predict(pictures[:1])


def test_a_logit_that_is_not_finite_is_told(sd, pictures):
    model = classifier(sd, recipe=quick(epochs=1)).fit(pictures[:6], LABELS)
    with torch.no_grad():
        model.network_.head.linear.bias[0] = float("nan")
    with pytest.raises(NumericsError, match=r"X\[0\].*float32"):
        model.predict(pictures[:2])
