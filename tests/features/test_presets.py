import pytest
import torch
from diffusers import UNet2DModel

from diffsight.backbones.converting.adm_networks import ADMConfig, empty_network, scheduler
from diffsight.backbones.models.pixel_unet import PixelUNet
from diffsight.data.images import ImageTransform
from diffsight.diffusion.schedule import from_config
from diffsight.errors import InputError
from diffsight.features.cache import column_shapes
from diffsight.features.extraction import plan
from diffsight.features.heads.recipes import find_recipe
from diffsight.features.pooling import Pool
from diffsight.features.presets import EPOCHS, PRESETS, find_preset

# ADM's 37 blocks with its resolutions, an eighth as wide: 32 to 128 channels.
NARROW = ADMConfig(image_size=256, channels=32, multipliers=(1, 1, 2, 2, 4, 4), head_channels=32)


@pytest.fixture(scope="module")
def adm():
    with torch.device("meta"):
        unet = UNet2DModel.from_config(empty_network(NARROW).config)
    return PixelUNet(
        name="narrow ADM",
        unet=unet.eval().requires_grad_(False),
        schedule=from_config(dict(scheduler(NARROW).config) | {"_class_name": "DDPMScheduler"}),
        prediction="eps",
        transform=ImageTransform(size=256, resize="adm"),
        class_names=(),
        null_class=None,
        provenance={},
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_fits_the_papers_network(adm, name):
    preset = find_preset(name)
    extraction = plan(adm, layers=preset.layers, timesteps=preset.timesteps, pool=Pool(size=preset.size))
    shapes = {column: shape[1:] for column, shape in column_shapes(extraction).items()}
    network = preset.head.build(shapes, 1000)
    assert len(shapes) == len(preset.layers) * len(preset.timesteps)
    assert sum(parameter.numel() for parameter in network.parameters()) > 0


def test_presets_are_the_released_settings():
    # Fact sheet §4: timestep, blocks and grid; §3: two blocks of width 1024 with 8 heads; every epoch another view.
    released = {
        "gd2023/linear-1": ((90,), ("b24",), 1),
        "gd2023/linear-2": ((90,), ("b24",), 2),
        "gd2024/attention": ((150,), ("b24",), 16),
        "gd2024/difformer": ((90, 150, 300), ("b19", "b24", "b30"), 16),
    }
    assert {name: (p.timesteps, p.layers, p.size) for name, p in PRESETS.items()} == released
    for preset in PRESETS.values():
        recipe = find_recipe(preset.recipe)
        assert preset.views == recipe.epochs == EPOCHS == 28
        assert (recipe.optimizer, recipe.momentum, recipe.weight_decay, recipe.schedule) == ("sgd", 0, 0, "step")
        assert not recipe.standardize


def test_the_rates_fall_to_a_tenth_every_seven_epochs():
    recipe = find_recipe("gd2024/linear")
    assert [round(recipe.factor(epoch, 0.0), 6) for epoch in (0, 6, 7, 13, 14, 20, 21, 27)] == [
        *(1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001)
    ]


def test_an_unknown_preset_is_refused():
    with pytest.raises(InputError, match="Did you mean 'gd2024/difformer'"):
        find_preset("gd2024/diformer")
