import json
import shutil
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from diffusers import UNet2DConditionModel
from pipelines import save_dit, save_stable_diffusion
from safetensors.torch import load_file, save_file
from tiny.flux import save_flux
from tiny.sd3 import save_sd3

import diffsight
from diffsight.backbones import Backbone, cards, load
from diffsight.backbones.loading import weights_hash
from diffsight.errors import InputError, ModelError
from diffsight.zero_shot.classifier import DiffusionClassifier


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("sd"))


@pytest.fixture
def copy(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "copy")


def test_a_local_folder_becomes_a_backbone(sd_folder):
    backbone = load(sd_folder, device="cpu")
    assert isinstance(backbone, Backbone)
    assert backbone.latent_shape == (4, 8, 8)
    assert backbone.transform.output_size == 16
    assert backbone.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in backbone.unet.parameters())
    assert not backbone.unet.training


@pytest.mark.parametrize("dtype", ["bf16", torch.bfloat16])
def test_dtype_is_the_denoisers_alone(sd_folder, dtype):
    backbone = load(sd_folder, dtype=dtype)
    assert backbone.dtype == torch.bfloat16
    assert backbone.encode(torch.zeros(1, 3, 16, 16)).dtype == torch.float32
    assert backbone.identity()["dtype"] == "bfloat16"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ModelError, match=r"sd-1\.5"):
        load("sd-15")


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such/folder", "does not exist"), (__file__, "is a file"), ("hf:org/none", "could not be had")],
)
def test_what_is_not_there_is_told_in_one_line(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_offline_a_hub_card_says_what_to_do_instead():
    with pytest.raises(ModelError, match="local diffusers folder") as caught:
        load("sd-2-base")
    assert "Manojb/stable-diffusion-2-base" in str(caught.value)


def test_pickles_are_refused(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickle"):
        load(copy)


def test_missing_weights_are_told(copy):
    (copy / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load(copy)


def test_damaged_weights_are_told(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(copy)
    assert "\n" not in str(caught.value)


def altered(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def halved(path):
    path.write_bytes(path.read_bytes()[:-1000])


BREAKS = {
    "half a text encoder": (lambda x: halved(x / "text_encoder" / "model.safetensors"), "damaged weights"),
    "a pointer of Git LFS": (
        lambda x: (x / "text_encoder" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "damaged weights",
    ),
    "no configuration": (lambda x: (x / "text_encoder" / "config.json").unlink(), "config.json of its CLIPTextModel"),
    "no tokenizer": (lambda x: shutil.rmtree(x / "tokenizer"), "no vocabulary"),
    "no words": (lambda x: (x / "tokenizer" / "tokenizer.json").unlink(), "no vocabulary"),
    "no length": (lambda x: (x / "tokenizer" / "tokenizer_config.json").unlink(), "model_max_length"),
    "nothing listed": (lambda x: altered(x / "model_index.json", text_encoder=[None, None]), "no text_encoder"),
    "null": (lambda x: altered(x / "model_index.json", text_encoder=None), "no text_encoder"),
    "half precision alone": (
        lambda x: (x / "unet" / "diffusion_pytorch_model.safetensors").rename(x / "unet" / "model.fp16.safetensors"),
        r"variant of its weights \(model.fp16.safetensors\)",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_folders_that_broke_on_their_way_are_refused(copy, case):
    damage, message = BREAKS[case]
    damage(copy)
    with pytest.raises(ModelError, match=message):
        load(copy)


@pytest.mark.parametrize(("save", "tokenizer"), [(save_sd3, "tokenizer_3"), (save_flux, "tokenizer_2")])
def test_a_second_tokenizer_without_words_is_refused(tmp_path, save, tokenizer):
    folder = save(tmp_path / "model")
    (folder / tokenizer / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=f"{tokenizer} holds no vocabulary"):
        load(folder)


def test_weights_that_are_left_out_are_told(copy, caplog):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(weights) | {"motion.weight": torch.ones(2)}, weights, metadata={"format": "pt"})
    load(copy)
    assert "1 weights that no UNet2DConditionModel knows, and they are left out: motion.weight" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "9 channels and not the latent alone"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 8,
            },
            "something beside the text",
        ),
        ({"cross_attention_dim": 24}, "texts of 24 numbers, and its text encoder gives 16"),
    ],
)
def test_a_unet_that_is_fed_something_else_is_refused(copy, changes, message):
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(copy / "unet") | changes)
    unet.save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match=message):
        load(copy)


def test_other_pipelines_are_refused_by_name(copy):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": "HunyuanDiTPipeline"}))
    with pytest.raises(ModelError, match="HunyuanDiTPipeline"):
        load(copy)


def test_a_folder_can_say_how_images_reach_the_model(copy):
    (copy / "diffsight.json").write_text(json.dumps({"transform": {"size": 12, "pad": 2}}))
    backbone = load(copy)
    assert backbone.transform.size == 12
    assert backbone.latent_shape == (4, 8, 8)


def test_the_weights_hash_follows_the_weights(sd_folder, tmp_path):
    parts = ("unet", "vae", "text_encoder")
    same = save_stable_diffusion(tmp_path / "same")
    other = save_stable_diffusion(tmp_path / "other", seed=1)
    assert weights_hash(same, parts) == weights_hash(sd_folder, parts)
    assert weights_hash(other, parts) != weights_hash(sd_folder, parts)


def test_weights_that_are_not_those_of_the_card_are_refused(monkeypatch):
    altered = dict(cards()) | {"tiny-fashion": replace(cards()["tiny-fashion"], weights="0" * 64)}
    monkeypatch.setattr(import_module("diffsight.backbones.cards"), "cards", lambda: altered)
    with pytest.raises(ModelError, match="not those of its card"):
        load("tiny-fashion")


def test_unknown_device_and_dtype(sd_folder):
    with pytest.raises(InputError, match="Unknown device"):
        load(sd_folder, device="toaster")
    with pytest.raises(InputError, match="fp32"):
        load(sd_folder, dtype="fp8")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA"):
            load(sd_folder, device="cuda")


def test_every_card_is_complete():
    for card in cards().values():
        assert card.licence
        assert card.description
        assert card.embedded or card.repo or card.checkpoint
        assert card.reads in ("text", "class ids", "nothing")
        assert card.revision is None or len(card.revision) == 40


def test_the_public_name_is_the_same_function():
    assert diffsight.load is load


def test_dit_folders_load(tmp_path):
    backbone = load(save_dit(tmp_path / "dit"))
    assert isinstance(backbone, Backbone)
    assert backbone.class_names == ("cat", "dog", "bird")
    assert backbone.transform.resize == "adm"


def test_other_names_for_the_ids_are_another_model(tmp_path):
    folder = save_dit(tmp_path / "dit")
    before = load(folder).identity()
    altered(folder / "model_index.json", id2label={"0": "dog", "1": "cat", "2": "bird"})
    assert load(folder).identity() != before


def test_classes_that_are_one_to_the_model_are_told(tmp_path, caplog):
    backbone = load(save_dit(tmp_path / "dit"))
    DiffusionClassifier(backbone, ["cat", "1"]).fit()
    assert not caplog.text
    DiffusionClassifier(backbone, ["cat", "dog", "0"]).fit()
    assert "cannot tell 'cat' from '0': it reads both as the same class" in caplog.text


def test_identity_is_of_what_changes_numbers_and_not_of_the_place(sd_folder, copy):
    assert load(copy).identity() == load(sd_folder).identity()
    config = copy / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 0.7}))
    assert load(copy).identity() != load(sd_folder).identity()


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"attention_head_dim": 4}),
        ("text_encoder/config.json", {"hidden_act": "gelu"}),
        ("tokenizer/tokenizer_config.json", {"pad_token": "a"}),
    ],
)
def test_settings_that_change_numbers_are_part_of_the_identity(sd_folder, copy, file, changes):
    before, prompts = load(sd_folder), ["a cat", "a dog"]
    altered(copy / file, **changes)
    after = load(copy)
    x_t, index = torch.ones(2, 4, 8, 8), torch.tensor([500, 500])
    one, other = (each.predict(x_t, index, each.condition(prompts)).output for each in (before, after))
    assert not torch.equal(one, other)
    assert before.identity() != after.identity()


def test_who_wrote_a_folder_is_not_part_of_the_identity(sd_folder, copy):
    altered(copy / "unet" / "config.json", _diffusers_version="9.9.9", _name_or_path="elsewhere")
    altered(copy / "text_encoder" / "config.json", transformers_version="9.9.9", dtype="float16")
    assert load(copy).identity() == load(sd_folder).identity()
