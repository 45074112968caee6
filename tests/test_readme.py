"""Every command and every program of the README runs.

Commands run in a folder with what the README speaks of: photo.jpg, holiday/, names.txt, queries, a checkpoint. Models
that would have to be downloaded are replaced by small ones; REPLACED lists the rest.
"""

import re
import shlex
from pathlib import Path

import pytest
import torch
from backbones.converting.adm_reference import Reference
from PIL import Image
from pipelines import save_dit

from diffsight.backbones.cards import assets, cards
from diffsight.backbones.converting.adm_networks import KINDS, ADMConfig
from diffsight.cli import main

README = Path(__file__).parents[1] / "README.md"
SAMPLES = assets() / "samples"
# In the place of OpenAI's network: 37 blocks, too, but narrow ones.
ADM = ADMConfig(image_size=64, channels=32, multipliers=(1,) * 6, attention=(8, 4, 2), head_channels=32)
FASHION = Path("/usr/share/datasets/fashion-mnist")

# What stands for what cannot be had in a test. None: not run.
REPLACED = {
    "make test": None,
    "make demo": "diffsight classify --samples --limit 3",  # without the limit in the Makefile
    "--task pets": "--task holiday",
    "--task aircraft": "--task holiday",
    "--limit 100": "--limit 1",
    "holiday/cat/*.png": "holiday/cat/0.png holiday/cat/1.png",  # as the shell does
    "path/to/my-model": str(assets() / "tiny-fashion"),
    "--per-class 1000": "--per-class 6 --steps 5",
    "--network mobilenetv3-small": "--network test_resnet --epochs 1",  # one of timm's, which is exported sooner
    "hf:openai/clip-vit-large-patch14": str(assets() / "tiny-shapes-clip"),
    "diffsight compare": "diffsight compare --per-class 2 --draws 2 --seeds 1 --network test_resnet --epochs 1",
    "--export small.onnx": "--export small.onnx --draws 4 --network test_resnet --epochs 1",
}
IN_PROGRAMS = {
    "per_class=1000": "per_class=4",
    'network="mobilenetv3-small"': 'network="test_resnet", epochs=1',
}

pytestmark = pytest.mark.skipif(not (assets() / "tiny-fashion").is_dir(), reason="the embedded model is not there")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands():
    lines = "".join(blocks("bash")).splitlines()
    return [line.partition("#")[0].strip() for line in lines]


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    return save_dit(tmp_path_factory.mktemp("dit"), names=("golden retriever", "tabby, tabby cat", "tench"))


@pytest.fixture
def offline(dit):
    """Replace what a test cannot have: by a small DiT if it takes class ids, else by the embedded model."""

    def replace(text):
        for name, card in cards().items():
            if card.checkpoint is not None:  # To be converted first, and the README does.
                continue
            text = re.sub(
                rf"(?<![\w./-]){re.escape(name)}(?![\w./-])",
                str(dit) if card.family == "transformer" else "tiny-fashion",
                text,
            )
        return text

    return replace


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README speaks of; one folder for all, for a run is made by one line and read by the next."""
    place = tmp_path_factory.mktemp("readme")
    boot = next((SAMPLES / "ankle-boot").iterdir())
    Image.open(boot).resize((64, 64)).convert("RGB").save(place / "photo.jpg")
    for name, kind in {"cat": "ankle-boot", "dog": "bag"}.items():
        (place / "holiday" / name).mkdir(parents=True)
        for number, source in enumerate(sorted((SAMPLES / kind).iterdir())[:6]):
            Image.open(source).save(place / "holiday" / name / f"{number}.png")
    (place / "names.txt").write_text("cat\ndog\n")
    (place / "queries.jsonl").write_text('{"image": "photo.jpg", "texts": ["a cat", "a dog"], "positive": 0}\n')
    original = Reference(
        image_size=ADM.image_size,
        num_channels=ADM.channels,
        channel_mult=ADM.multipliers,
        num_res_blocks=ADM.res_blocks,
        attention_resolutions=ADM.attention,
        num_head_channels=ADM.head_channels,
    )
    torch.save(original.random_state(), place / "256x256_diffusion_uncond.pt")
    return place


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_commands(command, folder, offline, monkeypatch, capsys):
    monkeypatch.setenv("DIFFSIGHT_CACHE", str(folder / "cache"))
    monkeypatch.setitem(KINDS, "adm-256-uncond", ADM)
    for text, stand_in in REPLACED.items():
        if text in command and stand_in is None:
            pytest.skip("this is it")
        command = command.replace(text, stand_in or "")
    # The run that is rescored is of that data, too.
    if ("fashion-mnist" in command or "runs/first" in command) and not FASHION.is_dir():
        pytest.skip("needs the Debian package dataset-fashion-mnist")
    program, *arguments = shlex.split(offline(command))
    assert program == "diffsight"
    monkeypatch.chdir(folder)
    code = main(arguments)
    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert shown.out


@pytest.mark.parametrize("program", blocks("python"))
def test_programs(program, folder, offline, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for text, stand_in in IN_PROGRAMS.items():
        program = program.replace(text, stand_in)
    exec(compile(offline(program), "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_pictures_and_links_are_there():
    root = README.parent
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8"))
    assert [target for target in targets if not (root / target).exists()] == []


def test_make_demo_is_what_is_tested():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert "diffsight classify --samples\n" in makefile
