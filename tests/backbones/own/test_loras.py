"""LoRA out of a model file, against diffusers' own pipelines with the same files."""

import logging
import warnings

import pytest
import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from pipelines import save_dit, save_stable_diffusion
from safetensors.torch import load_file, save_file
from tiny.additions import save_kohya, save_lora
from tiny.deepfloyd import save_deepfloyd
from tiny.flux import save_flux
from tiny.sana import save_sana
from tiny.sd3 import save_sd3
from tiny.sdxl import save_sdxl

from diffsight.backbones import load
from diffsight.backbones.speed import speed_up
from diffsight.errors import ModelError

FAMILIES = {
    "stable-diffusion": (save_stable_diffusion, ("unet", "text_encoder")),
    "sdxl": (save_sdxl, ("unet", "text_encoder", "text_encoder_2")),
    "stable-diffusion-3": (save_sd3, ("transformer", "text_encoder", "text_encoder_2")),
    "flux": (save_flux, ("transformer", "text_encoder")),
    "sana": (save_sana, ("transformer",)),
    "deepfloyd": (save_deepfloyd, ("unet",)),
}


def model_file(place, base, *loras):
    lines = "".join(f"  - {{file: {file.name}, scale: {scale}}}\n" for file, scale in loras)
    place.write_text(f"base: {base.name}\nlora:\n{lines}")
    return place


def pipeline_of(folder, *loras):
    """Diffusers' pipeline with LoRA that are not fused."""
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Of peft, at the second one.
        for number, (file, _) in enumerate(loras):
            pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{number}")
    pipeline.set_adapters([f"a{number}" for number in range(len(loras))], [scale for _, scale in loras])
    return pipeline


