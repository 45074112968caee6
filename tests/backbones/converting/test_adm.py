import json
import pickle
from dataclasses import asdict, replace
from functools import partial

import pytest
import torch
from backbones.converting.adm_reference import Reference
from diffusers import DDPMPipeline, UNet2DModel
from safetensors.torch import save_file

from diffsight import backbones
from diffsight.backbones.converting.adm import _plan, convert_adm
from diffsight.backbones.converting.adm_networks import KINDS, REFUSED, ADMConfig, empty_network, scheduler, time_table
from diffsight.backbones.layers import find_layer, intermediates, profile
from diffsight.backbones.models.pixel_unet import PixelUNet
from diffsight.data.images import ImageTransform
from diffsight.diffusion.likelihood import learned_log_variance
from diffsight.diffusion.schedule import from_config
from diffsight.errors import InputError, ModelError

load = partial(backbones.load, device="cpu")
SMALL = ADMConfig(image_size=32, channels=32, multipliers=(1, 2, 2), res_blocks=2, attention=(16, 8), head_channels=16)
CONFIGS = {
    "unconditional": SMALL,
    "new attention order": replace(SMALL, new_attention_order=True),
    "class-conditional": replace(SMALL, classes=5, noise_schedule="cosine", res_blocks=1),
    "attention at full resolution": replace(
        SMALL, image_size=16, attention=(16,), multipliers=(1, 1), head_channels=32
    ),
    "narrow start": replace(SMALL, image_size=8, channels=256, multipliers=(0.5, 0.5), attention=(4,), res_blocks=1),
}


def reference(config):
    return Reference(
        image_size=config.image_size,
        num_channels=config.channels,
        channel_mult=config.multipliers,
        num_res_blocks=config.res_blocks,
        attention_resolutions=config.attention,
        num_head_channels=config.head_channels,
        num_classes=config.classes,
        use_new_attention_order=config.new_attention_order,
    )


@pytest.fixture(scope="module", params=CONFIGS)
def converted(request, tmp_path_factory):
    """A configuration, its weights under the authors' names, and the backbone that they became."""
    config = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("adm")
    state = reference(config).random_state()
    torch.save(state, folder / "model.pt")
    return config, state, load(convert_adm(folder / "model.pt", folder / "converted", kind=config))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of the small unconditional configuration."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    torch.save(reference(SMALL).random_state(), path)
    return path


def published(kind):
    """A published model without weights."""
    config = KINDS[kind]
    return PixelUNet(
        name=kind,
        unet=empty_network(config),
        schedule=from_config(scheduler(config).config),
        prediction="eps",
        transform=ImageTransform(size=config.image_size, resize="adm"),
        class_names=tuple(str(i) for i in range(config.classes)),
        null_class=config.classes or None,
        provenance={},
        device=torch.device("meta"),
        dtype=torch.float32,
    )


