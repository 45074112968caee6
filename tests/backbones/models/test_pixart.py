"""PixArt: what its transformer is told beside the contract, and which folders are refused."""

import json
import logging
import shutil
from importlib.util import find_spec

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from tiny.pixart import ALPHA, save_pixart

from diffsight.backbones import load
from diffsight.errors import ModelError, PromptError
from diffsight.zero_shot.classifier import DiffusionClassifier


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    places = {name: tmp_path_factory.mktemp(name) for name in ("alpha", "sigma")}
    return {"alpha": save_pixart(places["alpha"], **ALPHA), "sigma": save_pixart(places["sigma"])}


@pytest.fixture(scope="module")
def sigma(folders):
    return load(folders["sigma"])


@pytest.fixture
def copy(folders, tmp_path):
    return shutil.copytree(folders["sigma"], tmp_path / "copy")


def rewrite(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(("version", "length"), [("alpha", 120), ("sigma", 300)])
def test_prompts_masks_and_the_null_member_are_those_of_the_pipeline(folders, version, length):
    pipeline = DiffusionPipeline.from_pretrained(folders[version])
    states, mask, null, null_mask = pipeline.encode_prompt("A Photo of a CAT ", True)
    condition = load(folders[version]).condition(["A Photo of a CAT ", "dog"])
    assert condition.tensors["encoder_hidden_states"].shape[1] == length
    assert condition.tensors["encoder_attention_mask"].sum(1).tolist() == [6, 2]
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"][:1], states)
    assert torch.equal(condition.tensors["encoder_attention_mask"][:1], mask)
    torch.testing.assert_close(condition.null["encoder_hidden_states"], null)
    assert torch.equal(condition.null["encoder_attention_mask"], null_mask)


def test_alpha_is_told_the_size_of_the_pictures_that_it_is_shown(folders, tmp_path):
    folder = shutil.copytree(folders["alpha"], tmp_path / "half")
    (folder / "diffsight.json").write_text(json.dumps({"transform": {"size": 128}}))
    whole, half = load(folders["alpha"]), load(folder)
    assert whole.condition(["cat"]).tensors["resolution"].tolist() == [[256.0, 256.0]]
    condition = half.condition(["cat"])
    assert condition.tensors["resolution"].tolist() == condition.null["resolution"].tolist() == [[128.0, 128.0]]
    assert condition.tensors["aspect_ratio"].tolist() == [[1.0]]
    assert half.latent_shape == (4, 64, 64)
    x_t, index = torch.randn(1, *half.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    told_otherwise = whole.condition(["cat"])
    assert not torch.allclose(half.predict(x_t, index, condition).eps, half.predict(x_t, index, told_otherwise).eps)


def test_sigma_is_not_told_the_size(sigma):
    assert sigma.condition(["cat"]).tensors.keys() == {"encoder_hidden_states", "encoder_attention_mask"}


def test_padding_is_not_seen(sigma):
    condition = sigma.condition(["cat"])
    x_t, index = torch.randn(1, *sigma.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    before = sigma.predict(x_t, index, condition).eps
    condition.tensors["encoder_hidden_states"][:, 2:] = 7.0
    torch.testing.assert_close(sigma.predict(x_t, index, condition).eps, before)
    condition.tensors["encoder_hidden_states"][:, 1:] = 7.0
    assert not torch.allclose(sigma.predict(x_t, index, condition).eps, before, atol=1e-3)


def test_learned_variance_agrees_with_diffusers(sigma):
    scheduler = DDPMScheduler(
        beta_start=1e-4, beta_end=0.02, beta_schedule="linear", variance_type="learned_range", clip_sample=False
    )
    generator = torch.Generator().manual_seed(0)
    x_t, index = torch.randn(3, 4, 8, 8, generator=generator), torch.tensor([3, 400, 990])
    condition = sigma.condition(["cat", "dog", "bird"])
    prediction = sigma.predict(x_t, index, condition)
    output = sigma.transformer(x_t, timestep=index, **condition.tensors).sample
    torch.testing.assert_close(prediction.output, output[:, :4])
    for row in range(3):
        time, factor = int(index[row]), output[row, 4:]
        expected = scheduler._get_variance(time, predicted_variance=factor, variance_type="learned_range")
        torch.testing.assert_close(prediction.log_variance[row], expected, atol=1e-4, rtol=1e-4)


def test_what_the_transformer_would_not_read_is_refused_though_t5_reads_more(sigma):
    sigma.condition(["cat " * 299])
    with pytest.raises(PromptError, match=r"301 tokens, but .* reads 300") as caught:
        sigma.condition(["dog", "cat " * 300])
    assert "Shorten" in str(caught.value)
    with pytest.raises(PromptError, match="301 tokens"):
        sigma.tokens(["cat " * 300])


def test_tokens_are_words_and_an_end(sigma):
    tokens = sigma.tokens(["A photo of a cat", "xy", ""])
    assert [word for word, _ in tokens.words(0)] == ["a", "photo", "of", "a", "cat"]
    assert tokens.content.sum(1).tolist() == [5, 3, 0]
    assert tokens.end.int().argmax(1).tolist() == [5, 3, 0]
    assert tokens.content.shape == (3, 300)
    assert sigma.tokens([]).content.shape == (0, 300)


def test_folders_as_they_are_published_are_read(sigma, copy):
    """Their scheduler is a sampler, and their transformer has an older class and keys that the new one lacks."""
    published = DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    published.save_pretrained(copy / "scheduler")
    old = {"_class_name": "Transformer2DModel", "only_cross_attention": False, "num_vector_embeds": None}
    rewrite(copy / "transformer" / "config.json", **old)
    rewrite(copy / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    other = load(copy)
    x_t, index = torch.randn(1, *sigma.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    torch.testing.assert_close(
        other.predict(x_t, index, other.condition(["cat"])).x0, sigma.predict(x_t, index, sigma.condition(["cat"])).x0
    )
    assert other.schedule.fingerprint() == sigma.schedule.fingerprint()


def test_a_model_that_was_distilled_is_warned_of(copy, caplog):
    LCMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").save_pretrained(copy / "scheduler")
    with caplog.at_level(logging.WARNING, logger="diffsight"):
        load(copy)
    assert "LCMScheduler" in caplog.text


def test_a_flow_is_refused(copy):
    FlowMatchEulerDiscreteScheduler().save_pretrained(copy / "scheduler")
    with pytest.raises(ModelError, match="'flow'"):
        load(copy)


def test_a_folder_without_a_text_encoder_is_refused(copy):
    shutil.rmtree(copy / "text_encoder")
    rewrite(copy / "model_index.json", text_encoder=[None, None])
    with pytest.raises(ModelError, match="no text encoder"):
        load(copy)


def test_a_folder_without_a_vocabulary_is_refused(copy):
    """Transformers would make a tokenizer that knows no word, and all prompts would be the same."""
    (copy / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no vocabulary"):
        load(copy)


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is here and reads the vocabulary")
def test_what_a_vocabulary_of_sentencepiece_needs_is_said(copy):
    (copy / "tokenizer" / "tokenizer.json").rename(copy / "tokenizer" / "spiece.model")
    with pytest.raises(ModelError, match=r"diffsight\[sentencepiece\]"):
        load(copy)


def test_pictures_that_cannot_be_cut_into_patches_are_refused(copy):
    (copy / "diffsight.json").write_text(json.dumps({"transform": {"size": 18}}))
    with pytest.raises(ModelError, match="multiple of 4"):
        load(copy)


def test_words_that_t5_reads_as_the_same_are_told(sigma, caplog):
    DiffusionClassifier(sigma, ["cat", "dog"]).fit()
    assert not caplog.text
    DiffusionClassifier(sigma, ["猫", "犬"]).fit()
    assert "cannot tell 'a photo of a 猫.' from 'a photo of a 犬.'" in caplog.text
    assert "<unk>" in caplog.text