def outputs(backbone, network):
    """Of the backbone, and of another network that is fed the same."""
    fed = {}
    handle = backbone.network.register_forward_pre_hook(
        lambda module, args, given: fed.update(args=args, given=given), with_kwargs=True
    )
    x_t = torch.randn(2, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    found = backbone.predict(x_t, torch.tensor([100, 700]), backbone.condition(["cat", "a photo of a dog"])).output
    handle.remove()
    with torch.no_grad():
        expected = network(*fed["args"], **fed["given"]).sample
        own = backbone.network(*fed["args"], **fed["given"]).sample
    return found, own, expected


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_that_of_diffusers_pipeline(family, tmp_path):
    saver, parts = FAMILIES[family]
    folder = saver(tmp_path / "base")
    first, second = (save_lora(folder, tmp_path / f"{i}.safetensors", *parts, seed=i) for i in range(2))
    loras = ((first, 1.0), (second, 0.7))
    backbone = load(model_file(tmp_path / "mine.yaml", folder, *loras))
    pipeline = pipeline_of(folder, *loras)
    found, own, expected = outputs(backbone, getattr(pipeline, parts[0]))
    torch.testing.assert_close(own, expected, atol=2e-5, rtol=2e-5)
    assert not torch.allclose(found, outputs(load(folder), backbone.network)[0], atol=1e-2)
    assert not any(isinstance(module, BaseTunerLayer) for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


@pytest.mark.parametrize("family", ["stable-diffusion", "sdxl"])
def test_the_text_is_that_of_diffusers_pipeline(family, tmp_path):
    saver, parts = FAMILIES[family]
    folder = saver(tmp_path / "base")
    lora = save_lora(folder, tmp_path / "text.safetensors", *parts[1:]), 0.5
    before = torch.random.get_rng_state()
    condition = load(model_file(tmp_path / "mine.yaml", folder, lora)).condition(["a photo of a cat"])
    assert torch.equal(before, torch.random.get_rng_state())
    expected = pipeline_of(folder, lora).encode_prompt(
        "a photo of a cat", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    torch.testing.assert_close(condition.tensors["encoder_hidden_states"], expected[0], atol=1e-5, rtol=1e-5)
    if family == "sdxl":
        torch.testing.assert_close(condition.tensors["text_embeds"], expected[2], atol=1e-5, rtol=1e-5)
    plain = load(folder).condition(["a photo of a cat"]).tensors["encoder_hidden_states"]
    assert not torch.allclose(plain, expected[0], atol=1e-2)


def test_kohyas_format_is_read_with_its_alphas(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    file = save_kohya(tmp_path / "kohya.safetensors", pipeline, rank=2, alpha=1.0)
    changed = load(model_file(tmp_path / "mine.yaml", folder, (file, 0.5)))
    weights, state = dict(pipeline.unet.named_parameters()), load_file(file)
    queries = [name for name in weights if name.endswith(".to_q.weight")]
    assert queries
    for name in queries:
        key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
        # W + scale · alpha / rank · up · down
        added = 0.5 * 1.0 / 2 * state[f"{key}.lora_up.weight"] @ state[f"{key}.lora_down.weight"]
        torch.testing.assert_close(dict(changed.unet.named_parameters())[name], weights[name] + added)


def test_it_is_fused_before_the_weights_are_rounded(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    lora = save_lora(folder, tmp_path / "a.safetensors", "unet"), 1e-3
    place = model_file(tmp_path / "mine.yaml", folder, lora)
    half, full = load(place, dtype="bf16"), load(place)
    for rounded, exact in zip(half.unet.parameters(), full.unet.parameters(), strict=True):
        assert torch.equal(rounded, exact.bfloat16())


def test_a_compiled_model_keeps_it(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    backbone = load(model_file(tmp_path / "m.yaml", folder, (save_lora(folder, tmp_path / "a.safetensors", "unet"), 1)))
    fast = speed_up(backbone, channels_last=True)
    found, _, expected = outputs(fast, backbone.unet)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_lora_for_the_model_is_refused_with_its_keys(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    strange = tmp_path / "strange.safetensors"
    save_file({"model.layers.0.weight": torch.ones(2, 2)}, strange)
    with pytest.raises(ModelError, match=r"strange.safetensors is no LoRA for this model.*model\.layers\.0\.weight"):
        load(model_file(tmp_path / "mine.yaml", folder, (strange, 1)))
    other = save_lora(save_sd3(tmp_path / "sd3"), tmp_path / "sd3.safetensors", "transformer")
    with pytest.raises(ModelError, match=r"changes nothing in unet.*transformer\.transformer_blocks"):
        load(model_file(tmp_path / "mine.yaml", folder, (other, 1)))
    renamed = {f"unet.nowhere.{i}.to_q.lora_{side}.weight": torch.ones(2, 2) for i in range(2) for side in "AB"}
    save_file(renamed, strange)
    with pytest.raises(ModelError, match=r"strange.safetensors does not fit the unet.*unet\.nowhere\.0"):
        load(model_file(tmp_path / "mine.yaml", folder, (strange, 1)))


def test_one_of_other_widths_is_refused(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    file = save_lora(folder, tmp_path / "a.safetensors", "unet")
    save_file({key: torch.ones(value.shape[0] + 1, value.shape[1] + 1) for key, value in load_file(file).items()}, file)
    with pytest.raises(ModelError, match="does not fit the unet"):
        load(model_file(tmp_path / "mine.yaml", folder, (file, 1)))


def test_layers_that_are_not_there_are_told(tmp_path, caplog):
    folder = save_stable_diffusion(tmp_path / "base")
    file = save_lora(folder, tmp_path / "a.safetensors", "unet")
    extra = {f"unet.nowhere.to_q.lora_{side}.weight": torch.ones(2, 2) for side in "AB"}
    save_file(load_file(file) | extra, file)
    with caplog.at_level(logging.WARNING):
        load(model_file(tmp_path / "mine.yaml", folder, (file, 1)))
    assert "that a.safetensors changes in the unet" in caplog.text


def test_doras_and_other_families_are_refused(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    file = save_lora(folder, tmp_path / "a.safetensors", "unet")
    dora = tmp_path / "dora.safetensors"
    save_file(load_file(file) | {"unet.mid_block.dora_scale": torch.ones(2)}, dora)
    with pytest.raises(ModelError, match="is a DoRA"):
        load(model_file(tmp_path / "mine.yaml", folder, (dora, 1)))
    save_dit(tmp_path / "dit")
    with pytest.raises(ModelError, match="no loader of LoRA for a DiTPipeline"):
        load(model_file(tmp_path / "mine.yaml", tmp_path / "dit", (file, 1)))
