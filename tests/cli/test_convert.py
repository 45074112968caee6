import json

import pytest
import torch
import typer
from backbones.converting.adm_reference import Reference

from diffsight.backbones import load
from diffsight.backbones.converting.adm_networks import KINDS, REFUSED, ADMConfig
from diffsight.cli import app

TINY = ADMConfig(image_size=16, channels=32, multipliers=(1, 1), res_blocks=1, attention=(8,), head_channels=16)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint of a kind that is small."""
    monkeypatch.setitem(KINDS, "adm-tiny", TINY)
    original = Reference(
        image_size=16,
        num_channels=32,
        channel_mult=(1, 1),
        num_res_blocks=1,
        attention_resolutions=(8,),
        num_head_channels=16,
    )
    torch.save(original.random_state(), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_it_says_what_it_wrote_and_how_to_load_it(run, checkpoint, tmp_path):
    done = run("convert", checkpoint, "--kind", "adm-tiny", "--out", tmp_path / "tiny")
    assert (done.code, done.err) == (0, "")
    wrote, how = done.out.splitlines()
    assert f"MiB to {tmp_path / 'tiny'}" in wrote
    assert f"--model {tmp_path / 'tiny'}" in how
    assert load(tmp_path / "tiny", device="cpu").latent_shape == (3, 16, 16)


def test_json_names_the_folder(run, checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = json.loads(run("convert", checkpoint, "--kind", "adm-tiny", "--out", "tiny", "--json").out)
    assert told["folder"] == str(tmp_path / "tiny")
    assert told["bytes"] > (tmp_path / "tiny" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("adm-266", ["adm-256"]),
        *((kind, ["cannot be converted"]) for kind in REFUSED),
        ("adm-256", ["missing", "adm-tiny"]),
    ],
)
def test_refusals_are_one_line_and_write_nothing(run, checkpoint, tmp_path, kind, words):
    refused = run("convert", checkpoint, "--kind", kind, "--out", tmp_path / "out")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n") == 1
    assert all(word in refused.err for word in words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pt"]


def test_an_interruption_leaves_nothing(run, checkpoint, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffsight.backbones.converting.adm.save_file", interrupt)
    stopped = run("convert", checkpoint, "--kind", "adm-tiny", "--out", tmp_path / "out")
    assert stopped.code == 130
    assert "was not written" in stopped.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.pt"]


def test_the_help_names_every_kind():
    (option,) = (p for p in typer.main.get_command(app).commands["convert"].params if p.name == "kind")
    assert all(kind in option.help for kind in KINDS)


def test_a_model_that_has_to_be_converted_says_so(run):
    refused = run("classify", "--samples", "--model", "adm-256")
    assert refused.code == 2
    assert "256x256_diffusion.pt --kind adm-256" in refused.err
    listed = {entry["name"]: entry for entry in json.loads(run("ls", "models", "--json").out)}
    for kind in KINDS:
        assert listed[kind]["where"].startswith("https://openaipublic.blob.core.windows.net/diffusion/jul-2021/")
    assert (listed["adm-256"]["reads"], listed["adm-256-uncond"]["reads"]) == (["class ids"], [])
