"""The adapter in docs/adapters.md passes the contract, put in place as the page says; and its tables are right."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import diffusers
import pytest
import torch
from backbones import test_contract as contract
from diffusers import DDPMScheduler, UNet2DModel
from pipelines import vae

from diffsight.backbones import cards, families, load
from diffsight.backbones.converting.single_file import single_file_kinds
from diffsight.backbones.families import FAMILIES, Family
from diffsight.backbones.own.model_file import read_model_file

PAGE = (Path(__file__).parents[2] / "docs" / "adapters.md").read_text(encoding="utf-8")
MODULE = "diffsight.backbones.models.latent_classes"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pipeline of the kind that the page's adapter is for."""
    folder = tmp_path_factory.mktemp("latent-classes")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=4,
            num_class_embeds=4,
        )
        parts = {"unet": unet, "vae": vae(), "scheduler": DDPMScheduler(clip_sample=False)}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text('{"_class_name": "LatentClassesPipeline"}')
    return folder


@pytest.fixture(scope="module")
def backbone(folder, tmp_path_factory):
    """The page's code as a module, and its line in the registry."""
    file = tmp_path_factory.mktemp("code") / "latent_classes.py"
    file.write_text(next(text for text in blocks("python") if "def open_folder" in text))
    entry = eval(blocks("text")[0].strip().rstrip(","), {"Family": Family})
    spec = spec_from_file_location(MODULE, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, MODULE, module_from_spec(spec))
        spec.loader.exec_module(sys.modules[MODULE])
        patch.setattr(families, "FAMILIES", (*FAMILIES, entry))
        yield load(folder)


@pytest.fixture
def names(monkeypatch):
    """The page's classes have their ids as names."""
    monkeypatch.setattr(contract, "NAMES", ["0", "1", "2"])


inputs = contract.inputs
test_it_is_a_backbone = contract.test_it_is_a_backbone
test_noise_is_mixed = contract.test_noise_is_mixed_as_diffusers_scheduler_does
test_an_empty_list_of_names = contract.test_an_empty_list_of_names_has_a_null_member_alone
test_images_become_latents = contract.test_images_become_latents_and_come_back


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    "demand",
    [
        contract.test_a_perfect_prediction_has_no_error_in_any_view,
        contract.test_a_row_depends_neither_on_its_neighbours_nor_on_its_place,
        contract.test_blocks_have_maps_and_costs,
    ],
)
def test_the_pages_adapter_passes(demand, backbone, inputs):
    demand(backbone, inputs)


@pytest.mark.usefixtures("names")
def test_the_pages_adapter_classifies_and_draws(backbone):
    contract.test_photographs_are_classified(backbone)


def test_the_tables_name_every_pipeline_and_what_diffusers_has_for_it():
    rows = [re.findall(r"[^|]+", line) for line in PAGE.splitlines() if line.startswith("| `")]
    can = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows if len(row) == 9}
    assert list(can) == [pipeline for family in FAMILIES for pipeline in family.pipelines]
    for pipeline, (*_, lora, _, single) in can.items():
        kind = getattr(diffusers, pipeline)
        assert (lora == "yes") == hasattr(kind, "lora_state_dict"), pipeline
        assert (single == "yes") == hasattr(kind, "from_single_file"), pipeline
    convertible = {card.family for card in cards().values() if card.name in single_file_kinds()}
    assert convertible == {family.module for family in FAMILIES if can[family.pipelines[0]][-1] == "yes"}
    named = " ".join(row[0] for row in rows if len(row) == 4)
    assert all(f"`{pipeline}`" in named for pipeline in can)


def test_the_cards_that_are_named_exist():
    rows = [re.findall(r"[^|]+", line) for line in PAGE.splitlines() if line.startswith("| `")]
    for row in (row for row in rows if len(row) == 4):
        kinds = {cards()[name].family for name in re.findall(r"`([^`]+)`", row[1])}
        pipeline = re.search(r"`(\w+)`", row[0])[1]
        assert kinds == {next(family.module for family in FAMILIES if pipeline in family.pipelines)}


def test_the_pages_model_file_is_one(tmp_path):
    (text,) = blocks("yaml")
    for name in ("style", "pets", "<my-dog>", "toy"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "my-finetune" / "unet").mkdir(parents=True)
    (tmp_path / "my-finetune" / "unet" / "config.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text(text)
    found = read_model_file(tmp_path / "mine.yaml")
    assert (found.base, found.text_encoder) == ("sd-1.5", "offload")
    assert [one.scale for one in found.lora] == [1.0, 0.7]
    assert [one.token for one in found.embeddings] == ["<my-dog>", "<toy>"]
