import json
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    ScoreSdeVeScheduler,
    UNet2DModel,
)
from PIL import Image
from pipelines import save_ddpm

from diffsight import backbones
from diffsight.backbones import Backbone
from diffsight.backbones.layers import find_layer, profile
from diffsight.cli import main
from diffsight.data.prompts import PromptSet
from diffsight.errors import ModelError, PromptError
from diffsight.evaluation.runner import evaluate, make_job
from diffsight.evaluation.task import load_task
from diffsight.scoring.elimination import Exhaustive
from diffsight.zero_shot.classifier import DiffusionClassifier

load = partial(backbones.load, device="cpu")
NAMES = ("tench, Tinca tinca", "dog", "bird")
PIPELINES = {
    "unconditional": {},
    "v": {"prediction_type": "v_prediction"},
    "x0 of classes": {"prediction_type": "sample", "names": NAMES},
    "learned variance": {"learned_variance": True, "names": NAMES, "null": True},
    "grey": {"channels": 1},
}


@pytest.fixture(scope="module", params=PIPELINES)
def folder(request, tmp_path_factory):
    return save_ddpm(tmp_path_factory.mktemp("ddpm"), **PIPELINES[request.param])


@pytest.fixture(scope="module")
def backbone(folder):
    return load(folder)


@pytest.fixture
def noised(backbone):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, *backbone.latent_shape, generator=generator)
    index = torch.tensor([5, 400, 950])
    return x0, eps, index, backbone.schedule.mix(x0, eps, index)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two images in each of the folders dog and bird."""
    place = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in ("dog/1.png", "dog/2.png", "bird/1.png", "bird/2.png"):
        (place / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8)).save(place / name)
    return place


def members(backbone, count=3):
    """One condition per row: different classes where there are any."""
    return backbone.condition([str(i) for i in range(count)]) if backbone.class_names else null(backbone, count)


def null(backbone, count):
    return backbone.condition(()).nulls(count)


def rebuilt(folder, **changes):
    """The same folder with another UNet."""
    config = json.loads((folder / "unet" / "config.json").read_text())
    UNet2DModel.from_config(config | changes).save_pretrained(folder / "unet")
    return folder


def test_it_is_a_backbone(backbone):
    assert isinstance(backbone, Backbone)
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())
    assert not backbone.network.training
    assert backbone.latent_shape == (backbone.unet.config.in_channels, 16, 16)
    assert backbone.transform.resize == "adm"


def test_all_views_agree_with_diffusers_own_scheduler(backbone, folder, noised):
    x0, eps, index, x_t = noised
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, eps, index), atol=1e-5, rtol=1e-5)
    prediction = backbone.predict(x_t, index, members(backbone))
    alpha, sigma = backbone.schedule.at(index, like=x_t)
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(prediction.v, scheduler.get_velocity(prediction.x0, prediction.eps, index))
    labels = torch.arange(3) if backbone.class_names else None
    output = backbone.unet(x_t, index, class_labels=labels).sample
    for row in range(3):
        step = scheduler.step(output[[row]], int(index[row]), x_t[[row]])
        torch.testing.assert_close(prediction.x0[[row]], step.pred_original_sample, atol=1e-3, rtol=1e-3)


def test_learned_variance_agrees_with_diffusers(backbone, folder, noised):
    _, _, index, x_t = noised
    prediction = backbone.predict(x_t, index, members(backbone))
    assert (prediction.log_variance is not None) == backbone.learned_variance
    if backbone.learned_variance:
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        factor = backbone.unet(x_t, index, class_labels=torch.arange(3)).sample[:, 3:]
        for row in range(3):
            expected = scheduler._get_variance(int(index[row]), predicted_variance=factor[row])
            torch.testing.assert_close(prediction.log_variance[row], expected, atol=1e-4, rtol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours(backbone, noised):
    _, _, index, x_t = noised
    condition = members(backbone)
    together = backbone.predict(x_t, index, condition).output
    for row in range(3):
        alone = backbone.predict(x_t[[row]], index[[row]], condition.take([row])).output
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)
    backwards = backbone.predict(x_t.flip(0), index.flip(0), condition.take(torch.tensor([2, 1, 0]))).output
    torch.testing.assert_close(backwards.flip(0), together, atol=1e-5, rtol=1e-5)


def test_images_are_their_own_latents(backbone):
    images = (torch.rand(2, 1, 16, 16) * 2 - 1).expand(-1, 3, -1, -1)
    x0 = backbone.encode(images)
    assert x0.shape == (2, *backbone.latent_shape)
    assert x0.dtype == torch.float32
    assert torch.equal(backbone.decode(x0), images)
    assert backbone.decode(3 * x0).abs().max() == 1


def test_a_network_with_one_channel_sees_grey(tmp_path):
    backbone = load(save_ddpm(tmp_path / "grey", channels=1))
    seen = backbone.transform(Image.new("RGB", (40, 30), (250, 20, 20)))
    assert backbone.transform.grayscale
    assert torch.equal(seen[0], seen[1])


def test_layers_have_names_shapes_and_costs(backbone):
    assert [layer.name for layer in backbone.layers] == [
        *("enc.0", "enc.1", "enc.2", "enc.3"),
        *("mid", "dec.0", "dec.1", "dec.2", "dec.3"),
    ]
    assert find_layer(backbone, "dec.1").path == "up_blocks.0.upsamplers.0"
    if backbone.class_names and backbone.null_class is None:
        return
    found = {one.layer.name: one.shape for one in profile(backbone)}
    assert (found["mid"], found["dec.1"], found["dec.3"]) == ((16, 8, 8), (16, 16, 16), (8, 16, 16))


def test_gradients_reach_the_input(backbone, noised):
    _, _, index, x_t = noised
    x_t.requires_grad_()
    backbone.predict(x_t, index, members(backbone)).eps.square().sum().backward()
    assert x_t.grad.abs().sum() > 0


def test_half_precision_is_the_networks_alone(folder, noised):
    _, _, index, x_t = noised
    backbone = load(folder, dtype="bf16")
    prediction = backbone.predict(x_t, index, members(backbone))
    assert (backbone.dtype, backbone.identity()["dtype"]) == (torch.bfloat16, "bfloat16")
    assert prediction.eps.dtype == backbone.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32


def test_repositories_without_sub_folders_are_read(tmp_path):
    folder = save_ddpm(tmp_path / "ddpm")
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (*folder.glob("*.json"), *folder.glob("unet/*"), *folder.glob("scheduler/*")):
        (flat / path.name).write_bytes(path.read_bytes())
    assert load(flat).identity() == load(folder).identity()


def test_ddim_pipelines_are_the_same(tmp_path):
    folder = save_ddpm(tmp_path / "ddpm")
    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.save_pretrained(tmp_path / "ddim")
    assert load(tmp_path / "ddim").identity() == load(folder).identity()


# Classes


def test_an_unconditional_model_has_the_null_member_alone(tmp_path):
    backbone = load(save_ddpm(tmp_path / "ddpm"))
    condition = backbone.condition(())
    assert (backbone.class_names, condition.names, len(condition)) == ((), (), 0)
    assert len(condition.nulls(4)) == 4
    assert condition.nulls(4).take([0, 2]).tensors == {}
    assert condition.nulls(4).take(torch.tensor([0, 2])).nulls(3).tensors == {}
    with pytest.raises(PromptError, match="neither classes nor text; got 'cat'"):
        backbone.condition(["cat"])


def test_an_unconditional_model_refuses_to_classify(tmp_path, photos, capsys):
    folder = save_ddpm(tmp_path / "ddpm")
    for classes in (None, ["dog", "bird"], PromptSet.from_templates(["dog", "bird"], "{}")):
        with pytest.raises(PromptError, match="unconditional"):
            DiffusionClassifier(load(folder), classes).fit()
    with pytest.raises(PromptError, match="unconditional"):
        make_job(load_task(str(photos)), load(folder))
    for options in ([], ["--classes", "dog, bird"], ["--template", "a {}", "--classes", "dog, bird"]):
        assert main(["classify", str(photos), "--model", str(folder), *options]) == 2
        assert "is unconditional" in capsys.readouterr().err


@pytest.mark.parametrize("null", [False, True])
def test_a_class_conditional_model_classifies(tmp_path, photos, null):
    folder = save_ddpm(tmp_path / "ddpm", names=NAMES, null=null, learned_variance=True)
    classifier = DiffusionClassifier(load(folder), policy=Exhaustive(num_draws=4), loss="kl").fit()
    assert classifier.classes_.tolist() == list(NAMES)
    verdicts = classifier.classify(sorted(photos.rglob("*.png")))
    assert [verdict.calls for verdict in verdicts] == [12] * 4
    assert all(verdict.failure is None for verdict in verdicts)
    metrics = evaluate(make_job(load_task(str(photos)), load(folder)), tmp_path / "run")
    assert (metrics["scored"], metrics["failed"]) == (4, 0)


def test_classes_are_found_by_name_synonym_and_id(tmp_path):
    backbone = load(save_ddpm(tmp_path / "ddpm", names=NAMES, null=True))
    asked = ["tench, Tinca tinca", "Tinca tinca", "2", "dog"]
    assert backbone.condition(asked).tensors["class_labels"].tolist() == [0, 0, 2, 1]
    assert null(backbone, 2).tensors["class_labels"].tolist() == [3, 3]
    for name in ("3", "cow"):
        with pytest.raises(PromptError):
            backbone.condition([name])


def test_a_null_class_is_missed_only_where_it_is_asked_for(tmp_path):
    folder = save_ddpm(tmp_path / "ddpm", names=NAMES)
    x_t, index = torch.zeros(1, 3, 16, 16), torch.tensor([5])
    backbone = load(folder)
    backbone.predict(x_t, index, backbone.condition(["dog"]))
    with pytest.raises(ModelError, match="null_class"):
        backbone.predict(x_t, index, null(backbone, 1))
    before = backbone.identity()
    (folder / "diffsight.json").write_text('{"null_class": 2}')
    backbone = load(folder)
    assert backbone.class_names == NAMES[:2]
    assert backbone.identity() != before
    backbone.predict(x_t, index, null(backbone, 1))


# What would be misread


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embedding_type": "fourier"}, "Fourier"),
        ({"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
        ({"in_channels": 4, "out_channels": 4}, "4 channels"),
        ({"out_channels": 5}, "neither as many"),
        ({"sample_size": (16, 32)}, "16×32"),
        ({"sample_size": 15}, "halved 1 times"),
        ({"sample_size": None}, "no sample_size"),
    ],
)
def test_networks_that_would_be_misread_are_refused(tmp_path, changes, message):
    folder = rebuilt(save_ddpm(tmp_path / "ddpm"), **changes)
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(), "'flow'"),
        (ScoreSdeVeScheduler(), "no beta_schedule"),
        (DDPMScheduler(variance_type="learned"), "learned_range"),
        (DDPMScheduler(beta_schedule="sigmoid"), "sigmoid"),
    ],
)
def test_noise_levels_that_would_be_misread_are_refused(tmp_path, scheduler, message):
    folder = save_ddpm(tmp_path / "ddpm")
    (folder / "scheduler" / "scheduler_config.json").unlink()
    scheduler.save_pretrained(folder / "scheduler")
    with pytest.raises(ModelError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("names", "null", "message"), [(NAMES, 1, "last of 3 classes"), (NAMES, 3, "said to be 3"), ((), 0, "no classes")]
)
def test_a_null_class_that_is_none_is_refused(tmp_path, names, null, message):
    folder = save_ddpm(tmp_path / "ddpm", names=names)
    (folder / "diffsight.json").write_text(json.dumps({"null_class": null}))
    with pytest.raises(ModelError, match=message):
        load(folder)
