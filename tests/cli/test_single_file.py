"""Single files in the authors' own names, back to the folder that they were made of."""

import shutil

import pytest
import torch
from diffusers import DiffusionPipeline
from pipelines import save_stable_diffusion
from safetensors.torch import load_file, save_file
from tiny.original import save_original
from tiny.sdxl import save_sdxl

from diffsight.backbones import cards, load
from diffsight.backbones.converting.single_file import convert_single_file, single_file_kinds
from diffsight.errors import InputError, ModelError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pipeline, the same in one file, and the folder of another one for its configuration alone."""
    place = tmp_path_factory.mktemp("single")
    save_stable_diffusion(place / "model")
    save_sdxl(place / "sdxl")
    pipeline = DiffusionPipeline.from_pretrained(place / "model", local_files_only=True)
    save_original(pipeline, place / "model.safetensors")
    shutil.copytree(place / "model", place / "config", ignore=shutil.ignore_patterns("*.safetensors"))
    (place / "old.ckpt").write_bytes(b"pickle")
    return place


def test_a_file_becomes_the_folder_that_it_was_made_of(place, run, tmp_path):
    out = tmp_path / "out"
    done = run("convert", place / "model.safetensors", "--kind", "sd-1.5", "--config", place / "config", "--out", out)
    assert done.code == 0, done.err
    assert f"--model {out}" in done.out
    found, expected = load(out), load(place / "model")
    x_t, index = torch.randn(2, *found.latent_shape), torch.tensor([50, 800])
    names = ["cat", "a photo of a dog"]
    outputs = [one.predict(x_t, index, one.condition(names)).eps for one in (found, expected)]
    torch.testing.assert_close(*outputs, atol=0, rtol=0)
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(found.encode(images), expected.encode(images))
    torch.testing.assert_close(found.decode(found.encode(images)), expected.decode(expected.encode(images)))
    assert found.schedule.fingerprint() == expected.schedule.fingerprint()


def test_what_is_missing_is_told_and_nothing_is_written(place, tmp_path):
    state = load_file(place / "model.safetensors")
    for left_out in ("model.diffusion_model.middle", "first_stage_model.decoder", "cond_stage_model"):
        save_file(
            {key: value for key, value in state.items() if not key.startswith(left_out)}, tmp_path / "a.safetensors"
        )
        with pytest.raises(ModelError, match=r"a.safetensors (is no whole sd-1.5|has not all weights)"):
            convert_single_file(tmp_path / "a.safetensors", tmp_path / "out", kind="sd-1.5", config=place / "config")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("file", "options", "words"),
    [
        ("old.ckpt", ("--kind", "sd-1.5"), ["is a pickle", "weights_only=True", "old.safetensors"]),
        ("none.safetensors", ("--kind", "sd-1.5"), ["no file"]),
        ("model.safetensors", ("--kind", "sd-1.55"), ["Unknown kind 'sd-1.55'", "sd-1.5"]),
        ("model.safetensors", ("--kind", "adm-256", "--config", "."), ["--config is for single files of", "sd-1.5"]),
        ("model.safetensors", ("--kind", "sd-1.5", "--config", "nowhere"), ["nowhere", "model_index.json"]),
        ("model.safetensors", ("--kind", "sd-1.5", "--config", "sdxl"), ["StableDiffusionXLPipeline", "another kind"]),
        ("model.safetensors", ("--kind", "sd-1.5"), ["could not be had", "--config"]),
    ],
)
def test_refusals_are_one_line(place, run, monkeypatch, file, options, words):
    monkeypatch.chdir(place)
    refused = run("convert", file, *options, "--out", "out")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert all(word in refused.err for word in words), refused.err
    assert not (place / "out").exists()


def test_the_folder_must_be_new_and_the_kind_a_single_files(place):
    with pytest.raises(InputError, match="exists already"):
        convert_single_file(place / "model.safetensors", place / "model", kind="sd-1.5", config=place / "config")
    with pytest.raises(InputError, match="not known as a single file"):
        convert_single_file(place / "model.safetensors", place / "new", kind="dit-xl-2-256")
    assert {"sd-1.5", "sd-2-base"} <= set(single_file_kinds()) <= set(cards())
