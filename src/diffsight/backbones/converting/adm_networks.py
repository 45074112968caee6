"""The networks of OpenAI's guided-diffusion (ADM) as diffusers' ``UNet2DModel``: which there are, and of what form.

References:
    Dhariwal & Nichol, Diffusion Models Beat GANs on Image Synthesis, 2105.05233, §3.
    The flags of each checkpoint are in the README of github.com/openai/guided-diffusion.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDPMScheduler, UNet2DModel
from jaxtyping import Float
from torch import Tensor

from diffsight.errors import InputError, ModelError, nearest

STEPS = 1000
GROUPS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ADMConfig:
    """A network and its noise levels, after the authors' flags.

    What all their models have in common is no field: ``learn_sigma``, ``resblock_updown``, ``use_scale_shift_norm``.

    Attributes:
        image_size: Side of the images.
        channels: ``num_channels``.
        multipliers: ``channel_mult``: channels at each resolution, from the full one on, in units of ``channels``.
        res_blocks: ``num_res_blocks`` at each resolution.
        attention: ``attention_resolutions``: sides of the maps that have attention.
        head_channels: ``num_head_channels`` of each attention head.
        classes: Number of classes, 0 for an unconditional model.
        noise_schedule: ``linear`` or ``cosine``.
        new_attention_order: ``use_new_attention_order``: first all queries, then all keys, then all values, instead of
            the three of one head after those of another.

    Raises:
        InputError: If no network can be made of that.
    """

    image_size: int
    channels: int
    multipliers: tuple[float, ...]
    res_blocks: int = 2
    attention: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    classes: int = 0
    noise_schedule: Literal["linear", "cosine"] = "linear"
    new_attention_order: bool = False

    def __post_init__(self) -> None:
        if self.image_size % 2 ** (len(self.multipliers) - 1):
            raise InputError(f"Images of {self.image_size} pixels cannot be halved {len(self.multipliers) - 1} times.")
        if uneven := [width for width in self.widths if width % GROUPS]:
            raise InputError(f"{uneven[0]} channels cannot be normalised in {GROUPS} groups, as all are here.")
        attending = [width for width, side in zip(self.widths, self.sides, strict=True) if side in self.attention]
        if uneven := [width for width in (*attending, self.widths[-1]) if width % self.head_channels]:
            raise InputError(f"{uneven[0]} channels cannot be divided into heads of {self.head_channels}.")

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the maps at each resolution."""
        return tuple(self.image_size >> level for level in range(len(self.multipliers)))

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels at each resolution."""
        return tuple(int(factor * self.channels) for factor in self.multipliers)

    @property
    def tabulates_time(self) -> bool:
        """Whether there are more sinusoids of time than channels at the first resolution: see `time_table`."""
        return self.widths[0] != self.channels


KINDS: Mapping[str, ADMConfig] = {
    "adm-64": ADMConfig(
        image_size=64,
        channels=192,
        multipliers=(1, 2, 3, 4),
        res_blocks=3,
        classes=1000,
        noise_schedule="cosine",
        new_attention_order=True,
    ),
    "adm-256": ADMConfig(image_size=256, channels=256, multipliers=(1, 1, 2, 2, 4, 4), classes=1000),
    # Those of LSUN's bedrooms, cats and horses have the same flags, beside dropout.
    "adm-256-uncond": ADMConfig(image_size=256, channels=256, multipliers=(1, 1, 2, 2, 4, 4)),
    "adm-512": ADMConfig(image_size=512, channels=256, multipliers=(0.5, 1, 1, 2, 2, 4, 4), classes=1000),
}
REFUSED: Mapping[str, str] = {
    "adm-128": "it has 4 attention heads at every resolution, which makes them 128, 192 or 256 channels wide, and "
    "diffusers' UNet2DModel has one width for all"
}


def find_kind(name: str) -> ADMConfig:
    """A published model's configuration.

    Raises:
        InputError: If there is no such kind.
        ModelError: If diffusers' classes cannot represent it.
    """
    if name in REFUSED:
        raise ModelError(f"{name} cannot be converted: {REFUSED[name]}.")
    if name not in KINDS:
        raise InputError(f"Unknown kind {name!r}. {nearest(name, KINDS)}")
    return KINDS[name]


def empty_network(config: ADMConfig) -> UNet2DModel:
    """The network without weights (on the device ``meta``): its configuration, and the names and shapes of tensors."""
    attends = [side in config.attention for side in config.sides]
    with torch.device("meta"):
        return UNet2DModel(
            sample_size=config.image_size,
            in_channels=3,
            out_channels=6,
            block_out_channels=config.widths,
            layers_per_block=config.res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if here else "ResnetDownsampleBlock2D" for here in attends),
            up_block_types=tuple("AttnUpBlock2D" if here else "ResnetUpsampleBlock2D" for here in reversed(attends)),
            downsample_type="resnet",
            upsample_type="resnet",
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=GROUPS,
            norm_eps=1e-5,
            attention_head_dim=config.head_channels,
            attn_norm_num_groups=GROUPS,  # Beside scale_shift, the middle block's attention has no norm without it.
            time_embedding_type="learned" if config.tabulates_time else "positional",
            time_embedding_dim=4 * config.channels,
            num_train_timesteps=STEPS,
            flip_sin_to_cos=True,  # Cosines first …
            freq_shift=0,  # … at the frequencies 10000^(-i/half).
            num_class_embeds=config.classes + 1 if config.classes else None,
        )


def scheduler(config: ADMConfig) -> DDPMScheduler:
    """The noise levels that the network was trained with, from t = 0 to 999."""
    return DDPMScheduler(
        num_train_timesteps=STEPS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear" if config.noise_schedule == "linear" else "squaredcos_cap_v2",
        variance_type="learned_range",
    )


def time_table(channels: int, width: int) -> tuple[Float[Tensor, "steps width"], Float[Tensor, "channels width"]]:
    """The sinusoids of all timesteps in fewer channels.

    The 512-pixel model embeds time in 256 sinusoids and has 128 channels at its first resolution; ``UNet2DModel`` takes
    both numbers to be the same. But the 1000 vectors of sinusoids that there are span 110 dimensions only (the 111th
    singular value is 2e-14 of the first), so that nothing is lost in 128: with an orthonormal basis B of that space,
    W s = (W B)(Bᵀ s) for each of them. Bᵀ s is a table of one row per timestep, which diffusers calls a learned
    embedding.

    Args:
        channels: Of the sinusoids.
        width: Of the table.

    Returns:
        The table, and the basis; float64.

    Raises:
        InputError: If something would be lost.
    """
    frequency = torch.exp(-math.log(10000) / (channels // 2) * torch.arange(channels // 2, dtype=torch.float64))
    angle = torch.arange(STEPS, dtype=torch.float64)[:, None] * frequency
    waves = torch.cat([angle.cos(), angle.sin()], dim=1)
    basis = torch.linalg.svd(waves, full_matrices=False).Vh[:width].T
    table = waves @ basis
    if (lost := float((table @ basis.T - waves).abs().max())) > 1e-9:
        raise InputError(f"{channels} sinusoids of time do not fit {width} channels: they would be off by {lost:.1g}.")
    return table, basis