def close(ours, theirs):
    """Equal to 1e-5 of the largest value."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@torch.no_grad()
def test_output_and_every_block_are_those_of_the_original(converted):
    config, state, backbone = converted
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(3, 3, config.image_size, config.image_size, generator=generator)
    index, labels = torch.tensor([0, 90, 999]), torch.tensor([2, 0, 4])
    output, blocks = reference(config).forward(state, x_t, index, labels)
    condition = backbone.condition(["2", "0", "4"]) if config.classes else backbone.condition(()).nulls(3)
    prediction = backbone.predict(x_t, index, condition)
    close(prediction.eps, output[:, :3])
    close(prediction.log_variance, learned_log_variance(output[:, 3:], backbone.schedule, index))
    assert len(backbone.layers) == len(blocks)
    for ours, theirs in zip(intermediates(backbone, x_t, index, condition, backbone.layers), blocks, strict=True):
        close(ours, theirs)


@torch.no_grad()
def test_the_two_attention_orders_differ(checkpoint, tmp_path):
    x_t = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    one, other = (
        load(convert_adm(checkpoint, tmp_path / str(new), kind=replace(SMALL, new_attention_order=new))).unet(x_t, 5)
        for new in (False, True)
    )
    assert not torch.allclose(one.sample, other.sample, atol=0.1)


@torch.no_grad()
def test_the_null_class_is_the_mean_of_the_embeddings_and_no_candidate(tmp_path):
    config = CONFIGS["class-conditional"]
    state = reference(config).random_state()
    torch.save(state, tmp_path / "model.pt")
    backbone = load(convert_adm(tmp_path / "model.pt", tmp_path / "converted", kind=config))
    assert backbone.class_names == ("0", "1", "2", "3", "4")
    assert json.loads((tmp_path / "converted" / "diffsight.json").read_text())["null_class"] == 5
    x_t, index = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.tensor([90])
    mean = state | {"label_emb.weight": state["label_emb.weight"].mean(0, keepdim=True)}
    expected, _ = reference(config).forward(mean, x_t, index, torch.tensor([0]))
    close(backbone.predict(x_t, index, backbone.condition(()).nulls(1)).eps, expected[:, :3])


def test_schedules_are_the_authors():
    linear, cosine = (from_config(scheduler(KINDS[kind]).config) for kind in ("adm-256", "adm-64"))
    alpha_bar = linear.alpha.square()
    for t, expected in {0: 0.99990, 10: 0.99781, 90: 0.91326, 150: 0.78589, 500: 0.07780}.items():
        assert float(alpha_bar[t]) == pytest.approx(expected, abs=1e-5)
    time = torch.arange(1001, dtype=torch.float64) / 1000
    curve = torch.cos((time + 0.008) / 1.008 * torch.pi / 2).square()
    torch.testing.assert_close(cosine.alpha[:990].square(), (curve[1:] / curve[0])[:990], rtol=1e-6, atol=0)


def test_time_fits_half_the_channels_without_loss():
    table, basis = time_table(256, 128)
    assert (table.shape, basis.shape) == ((1000, 128), (256, 128))
    half = torch.arange(128, dtype=torch.float64)
    angle = 731 * 10000 ** (-half / 128)
    torch.testing.assert_close(basis @ table[731], torch.cat([angle.cos(), angle.sin()]), rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="do not fit 64"):
        time_table(256, 64)


# Fact sheet §1: blocks, channels and side.
SHAPES = [
    (range(1, 4), 256, 256),
    (range(4, 7), 256, 128),
    (range(7, 8), 256, 64),
    (range(8, 10), 512, 64),
    (range(10, 13), 512, 32),
    (range(13, 14), 512, 16),
    (range(14, 16), 1024, 16),
    (range(16, 22), 1024, 8),
    (range(22, 25), 1024, 16),
    (range(25, 26), 1024, 32),
    (range(26, 28), 512, 32),
    (range(28, 31), 512, 64),
    (range(31, 32), 512, 128),
    (range(32, 34), 256, 128),
    (range(34, 38), 256, 256),
]
SHARES = {6: 0.19, 12: 0.24, 19: 0.259, 24: 0.286, 27: 0.33, 30: 0.41, 33: 0.57, 36: 0.89}


def test_the_256_pixel_network_has_the_papers_37_blocks_and_costs():
    backbone = published("adm-256-uncond")
    profiles = {f"b{one.layer.number}": one for one in profile(backbone)}
    expected = {f"b{b}": (channels, side, side) for blocks, channels, side in SHAPES for b in blocks}
    assert {name: one.shape for name, one in profiles.items()} == expected
    assert profiles["b24"].flops / profiles["b24"].share / 2 == pytest.approx(1119e9, rel=1e-3)
    assert {b: profiles[f"b{b}"].share for b in SHARES} == pytest.approx(SHARES, abs=5e-3)
    assert sum(p.numel() for p in backbone.unet.parameters()) == pytest.approx(553e6, rel=1e-3)


def test_blocks_have_the_numbers_of_the_paper_and_of_the_authors_modules():
    backbone = published("adm-256-uncond")
    assert find_layer(backbone, "b24") == find_layer(backbone, "dec.4")
    assert find_layer(backbone, "b24").path == "up_blocks.1.attentions.1"
    assert find_layer(backbone, "b19").name == "mid"
    assert find_layer(backbone, "b31").name == "dec.11"  # DIFT's up_ft_index 11
    names = [layer.name for layer in backbone.layers]
    assert names == [*(f"enc.{i}" for i in range(18)), "mid", *(f"dec.{j}" for j in range(18))]
    # What an encoder block gave is concatenated to the input of its mirror, 38 - e.
    widths = {one.layer.number: one.shape for one in profile(backbone)}
    for number in range(20, 38):
        resnet = backbone.unet.get_submodule(_first_resnet(backbone, number))
        before, skip = widths[number - 1], widths[38 - number]
        assert resnet.in_channels == before[0] + skip[0]
        assert before[1:] == skip[1:]


def _first_resnet(backbone, number):
    level, index = divmod(number - 20, 3)
    return f"up_blocks.{level}.resnets.{index}"


@pytest.mark.parametrize("kind", KINDS)
def test_published_kinds_have_the_authors_tensors(kind):
    config = KINDS[kind]
    plan = _plan(config, empty_network(config))
    assert {key: shape for key, (_, shape) in plan.items()} == reference(config).shapes()
    became = [name for names, _ in plan.values() for name in names] + ["time_proj.weight"] * (kind == "adm-512")
    assert sorted(became) == sorted(empty_network(config).state_dict())


def test_what_is_written_says_where_it_is_from(checkpoint, tmp_path):
    folder = convert_adm(checkpoint, tmp_path / "here" / "converted", kind=SMALL)
    assert sorted(path.name for path in folder.iterdir()) == ["diffsight.json", "model_index.json", "scheduler", "unet"]
    assert [path.name for path in folder.parent.iterdir()] == ["converted"]
    modes = {path.stat().st_mode for path in folder.rglob("*") if path.is_file()}
    assert len(modes) == 1
    own = json.loads((folder / "diffsight.json").read_text())
    assert own == {"converted_from": {"file": "model.pt", "flags": json.loads(json.dumps(asdict(SMALL)))}}
    assert load(folder).transform == ImageTransform(size=32, resize="adm")
    unet, report = UNet2DModel.from_pretrained(folder, subfolder="unet", output_loading_info=True)
    assert report["missing_keys"] == report["unexpected_keys"] == []
    assert all(p.dtype == torch.float32 for p in unet.parameters())


def test_diffusers_draws_with_it(checkpoint, tmp_path):
    pipeline = DDPMPipeline.from_pretrained(convert_adm(checkpoint, tmp_path / "converted", kind=SMALL))
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)


def test_half_precision_and_safetensors_are_read(checkpoint, tmp_path):
    state = {key: value.half() for key, value in torch.load(checkpoint, weights_only=True).items()}
    save_file(state, tmp_path / "half.safetensors")
    torch.save(state, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    one, other = (
        load(convert_adm(tmp_path / name, tmp_path / f"{name}-out", kind=SMALL)).identity()["weights"]
        for name in ("half.safetensors", "older.pt")
    )
    assert one == other


class Evil:
    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


@pytest.mark.parametrize("how", ["torch", "older torch", "pickle"])
def test_code_is_refused_and_does_not_run(tmp_path, how):
    path, proof = tmp_path / "model.pt", tmp_path / "proof"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"out.2.bias": Evil(proof)}, protocol=2))
    else:
        torch.save({"out.2.bias": Evil(proof)}, path, _use_new_zipfile_serialization=how == "torch")
    with pytest.raises(ModelError, match="can run code") as caught:
        convert_adm(path, tmp_path / "out", kind=SMALL)
    assert "open" in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert not proof.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("left", [0, 10, 1000, -100])
@pytest.mark.parametrize("kind", [".pt", ".safetensors"])
def test_what_is_not_complete_is_refused(checkpoint, tmp_path, left, kind):
    path = tmp_path / f"model{kind}"
    if kind == ".safetensors":
        save_file(torch.load(checkpoint, weights_only=True), path)
    else:
        path.write_bytes(checkpoint.read_bytes())
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ModelError, match="not complete") as caught:
        convert_adm(path, tmp_path / "out", kind=SMALL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], ["a list", "no state dict"]),
        ({"state_dict": {"out.2.bias": torch.zeros(6)}, "epoch": 3}, ["training checkpoint", "'state_dict'"]),
        ({"ema": {"out.2.bias": torch.zeros(6)}}, ["'ema'"]),
        ({"step": 3}, ["'step' is a int"]),
    ],
)
def test_what_is_no_state_dict_is_told(tmp_path, content, words):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ModelError) as caught:
        convert_adm(tmp_path / "model.pt", tmp_path / "out", kind=SMALL)
    assert all(word in str(caught.value) for word in words)


def test_a_checkpoint_of_another_kind_is_refused_by_its_tensors(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=r"no checkpoint of adm-256-uncond: missing: .* and \d+ more"):
        convert_adm(checkpoint, tmp_path / "out", kind="adm-256-uncond")
    state = torch.load(checkpoint, weights_only=True)
    bias = state.pop("out.2.bias")
    state |= {"out.3.bias": bias, "out.0.weight": torch.ones(16)}
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ModelError) as caught:
        convert_adm(tmp_path / "model.pt", tmp_path / "out", kind=SMALL)
    for words in ("missing: out.2.bias", "unknown: out.3.bias", "out.0.weight (16,) instead of (32,)"):
        assert words in str(caught.value)


def test_the_kind_that_would_fit_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "adm-small", SMALL)
    with pytest.raises(ModelError, match="It is one of adm-small"):
        convert_adm(checkpoint, tmp_path / "out", kind="adm-256")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [*((kind, ModelError, "one width for all") for kind in REFUSED), ("adm-265", InputError, "adm-256")],
)
def test_kinds_that_cannot_be(checkpoint, tmp_path, kind, error, message):
    with pytest.raises(error, match=message):
        convert_adm(checkpoint, tmp_path / "out", kind=kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"channels": 40}, "32 groups"), ({"head_channels": 48}, "heads of 48"), ({"image_size": 18}, "halved 2 times")],
)
def test_configurations_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_nothing_is_overwritten_and_nothing_is_left_behind(checkpoint, tmp_path, monkeypatch):
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="exists already"):
        convert_adm(checkpoint, tmp_path / "taken", kind=SMALL)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffsight.backbones.converting.adm.save_file", full)
    with pytest.raises(ModelError, match="No space left"):
        convert_adm(checkpoint, tmp_path / "out", kind=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    with pytest.raises(ModelError, match="no file"):
        convert_adm(tmp_path / "none.pt", tmp_path / "out", kind=SMALL)
