import json
import shutil
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import save_stable_diffusion, tokenizer
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from diffsight.backbones.cards import Card, cards
from diffsight.backbones.encoders.clip import clip_hash, is_clip, load_clip
from diffsight.errors import InputError, ModelError, PromptError

TEXTS = ["a photo of a cat", "a dog", "bird", "a photo of a bird, a dog"]


def save_clip(folder, *, seed=0, max_length=16, pad="<|endoftext|>", size=16, **text):
    """A CLIP of a few thousand parameters: its model, its tokenizer and its preprocessor."""
    tokens = tokenizer(max_length)
    tokens.pad_token = pad
    processor = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": 0}
    config = CLIPConfig(
        text_config={**layers, **marks, "vocab_size": len(tokens), "max_position_embeddings": 16, **text},
        vision_config={**layers, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # As they are made, all texts are nearly the same vector.
                torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pictures(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def change_json(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder, device="cpu", dtype="fp32")


@pytest.fixture
def small_card(monkeypatch, folder):
    card = Card(name="small-clip", family="clip", description="a test", licence="none", embedded=str(folder))

    def use(**values):
        changed = dict(cards()) | {"small-clip": replace(card, **values)}
        for module in ("cards", "encoders.folders"):
            monkeypatch.setattr(import_module(f"diffsight.backbones.{module}"), "cards", lambda: changed)

    return use


@pytest.mark.parametrize("pad", ["<|endoftext|>", "a"])
def test_similarity_is_what_clip_itself_computes(tmp_path, pad):
    folder = save_clip(tmp_path, pad=pad)
    images = pictures((16, 16), (40, 23), (17, 60))
    inputs = CLIPProcessor.from_pretrained(folder)(text=TEXTS, images=images, return_tensors="pt", padding=True)
    # transformers' default resizes by torchvision, we by Pillow as OpenAI did: their bytes differ by one now and then.
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(folder)(**inputs).logits_per_image
    found = load_clip(folder, device="cpu").similarity(images, TEXTS)
    assert expected.std() > 0.3
    torch.testing.assert_close(found[:1], expected[:1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=0)


def test_vectors_have_length_one(clip):
    images, texts = clip.images(pictures((16, 16), (40, 23))), clip.texts(TEXTS)
    assert images.shape == (2, clip.dim)
    assert texts.shape == (4, clip.dim)
    for vectors in (images, texts):
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)))
        assert not vectors.requires_grad


def test_no_images_and_no_texts_are_no_vectors(clip):
    assert clip.images([]).shape == (0, clip.dim)
    assert clip.texts([]).shape == (0, clip.dim)
    assert clip.similarity(pictures((16, 16)), []).shape == (1, 0)


def test_images_are_seen_as_openai_prepared_them(folder):
    from torchvision.transforms import v2

    # Where an odd number of pixels is cut off, transformers leaves out one more on the right and torchvision may not.
    (image,) = pictures((46, 23))
    steps = [v2.Resize(16, v2.InterpolationMode.BICUBIC), v2.CenterCrop(16), v2.PILToTensor()]
    pixels = v2.Compose(steps)(image).float() / 255
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    mean, std = (torch.tensor(processor[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    clip = load_clip(folder, device="cpu", dtype="fp32")
    expected = CLIPModel.from_pretrained(folder).get_image_features(((pixels - mean) / std)[None]).pooler_output
    torch.testing.assert_close(clip.images([image]), torch.nn.functional.normalize(expected), atol=1e-5, rtol=0)


def test_an_image_does_not_depend_on_its_neighbours(clip):
    images = pictures(*[(16 + 7 * (i % 5), 16 + i % 3) for i in range(70)])
    together = clip.images(images)
    torch.testing.assert_close(clip.images(images[::-1]).flip(0), together, atol=1e-5, rtol=0)
    for index in (0, 63, 69):
        torch.testing.assert_close(clip.images(images[index : index + 1])[0], together[index], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("width", "height"), [(40, 3), (3, 40), (40, 1)])
def test_flat_pictures_are_not_taken_for_channels(clip, width, height):
    (image,) = pictures((width, height))
    grown = image.resize((max(16, width * 16 // min(width, height)), max(16, height * 16 // min(width, height))), 3)
    torch.testing.assert_close(clip.images([image]), clip.images([grown]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("pad", ["<|endoftext|>", "a"])
def test_a_text_does_not_depend_on_its_neighbours_and_the_padding(tmp_path, old, pad):
    # Before 2023-06 configurations said that the end mark is token 2, which transformers reads as the highest id.
    clip = load_clip(save_clip(tmp_path, pad=pad, **({"eos_token_id": 2} if old else {})), device="cpu", dtype="fp32")
    together = clip.texts(TEXTS)
    distances = torch.cdist(together, together) + torch.eye(len(TEXTS))
    assert distances.min() > 0.1
    torch.testing.assert_close(clip.texts(TEXTS[::-1]).flip(0), together, atol=1e-5, rtol=0)
    for index, text in enumerate(TEXTS):
        torch.testing.assert_close(clip.texts([text])[0], together[index], atol=1e-5, rtol=0)
        alone = clip.tokenizer([text], return_tensors="pt")  # no padding at all
        expected = clip.model.get_text_features(**alone).pooler_output
        torch.testing.assert_close(together[[index]], torch.nn.functional.normalize(expected), atol=1e-5, rtol=0)
    many = clip.texts([*["a"] * 63, *TEXTS])
    torch.testing.assert_close(many[63:], together, atol=1e-5, rtol=0)


def test_a_folder_that_pads_on_the_left_is_read_all_the_same(copy, clip):
    change_json(copy / "tokenizer_config.json", padding_side="left")
    torch.testing.assert_close(load_clip(copy, device="cpu").texts(TEXTS), clip.texts(TEXTS))


@pytest.mark.parametrize("max_length", [16, 10**30])
def test_long_texts_are_refused_with_what_would_be_left(tmp_path, max_length):
    # Some folders do not say how much the model reads; then its positions do.
    clip = load_clip(save_clip(tmp_path, max_length=max_length), device="cpu")
    with pytest.raises(PromptError, match=r"reads 16: it would see only 'a photo of a cat a a a a a a a a a'"):
        clip.texts(["a dog", "a photo of a cat" + " a" * 20])


def test_dtype_is_the_networks_and_results_are_fp32(folder, clip):
    half = load_clip(folder, device="cpu", dtype="bf16")
    assert half.model.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in half.model.parameters())
    assert not half.model.training
    images, texts = half.images(pictures((20, 30))), half.texts(TEXTS)
    assert images.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(texts, clip.texts(TEXTS), atol=0.1, rtol=0)
    torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))


def test_networks_of_any_device_agree_with_the_cpu(folder, clip, device, dtype):
    found = load_clip(folder, device=device, dtype=dtype)
    near = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.texts(TEXTS).cpu(), clip.texts(TEXTS), atol=near, rtol=0)
    images = pictures((20, 30))
    torch.testing.assert_close(found.images(images).cpu(), clip.images(images), atol=near, rtol=0)


def test_identity_is_of_what_changes_numbers_and_not_of_the_place(folder, copy, clip, tmp_path):
    assert load_clip(copy, device="cpu", dtype="fp32").identity() == clip.identity()
    assert clip.identity()["dtype"] == "float32"
    assert all(isinstance(value, str) for value in clip.identity().values())
    other = load_clip(save_clip(tmp_path / "other", seed=1), device="cpu", dtype="fp32").identity()
    assert {key for key, value in clip.identity().items() if value != other[key]} == {"weights"}
    assert load_clip(folder, device="cpu", dtype="bf16").identity()["dtype"] == "bfloat16"
    change_json(copy / "preprocessor_config.json", image_mean=[0.5, 0.5, 0.5])
    assert load_clip(copy, device="cpu").identity()["preprocessing"] != clip.identity()["preprocessing"]


def test_the_hash_follows_vocabulary_too(copy, folder):
    (copy / "tokenizer.json").write_text((copy / "tokenizer.json").read_text() + " ")
    assert clip_hash(copy) != clip_hash(folder)


def test_what_clips_processor_saves_in_one_file_is_read(folder, tmp_path):
    CLIPModel.from_pretrained(folder).save_pretrained(tmp_path)
    CLIPProcessor.from_pretrained(folder).save_pretrained(tmp_path)
    assert load_clip(tmp_path, device="cpu").identity() == load_clip(folder, device="cpu").identity()


def test_other_models_are_refused(copy, tmp_path):
    change_json(copy / "config.json", model_type="siglip")
    with pytest.raises(ModelError, match="'siglip'"):
        load_clip(copy)
    with pytest.raises(ModelError, match=r"diffusion pipeline and no CLIP.*diffsight\.load"):
        load_clip(save_stable_diffusion(tmp_path / "sd"))
    with pytest.raises(ModelError, match=r"diffusion model and no CLIP.*diffsight\.load"):
        load_clip("tiny-fashion")
    (copy / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_clip(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/such/folder", "does not exist"),
        (__file__, "is a file"),
        ("hf:org/none", "could not be had"),
        ("tiny-fashon", "tiny-fashion"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(name, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_clip(name)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickle \(pytorch_model\.bin\).*CLIPModel\.from_pretrained"):
        load_clip(copy)


def test_missing_parts_are_told(copy):
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_clip(copy)
    # transformers would read texts with a vocabulary of two marks.
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load_clip(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors"):
        load_clip(copy)


def test_damaged_weights_are_told(copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_clip(copy)
    assert "\n" not in str(caught.value)


def test_weights_that_transformers_would_make_up_are_refused(copy):
    from safetensors.torch import load_file, save_file

    state = load_file(copy / "model.safetensors")
    del state["text_projection.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack text_projection\.weight"):
        load_clip(copy)


@pytest.mark.parametrize("marks", [{"eos_token_id": 5}, {"vocab_size": 50}])
def test_a_tokenizer_whose_end_the_network_would_not_find_is_refused(tmp_path, marks):
    with pytest.raises(ModelError, match=r"tokenizer .* is not the model's"):
        load_clip(save_clip(tmp_path, **marks))


def test_an_old_configuration_needs_the_end_to_be_the_highest_token(tmp_path):
    folder = save_clip(tmp_path, eos_token_id=2, vocab_size=200)
    load_clip(folder)
    tokens = tokenizer()
    tokens.add_tokens(["<new>"])
    tokens.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"tokenizer .* is not the model's"):
        load_clip(folder)


def test_a_preprocessor_of_another_size_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"32×32 pixels, but the network reads 16×16"):
        load_clip(save_clip(tmp_path, size=32))


def test_unknown_device_and_dtype(folder):
    with pytest.raises(InputError, match="Unknown device"):
        load_clip(folder, device="toaster")
    with pytest.raises(InputError, match="fp32"):
        load_clip(folder, dtype="fp8")


def test_a_card_names_an_embedded_clip_and_its_weights(small_card, clip, folder):
    small_card(weights=clip_hash(folder))
    found = load_clip("small-clip", device="cpu", dtype="fp32")
    assert found.name == "small-clip"
    assert found.identity() == clip.identity() | {"revision": "embedded"}
    assert is_clip("small-clip")
    small_card(weights="0" * 64)
    with pytest.raises(ModelError, match="not those of its card"):
        load_clip("small-clip")


def test_which_names_are_clips(folder, copy, tmp_path):
    assert is_clip(folder)
    assert is_clip(str(folder))
    assert not is_clip("tiny-fashion")
    assert not is_clip("no/such/folder")
    assert not is_clip("unknown")
    assert not is_clip("hf:org/none")
    assert not is_clip(save_stable_diffusion(tmp_path / "sd"))
    (copy / "model_index.json").write_text("{}")
    assert not is_clip(copy)
    (copy / "model_index.json").unlink()
    change_json(copy / "config.json", model_type="siglip")
    assert not is_clip(copy)
    (copy / "config.json").write_text("no json")
    assert not is_clip(copy)


def test_of_a_hub_repository_the_configuration_decides(folder, monkeypatch):
    asked = []

    def snapshot(repo, *, revision, allow_patterns, ignore_patterns):
        asked.append((repo, revision, tuple(allow_patterns)))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert is_clip("hf:org/clip@abc")
    assert asked == [("org/clip", "abc", ("config.json", "model_index.json"))]
    found = load_clip("hf:org/clip@abc", device="cpu", revision="def")
    assert asked[1][:2] == ("org/clip", "def")
    assert not any(pattern.endswith(".bin") or pattern == "*" for pattern in asked[1][2])
    assert found.identity()["revision"] == f"org/clip@{folder.name}"


def test_where_a_repository_is_gone_its_mirrors_are_asked(folder, small_card, monkeypatch):
    asked = []

    def snapshot(repo, *, revision, allow_patterns, ignore_patterns):
        asked.append((repo, revision))
        if repo == "org/gone":
            raise OSError("404")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    small_card(embedded=None, repo="org/gone", revision="abc", mirrors=("org/gone", "org/copy", "org/other"))
    found = load_clip("small-clip", device="cpu")
    assert asked == [("org/gone", "abc"), ("org/gone", None), ("org/copy", None)]
    assert found.name == "small-clip"
    assert found.identity()["revision"] == f"org/copy@{folder.name}"
    small_card(embedded=None, repo="org/gone", mirrors=())
    with pytest.raises(ModelError, match=r"could not be had .*org/gone: 404.*local folder"):
        load_clip("small-clip")
    small_card(embedded=None)
    with pytest.raises(ModelError, match="neither where the model is on the Hub nor in the package"):
        load_clip("small-clip")
