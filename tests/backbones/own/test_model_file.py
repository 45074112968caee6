"""Model files: what may stand in them, what they change, and what goes into the fingerprint."""

import shutil

import pytest
import torch
from pipelines import save_dit, save_stable_diffusion
from safetensors.torch import load_file, save_file
from tiny.additions import save_embedding, save_lora

from diffsight.backbones import load
from diffsight.backbones.cards import honesty
from diffsight.backbones.own.model_file import Embedding, Lora, read_model_file
from diffsight.errors import InputError, ModelError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base, a fine-tuned pipeline of the same kind, a LoRA and an embedding."""
    folder = tmp_path_factory.mktemp("mine")
    save_stable_diffusion(folder / "base")
    save_stable_diffusion(folder / "tuned", seed=1)
    shutil.copy(folder / "tuned" / "unet" / "diffusion_pytorch_model.safetensors", folder / "tuned.safetensors")
    save_lora(folder / "base", folder / "style.safetensors", "unet")
    save_embedding(folder / "<my-dog>.safetensors", {"<my-dog>": 16})
    (folder / "old.bin").write_bytes(b"pickle")
    return folder


def written(place, text):
    file = place / "mine.yaml"
    file.write_text(text)
    return file


def weights(backbone):
    return list(backbone.unet.parameters())


def test_all_that_may_stand_in_one_is_read(place):
    file = written(
        place,
        "base: base\ndenoiser: tuned/unet\nlora:\n  - style.safetensors\n  - {file: style.safetensors, scale: -0.7}\n"
        "embeddings: [<my-dog>.safetensors]\ntext_encoder: offload\ntrained_on: my dogs\n",
    )
    found, style = read_model_file(file), place.resolve() / "style.safetensors"
    assert (found.base, found.denoiser) == (str(place.resolve() / "base"), place.resolve() / "tuned" / "unet")
    assert found.lora == (Lora(file=style, scale=1.0), Lora(file=style, scale=-0.7))
    dog = Embedding(file=place.resolve() / "<my-dog>.safetensors", token="<my-dog>", named=False)
    assert found.embeddings == (dog,)
    assert (found.text_encoder, found.trained_on) == ("offload", "my dogs")
    assert load(file).name == str(file)
    assert "my dogs" in honesty(str(file))


def test_a_base_alone_is_the_base(place):
    backbone, base = load(written(place, "base: base\n")), load(place / "base")
    assert backbone.identity() == base.identity()
    assert honesty(str(place / "mine.yaml")) is None


def test_nothing_is_said_of_a_file_whose_parts_have_gone(place, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: nowhere\nlora: [gone.safetensors]\ntrained_on: my dogs\n")
    assert honesty(str(tmp_path / "mine.yaml")) is None


def test_a_base_may_be_a_card_and_keeps_what_is_said_of_it(place):
    backbone = load(written(place, "base: tiny-fashion\n"), device="cpu")
    assert backbone.identity() == load("tiny-fashion", device="cpu").identity()
    assert honesty(str(place / "mine.yaml")).startswith("tiny-fashion was trained on")


@pytest.mark.parametrize("denoiser", ["tuned/unet", "tuned.safetensors"])
def test_a_denoiser_of_ones_own_is_loaded_as_in_its_pipeline(place, denoiser):
    backbone = load(written(place, f"base: base\ndenoiser: {denoiser}\n"))
    for found, expected in zip(weights(backbone), weights(load(place / "tuned")), strict=True):
        assert torch.equal(found, expected)
    base = load(place / "base").condition(["cat"]).tensors["encoder_hidden_states"]
    assert torch.equal(backbone.condition(["cat"]).tensors["encoder_hidden_states"], base)


def test_the_fingerprint_follows_content_and_scale_and_not_the_place(place, tmp_path):
    identities = {
        text: tuple(sorted(load(written(place, text)).identity().items()))
        for text in (
            "base: base\n",
            "base: base\ndenoiser: tuned/unet\n",
            "base: base\nlora: [style.safetensors]\n",
            "base: base\nlora: [{file: style.safetensors, scale: 0.5}]\n",
            "base: base\nembeddings: [<my-dog>.safetensors]\n",
            "base: base\nembeddings: [{file: <my-dog>.safetensors, token: <other>}]\n",
        )
    }
    assert len(set(identities.values())) == len(identities)
    moved = shutil.copytree(place, tmp_path / "moved")
    (moved / "style.safetensors").rename(moved / "other.safetensors")
    text = "base: base\nlora: [{file: other.safetensors, scale: 0.5}]\n"
    again = load(written(moved, text)).identity()
    assert tuple(sorted(again.items())) == identities["base: base\nlora: [{file: style.safetensors, scale: 0.5}]\n"]
    file = written(place, "base: base\ndenoiser: tuned.safetensors\n")
    assert tuple(sorted(load(file).identity().items())) == identities["base: base\ndenoiser: tuned/unet\n"]


def test_other_weights_are_another_fingerprint(place, tmp_path):
    moved = shutil.copytree(place, tmp_path / "moved")
    before = load(written(moved, "base: base\nlora: [style.safetensors]\n")).identity()
    save_lora(moved / "base", moved / "style.safetensors", "unet", seed=5)
    after = load(moved / "mine.yaml").identity()
    assert {key for key in after if after[key] != before[key]} == {"lora"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- base\n", "must be a list of keys and values: base"),
        ("base: [\n", "is not YAML"),
        ("denoiser: tuned/unet\n", "has no 'base'"),
        ("base: base\nlor: [a]\n", r"line 2: unknown key 'lor'.*lora"),
        ("base: base\nbase: base\n", "line 2: 'base' is there already, on line 1"),
        ("base: 3\n", r"line 1, base: must be one line of text; got 3"),
        ("base: other.yaml\n", "line 1, base: other.yaml is a model file itself"),
        ("base: base\n\nlora: [none.safetensors]\n", "line 3, lora: there is no file .*none.safetensors"),
        ("base: base\nlora: style.safetensors\n", "line 2, lora: must be a list of files"),
        ("base: base\nlora: [old.bin]\n", r"old.bin is a pickle.*save_file\(torch.load\('old.bin', weights_only=True"),
        ("base: base\nlora: [mine.yaml]\n", "mine.yaml is no .safetensors file"),
        ("base: base\nlora: ['hf:org/style']\n", "on the Hub; download"),
        ("base: base\nlora: [{file: style.safetensors, weight: 1}]\n", r"an item is a file, or \{file: ..., scale"),
        ("base: base\nlora: [{file: style.safetensors, scale: much}]\n", "a scale is a number; got 'much'"),
        ("base: base\nlora: [{file: style.safetensors, scale: .nan}]\n", "a scale is a number; got nan"),
        ("base: base\nembeddings: [{file: <my-dog>.safetensors, token: my dog}]\n", "a token is one word"),
        ("base: base\nembeddings: [<my-dog>.safetensors, <my-dog>.safetensors]\n", "two embeddings have the token"),
        ("base: base\ndenoiser: tuned\n", "is a whole pipeline. Give its folder 'unet'"),
        ("base: base\ndenoiser: tuned/scheduler\n", "holds no config.json"),
        ("base: base\ntext_encoder: 2bit\n", "line 2, text_encoder: must be one of offload, 8bit, 4bit"),
    ],
)
def test_mistakes_are_told_with_their_line(place, text, message):
    with pytest.raises(ModelError, match=message) as caught:
        load(written(place, text))
    assert "mine.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(ModelError, match="no model file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="Unknown text_encoder 'none'"):
        load("tiny-fashion", text_encoder="none")
    (tmp_path / "mine.yaml").write_text("base: nowhere/at-all\n")
    with pytest.raises(ModelError, match="nowhere/at-all does not exist"):
        load(tmp_path / "mine.yaml")


def test_a_denoiser_of_another_kind_or_with_other_weights_is_refused(place, tmp_path):
    save_dit(tmp_path / "dit")
    state = load_file(place / "tuned.safetensors")
    save_file({f"model.diffusion_model.{key}": value for key, value in state.items()}, tmp_path / "ldm.safetensors")
    save_file({key: value for key, value in state.items() if "mid_block" not in key}, tmp_path / "part.safetensors")
    for denoiser, message in (
        ("dit/transformer", "holds a DiTTransformer2DModel, and the base has a UNet2DConditionModel"),
        ("ldm.safetensors", "lacks.*'diffsight convert'"),
        ("part.safetensors", "lacks mid_block"),
    ):
        with pytest.raises(ModelError, match=message):
            load(written(tmp_path, f"base: {place / 'base'}\ndenoiser: {denoiser}\n"))
