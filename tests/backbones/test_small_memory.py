"""Text encoders in little memory; what needs a GPU is tested where there is one."""

from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from pipelines import save_dit, save_stable_diffusion
from tiny.additions import save_lora
from tiny.flux import save_flux
from tiny.pixart import save_pixart
from tiny.sana import save_sana
from tiny.sd3 import save_sd3
from tiny.sdxl import save_sdxl
from transformers import PreTrainedModel

from diffsight.backbones import load
from diffsight.backbones.custom import wrap
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.backbones.own.loras import read_loras
from diffsight.backbones.own.model_file import read_model_file
from diffsight.backbones.small_memory import quantization, quantized, visiting
from diffsight.data.images import ImageTransform, images_from
from diffsight.diffusion.schedule import from_config
from diffsight.errors import ModelError

SAVERS = {
    "stable-diffusion": save_stable_diffusion,
    "sdxl": save_sdxl,
    "stable-diffusion-3": save_sd3,
    "flux": save_flux,
    "pixart": save_pixart,
    "sana": save_sana,
}
DDPM = {"_class_name": "DDPMScheduler", "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
without_bitsandbytes = pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")


class Nothing(torch.nn.Module):
    """A denoiser that finds no noise."""

    def forward(self, x, t):
        return torch.zeros_like(x)


def encoders(backbone):
    """All text encoders of a backbone, wherever it keeps them."""
    found, left = [], [getattr(backbone, field) for field in backbone.__dataclass_fields__]
    for value in left:
        if isinstance(value, PreTrainedModel):
            found.append(value)
        elif isinstance(value, tuple):
            left.extend(value)
        elif hasattr(value, "encoder"):
            left.append(value.encoder)
    return found


@pytest.mark.parametrize("family", SAVERS)
def test_offloaded_encoders_lie_in_main_memory_and_read_the_same(family, tmp_path, device):
    folder = SAVERS[family](tmp_path / "base")
    plain, small = load(folder, device=device), load(folder, device=device, text_encoder="offload")
    assert encoders(small)
    assert {encoder.device.type for encoder in encoders(small)} == {"cpu"}
    condition, expected = small.condition(["cat", "a dog"]), plain.condition(["cat", "a dog"])
    for found, other in ((condition.tensors, expected.tensors), (condition.null, expected.null)):
        for key, value in other.items():
            assert found[key].device == value.device
            torch.testing.assert_close(found[key], value, atol=1e-4, rtol=1e-4)
    assert {encoder.device.type for encoder in encoders(small)} == {"cpu"}
    assert small.identity() == plain.identity()


def test_it_says_nothing_of_models_without_text(tmp_path):
    folder = save_dit(tmp_path / "base")
    assert load(folder, text_encoder="4bit").identity() == load(folder).identity()


@pytest.mark.parametrize("how", ["8bit", "4bit"])
def test_quantised_encoders_need_an_nvidia_gpu_and_say_so(how, tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    with pytest.raises(ModelError, match=f"in {how} needs an NVIDIA GPU.*runs? on cpu.*'offload'"):
        load(folder, device="cpu", text_encoder=how)
    (tmp_path / "mine.yaml").write_text(f"base: base\ntext_encoder: {how}\n")
    with pytest.raises(ModelError, match="needs an NVIDIA GPU"):
        load(tmp_path / "mine.yaml", device="cpu")
    assert load(tmp_path / "mine.yaml", device="cpu", text_encoder="offload").identity() == load(folder).identity()


@without_bitsandbytes
def test_the_library_that_is_missing_is_named():
    with pytest.raises(ModelError, match="pip install bitsandbytes accelerate"):
        quantized("8bit", torch.device("cuda"))


def test_the_library_is_asked_for_what_was_wanted():
    eight, four = quantization("8bit"), quantization("4bit")
    assert (eight.load_in_8bit, eight.load_in_4bit) == (True, False)
    assert (four.load_in_8bit, four.load_in_4bit, four.bnb_4bit_quant_type) == (False, True, "nf4")
    assert four.bnb_4bit_compute_dtype == torch.bfloat16


@without_bitsandbytes
def test_the_settings_reach_transformers(tmp_path, monkeypatch):
    """As far as that goes without a GPU: transformers itself then says what it misses."""
    folder = save_stable_diffusion(tmp_path / "base")
    monkeypatch.setattr(
        "diffsight.backbones.opened.quantized", lambda how, device: {"quantization_config": quantization(how)}
    )
    with pytest.raises(ModelError, match="8-bit quantization requires bitsandbytes"):
        load(folder, device="cpu", text_encoder="8bit")


def test_lora_is_not_fused_into_quantised_weights(tmp_path):
    folder = save_stable_diffusion(tmp_path / "base")
    save_lora(folder, tmp_path / "a.safetensors", "text_encoder")
    (tmp_path / "mine.yaml").write_text("base: base\nlora: [a.safetensors]\n")
    loaded = load(tmp_path / "mine.yaml")
    (lora,) = read_loras(
        read_model_file(tmp_path / "mine.yaml").lora,
        "StableDiffusionPipeline",
        ("unet", "text_encoder"),
        folder / "unet",
    )
    with pytest.raises(ModelError, match=r"a.safetensors changes the text_encoder.*'offload'"):
        lora.fuse(loaded.text_encoder, "text_encoder", quantized=True)


def test_a_visit_on_the_same_device_moves_nothing():
    encoder = torch.nn.Linear(2, 2)
    before = encoder.weight.data_ptr()
    with visiting(encoder, torch.device("cpu")), visiting(None, torch.device("cpu")):
        assert encoder.weight.data_ptr() == before


@pytest.mark.gpu
def test_a_visitor_runs_on_the_gpu_and_goes_home_whatever_happens(tmp_path):
    backbone = load(save_stable_diffusion(tmp_path / "base"), device="cuda", text_encoder="offload")
    places = []
    backbone.text_encoder.register_forward_pre_hook(lambda module, args: places.append(module.device.type))
    backbone.condition(["cat"])
    assert set(places) == {"cuda"}
    with pytest.raises(RuntimeError, match="stop"), visiting(backbone.text_encoder, backbone.device):
        raise RuntimeError("stop")
    assert backbone.text_encoder.device.type == "cpu"


@pytest.mark.parametrize("fits", [0, 1, 3])
def test_images_that_do_not_fit_together_are_encoded_in_parts(fits):
    sizes, room = [], [1]

    def encode(images):
        if len(images) > room[-1]:
            raise torch.OutOfMemoryError("a device that holds few images")
        sizes.append(len(images))
        return images[:, :, ::2, ::2]

    backbone = wrap(
        Nothing(),
        schedule=from_config(DDPM),
        prediction="eps",
        transform=ImageTransform(size=8),
        encode=encode,
        decode=lambda x0: x0.repeat_interleave(2, 2).repeat_interleave(2, 3),
    )
    room.append(fits)
    sizes.clear()
    images = [Image.new("RGB", (8, 8), (20 * i, 0, 0)) for i in range(7)]
    found = encode_images(backbone, by_content(images_from(images), []), group=7)
    if not fits:
        with pytest.raises(ModelError, match="encoding a single image ran out of memory"):
            list(found)
        return
    latents = torch.stack([one.x0 for one in found])
    assert max(sizes) <= fits
    assert torch.equal(latents, torch.stack([backbone.transform(image) for image in images])[:, :, ::2, ::2])
