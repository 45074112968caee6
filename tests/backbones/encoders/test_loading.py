import json

import numpy as np
import pytest
import torch
from encoders import save_dinov2, save_siglip
from PIL import Image
from transformers import Dinov2Model, SiglipModel

from diffsight.backbones.encoders.loading import ImageEncoder, TextImageEncoder, encoder_kind, load_encoder
from diffsight.backbones.encoders.processing import processed
from diffsight.errors import ModelError, PromptError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("encoders")
    return {"siglip": save_siglip(place / "siglip"), "dinov2": save_dinov2(place / "dinov2")}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    sizes = ((20, 30), (64, 33), (5, 7), (3, 40))
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def of(encoder, pictures):
    return encoder.vectors(torch.stack([encoder.prepare(picture) for picture in pictures]))


def test_clip_gives_the_vectors_that_it_gives_for_pictures(pictures):
    clip = load_encoder("tiny-shapes-clip", device="cpu", dtype="fp32")
    assert isinstance(clip, TextImageEncoder)
    assert clip.size == 32
    torch.testing.assert_close(of(clip, pictures), clip.images(pictures), atol=1e-5, rtol=0)
    logits = clip.scale * of(clip, pictures) @ clip.texts(["a red circle"]).T
    torch.testing.assert_close(logits, clip.similarity(pictures, ["a red circle"]), atol=1e-3, rtol=0)


def test_siglip_agrees_with_transformers(folders, pictures):
    siglip = load_encoder(folders["siglip"], device="cpu", dtype="fp32")
    assert isinstance(siglip, TextImageEncoder)
    model = SiglipModel.from_pretrained(folders["siglip"]).eval()
    texts = ["a cat", "a photo of a dog"]
    tokens = siglip.tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        want = model(input_ids=tokens, pixel_values=processed(siglip.processor, pictures)).logits_per_image
    found = siglip.scale * of(siglip, pictures) @ siglip.texts(texts).T + model.logit_bias.detach()
    torch.testing.assert_close(found, want, atol=1e-4, rtol=1e-4)
    together = siglip.similarity(pictures, texts) + model.logit_bias.detach()
    torch.testing.assert_close(together, want, atol=1e-4, rtol=1e-4)
    assert siglip.texts([]).shape == siglip.images([]).shape == (0, siglip.dim)


def test_siglip_reads_texts_as_it_was_trained(folders, tmp_path):
    first = load_encoder(folders["siglip"], device="cpu", dtype="fp32")
    assert first.plain("A  photo, of a T-shirt/top.") == "a photo of a tshirttop"
    torch.testing.assert_close(first.texts(["A cat."]), first.texts(["a cat"]))
    with pytest.raises(PromptError, match="16"):
        first.texts(["a photo of a cat " * 8])


def test_dinov2_agrees_with_transformers(folders, pictures):
    dino = load_encoder(folders["dinov2"], device="cpu", dtype="fp32")
    assert isinstance(dino, ImageEncoder)
    assert not isinstance(dino, TextImageEncoder)
    model = Dinov2Model.from_pretrained(folders["dinov2"]).eval()
    with torch.no_grad():
        want = model(pixel_values=processed(dino.processor, pictures)).pooler_output
    torch.testing.assert_close(of(dino, pictures), want, atol=1e-4, rtol=1e-4)
    assert dino.size == 16


def test_an_identity_tells_weights_apart_and_not_places(folders, tmp_path):
    one = load_encoder(folders["dinov2"], device="cpu", dtype="fp32").identity()
    again = load_encoder(save_dinov2(tmp_path / "again"), device="cpu", dtype="fp32").identity()
    assert one["weights"] != load_encoder(folders["siglip"], device="cpu").identity()["weights"]
    assert str(tmp_path) not in str(again)


def test_what_a_name_means(folders, tmp_path):
    assert encoder_kind("tiny-shapes-clip") == "clip"
    assert encoder_kind(folders["siglip"]) == "siglip"
    assert encoder_kind(folders["dinov2"]) == "dinov2"
    assert encoder_kind("tiny-fashion") is None
    assert encoder_kind(tmp_path) is None
    assert encoder_kind("hf:nobody/nothing-at-all") is None  # offline


def test_what_cannot_be_loaded_says_why(folders, tmp_path):
    with pytest.raises(ModelError, match="Offline, give a local folder"):
        load_encoder("hf:nobody/nothing-at-all")
    with pytest.raises(ModelError, match="does not exist"):
        load_encoder("some/where")
    with pytest.raises(ModelError, match="none of the networks"):
        load_encoder("tiny-fashion")
    broken = save_dinov2(tmp_path / "broken")
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        load_encoder(broken)
    side = save_siglip(tmp_path / "side")
    own = side / "preprocessor_config.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"size": {"height": 24, "width": 24}}))
    with pytest.raises(ModelError, match="24×24"):
        load_encoder(side)
