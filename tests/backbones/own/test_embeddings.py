"""Textual inversion out of a model file, against diffusers' own pipelines with the same files."""

import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import save_dit, save_stable_diffusion
from safetensors.torch import load_file, save_file
from tiny.additions import save_embedding
from tiny.sdxl import save_sdxl

from diffsight.backbones import load
from diffsight.errors import ModelError, PromptError

PROMPT = "a photo of a <my-dog> cat"
SHORT = "a photo of a <dog> cat"  # The tiny SDXL's second tokenizer pads with "-", which is never part of a word.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_stable_diffusion(tmp_path_factory.mktemp("sd") / "base")


def with_embeddings(folder, place, *items):
    place.write_text(f"base: {folder}\nembeddings:\n" + "".join(f"  - {item}\n" for item in items))
    return place


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_word_is_what_diffusers_pipeline_makes_of_it(folder, tmp_path, vectors):
    file = save_embedding(tmp_path / "<my-dog>.safetensors", {"<my-dog>": 16}, vectors=vectors)
    backbone = load(with_embeddings(folder, tmp_path / "mine.yaml", file.name))
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.load_textual_inversion(str(file), token="<my-dog>")
    expected, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    found = backbone.condition([PROMPT]).tensors["encoder_hidden_states"]
    torch.testing.assert_close(found, expected)
    assert backbone.tokens([PROMPT]).words(0)[4][0] == "<my-dog>"
    assert [word for word, _ in backbone.tokens([PROMPT]).words(0)] == ["a", "photo", "of", "a", "<my-dog>", "cat"]
    assert [len(places) for _, places in backbone.tokens([PROMPT]).words(0)] == [1, 1, 1, 1, vectors, 1]


def test_other_prompts_are_read_as_before(folder, tmp_path):
    file = save_embedding(tmp_path / "<my-dog>.safetensors", {"emb_params": 16}, vectors=2)
    changed = load(with_embeddings(folder, tmp_path / "mine.yaml", file.name)).condition(["a photo of a dog"])
    plain = load(folder).condition(["a photo of a dog"])
    for one, other in ((changed.tensors, plain.tensors), (changed.null, plain.null)):
        assert torch.equal(one["encoder_hidden_states"], other["encoder_hidden_states"])


def test_sdxl_takes_vectors_for_both_encoders(tmp_path):
    folder = save_sdxl(tmp_path / "base")
    file = save_embedding(tmp_path / "dog.safetensors", {"clip_l": 16, "clip_g": 24}, vectors=2)
    backbone = load(with_embeddings(folder, tmp_path / "mine.yaml", f"{{file: {file.name}, token: <dog>}}"))
    pipeline, state = DiffusionPipeline.from_pretrained(folder, local_files_only=True), load_file(file)
    for key, number in (("clip_l", ""), ("clip_g", "_2")):
        pipeline.load_textual_inversion(
            state[key],
            token="<dog>",
            text_encoder=getattr(pipeline, f"text_encoder{number}"),
            tokenizer=getattr(pipeline, f"tokenizer{number}"),
        )
    expected = pipeline.encode_prompt(SHORT, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    condition = backbone.condition([SHORT])
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"], expected[0])
    torch.testing.assert_close(condition.tensors["text_embeds"], expected[2])


def test_the_pooled_text_is_read_at_the_end_in_old_configurations_too(tmp_path):
    """In those the end is said to be token 2, by which CLIP's code means the largest one: the new word."""
    folder = save_sdxl(tmp_path / "base")
    file = save_embedding(tmp_path / "<dog>.safetensors", {"clip_l": 16, "clip_g": 24})
    place = with_embeddings(folder, tmp_path / "mine.yaml", file.name)
    expected = load(place).condition([SHORT]).tensors["text_embeds"]
    config = folder / "text_encoder_2" / "config.json"
    end = DiffusionPipeline.from_pretrained(folder, local_files_only=True).tokenizer_2.eos_token_id
    config.write_text(config.read_text().replace(f'"eos_token_id": {end}', '"eos_token_id": 2'))
    assert '"eos_token_id": 2' in config.read_text()
    assert torch.equal(load(place).condition([SHORT]).tensors["text_embeds"], expected)


def test_vectors_count_as_tokens_of_a_prompt(folder, tmp_path):
    file = save_embedding(tmp_path / "<my-dog>.safetensors", {"<my-dog>": 16}, vectors=9)
    backbone = load(with_embeddings(folder, tmp_path / "mine.yaml", file.name))
    assert len(backbone.condition(["a photo of a <my-dog>"])) == 1
    with pytest.raises(PromptError, match="17 tokens"):
        backbone.condition(["a photo of a <my-dog> cat dog"])


@pytest.mark.parametrize(
    ("item", "widths", "message"),
    [
        ("toy.safetensors", {"emb_params": 17}, "vectors of 17 numbers, and the text_encoder takes 16"),
        ("{file: toy.safetensors, token: cat</w>}", {"emb_params": 16}, "in the model's vocabulary already"),
        ("{file: toy.safetensors, token: Cat}", {"emb_params": 16}, "in the model's vocabulary already"),
        ("toy.safetensors", {"<cat-toy>": 16}, "calls its token '<cat-toy>', and the file's name says 'toy'"),
        ("toy.safetensors", {"clip_l": 16, "clip_g": 24}, "no textual inversion for 1 text encoder: it holds 'clip_"),
    ],
)
def test_what_does_not_fit_is_refused(folder, tmp_path, item, widths, message):
    save_embedding(tmp_path / "toy.safetensors", widths)
    with pytest.raises(ModelError, match=message):
        load(with_embeddings(folder, tmp_path / "mine.yaml", item))


def test_models_without_clip_and_files_that_are_damaged_are_refused(folder, tmp_path):
    file = save_embedding(tmp_path / "<x>.safetensors", {"<x>": 16})
    with pytest.raises(ModelError, match="Stable Diffusion 1, 2 and XL"):
        load(with_embeddings(save_dit(tmp_path / "dit"), tmp_path / "mine.yaml", file.name))
    with pytest.raises(ModelError, match="for 2 text encoders"):
        load(with_embeddings(save_sdxl(tmp_path / "sdxl"), tmp_path / "mine.yaml", file.name))
    save_file({"clip_l": torch.ones(1, 16), "clip_g": torch.ones(2, 24)}, file)
    with pytest.raises(ModelError, match="as many vectors for each"):
        load(with_embeddings(tmp_path / "sdxl", tmp_path / "mine.yaml", file.name))
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ModelError, match=r"<x>.safetensors cannot be read"):
        load(with_embeddings(folder, tmp_path / "mine.yaml", file.name))
