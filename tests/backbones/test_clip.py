"""CLIP as a baseline: what transformers itself computes, whatever is beside it in the batch."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from diffsight.backbones.clip import is_clip, load_clip
from diffsight.errors import InputError, ModelError, PromptError

TEXTS = ["a cat", "a dog on a mat", "bird"]


def save_clip(folder, *, seed=0):
    tokens = tokenizer(16)
    text = CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8))
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)) for _ in range(3)]


def test_similarity_is_clips_own(clip, pictures):
    pixels = clip.processor(images=pictures, return_tensors="pt")["pixel_values"]
    tokens = clip.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = clip.model(pixel_values=pixels, **tokens).logits_per_image
    torch.testing.assert_close(clip.similarity(pictures, TEXTS), own, rtol=1e-5, atol=1e-5)


def test_embeddings_do_not_depend_on_their_neighbours(clip, pictures, monkeypatch):
    images, texts = clip.images(pictures), clip.texts(TEXTS)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(3))
    monkeypatch.setattr("diffsight.backbones.clip._GROUP", 2)
    torch.testing.assert_close(clip.images(pictures[::-1]).flip(0), images, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clip.texts(TEXTS[::-1]).flip(0), texts, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(clip.texts(TEXTS[:1]), texts[:1], rtol=1e-5, atol=1e-6)


def test_a_long_text_is_refused(clip):
    with pytest.raises(PromptError, match="tokens"):
        clip.texts(["a cat", "cat " * 40])
    with pytest.raises(InputError, match="no text"):
        clip.texts([])
    with pytest.raises(InputError, match="no image"):
        clip.images([])


def test_identity_follows_the_weights(clip, tmp_path):
    other = load_clip(save_clip(tmp_path / "other", seed=1), device="cpu", dtype="fp32")
    same = load_clip(save_clip(tmp_path / "same"), device="cpu", dtype="fp32")
    assert clip.identity() == same.identity()
    assert clip.identity()["weights"] != other.identity()["weights"]
    assert str(tmp_path) not in str(same.identity())


def test_what_is_no_clip_is_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ModelError, match="siglip"):
        load_clip(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="no weights"):
        load_clip(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="pickle"):
        load_clip(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_clip(tmp_path)
    with pytest.raises(ModelError, match="There is no folder"):
        load_clip(tmp_path / "none")
    with pytest.raises(ModelError, match="no CLIP model"):
        load_clip("tiny-fashion")
    with pytest.raises(ModelError, match="Unknown model"):
        load_clip("tiny-fashionn")


def test_clip_is_told_from_diffusion(folder, tmp_path):
    assert is_clip(str(folder))
    assert is_clip("hf:openai/clip-vit-large-patch14")
    assert not is_clip("hf:org/stable-diffusion")
    assert not is_clip("tiny-fashion")
    assert not is_clip(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    assert not is_clip(str(tmp_path))


def test_the_hub_out_of_reach_is_a_clear_error(monkeypatch):
    def offline(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ModelError, match=r"no network.*local folder"):
        load_clip("hf:openai/clip-vit-base-patch32")
