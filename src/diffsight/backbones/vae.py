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
        """Scaling factor and shift, which the weights do not hold."""
        return f"{self.vae.config.scaling_factor} {self.vae.config.shift_factor or 0.0}"

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Posterior mean × scaling factor, after the shift that some models have."""
        mean = self.vae.encode(images.to(self.vae.device, torch.float32)).latent_dist.mean
        return (mean - (self.vae.config.shift_factor or 0.0)) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """The image of a latent, clipped to [-1, 1]."""
        latents = x0.to(self.vae.device, torch.float32) / self.vae.config.scaling_factor
        return self.vae.decode(latents + (self.vae.config.shift_factor or 0.0)).sample.clamp(-1, 1)
