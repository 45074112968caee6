"""Karras et al.'s preconditioning: what stands between a network and the noise that it finds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from diffsight.errors import ModelError

_SIGNS: Mapping[str, int] = {"epsilon": 1, "v_prediction": -1}


@dataclass(frozen=True, slots=True)
class Preconditioning:
    """``D(x; sigma) = c_skip x + c_out F(c_in x)``, with which noised images and targets are of variance 1.

    ``D`` is the clean image. What is given here is the noise, ``(x - D) / sigma``, made from the network's output in a
    way that loses no digits where sigma is small. The network ``F`` is fed ``ln(sigma) / 4`` as its time, which is the
    schedule's business.

    Attributes:
        data: Standard deviation of clean images or latents, ``sigma_data``.
        sign: Of ``c_out``: -1 for a network of diffusers' kind "v_prediction" (CosXL), 1 otherwise.

    References:
        Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2206.00364, §5 and Table 1.
    """

    data: float
    sign: int = 1

    def scaled(self, x_t: Float[Tensor, "b *shape"], sigma: Tensor) -> Float[Tensor, "b *shape"]:
        """What the network is fed: ``c_in x``.

        Args:
            x_t: Noised images, ``x0 + sigma eps``.
            sigma: Of each row, broadcastable.
        """
        return x_t / (sigma**2 + self.data**2).sqrt()

    def noise(
        self, output: Float[Tensor, "b *shape"], x_t: Float[Tensor, "b *shape"], sigma: Tensor
    ) -> Float[Tensor, "b *shape"]:
        """What the network says of the noise, an "eps" prediction: ``(1 - c_skip) / sigma x - c_out / sigma F``.

        Args:
            output: What the network gave, in fp32 or better.
            x_t: Noised images, not scaled.
            sigma: Of each row, broadcastable.
        """
        total = sigma**2 + self.data**2
        return sigma / total * x_t - self.sign * self.data / total.sqrt() * output


def preconditioning(config: Mapping[str, Any]) -> Preconditioning | None:
    """Of the scheduler's configuration; None where the scheduler is not one of diffusers' EDM schedulers.

    Raises:
        ModelError: If it says that the network gives something which these do not know.
    """
    if not str(config.get("_class_name")).startswith("EDM"):
        return None
    kind = config.get("prediction_type", "epsilon")
    if kind not in _SIGNS:
        raise ModelError(
            f"{config['_class_name']} with prediction_type {kind!r} is not known; diffusers' EDM schedulers know "
            f"{list(_SIGNS)}. Correct scheduler_config.json."
        )
    return Preconditioning(float(config.get("sigma_data", 0.5)), _SIGNS[kind])
