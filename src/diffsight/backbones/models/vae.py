"""The latent space of a diffusers ``AutoencoderKL``."""

from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class LatentSpace:
    """Images in [-1, 1] to scaled latents and back, always in fp32.

    Half precision overflows in the published VAEs, and the VAE runs once per image against hundreds of denoiser calls.
    """

    vae: AutoencoderKL

    @property
    def factor(self) -> int:
        """Pixels per latent along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def scale(self) -> str:
        """Scaling factor and shift, or the mean and deviation of each channel: what the weights do not hold."""
        shift, factor = self._affine()
        return f"{factor} {shift}"

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Posterior mean × scaling factor, after the shift that some models have."""
        mean = self.vae.encode(images.to(self.vae.device, torch.float32)).latent_dist.mean
        shift, factor = (mean.new_tensor(value).view(-1, 1, 1) for value in self._affine())
        return (mean - shift) * factor

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """The image of a latent, clipped to [-1, 1]."""
        latents = x0.to(self.vae.device, torch.float32)
        shift, factor = (latents.new_tensor(value).view(-1, 1, 1) for value in self._affine())
        latents = latents / factor + shift
        return self.vae.decode(latents).sample.clamp(-1, 1)  # pyright: ignore[reportArgumentType] - diffusers' FloatTensor

    def _affine(self) -> tuple[float | list[float], float | list[float]]:
        """Shift and factor of the latents; of each channel where the VAE knows mean and deviation (Playground 2.5)."""
        config = self.vae.config
        mean, deviation = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        if mean is None or deviation is None:
            return config.shift_factor or 0.0, config.scaling_factor
        return list(mean), [config.scaling_factor / each for each in deviation]
