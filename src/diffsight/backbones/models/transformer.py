"""Class-conditional diffusion transformers: DiT, with its null class and learned variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import Condition, Layer
from diffsight.backbones.layers import transformer_layers
from diffsight.backbones.models.classes import class_id, classes_hash
from diffsight.backbones.models.vae import LatentSpace
from diffsight.backbones.opened import Opened, predicted
from diffsight.data.images import ImageTransform
from diffsight.diffusion.likelihood import with_variance
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClassTransformer:
    """The backbone of a ``DiTPipeline``; made by `diffsight.load`.

    The label table has one row more than there are classes: the last is the null class of classifier-free guidance
    (id 1000 for ImageNet). It is the condition's null member and never a candidate (Li et al. §6).
    """

    name: str
    transformer: DiTTransformer2DModel
    space: LatentSpace
    schedule: Schedule
    transform: ImageTransform
    class_names: tuple[str, ...]
    provenance: dict[str, str]
    # Kept, because diffusers looks through all parameters each time it is asked: 1 ms in the hot loop.
    device: torch.device
    dtype: torch.dtype

    @property
    def learned_variance(self) -> bool:
        """Whether the output has twice the channels of the input."""
        return self.transformer.config.out_channels == 2 * self.transformer.config.in_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4, 32, 32) for the 256-pixel DiT."""
        size = self.transformer.config.sample_size
        return (self.transformer.config.in_channels, size, size)

    @property
    def network(self) -> DiTTransformer2DModel:
        """The transformer."""
        return self.transformer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """28 blocks in DiT-XL/2: block.0 to block.27."""
        return transformer_layers(self.transformer)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to scaled posterior means, fp32."""
        return self.space.encode(images)

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        return self.space.decode(x0)

    def condition(self, names: Sequence[str]) -> Condition:
        """Look classes up by name or by id written as text.

        Raises:
            PromptError: If the model does not know a class.
        """
        ids = [class_id(name, self.class_names, self.name) for name in names]
        labels = torch.tensor(ids, dtype=torch.long, device=self.device)
        null = torch.tensor([self.transformer.config.num_embeds_ada_norm], device=self.device)
        return Condition(names=tuple(names), tensors={"class_labels": labels}, null={"class_labels": null})

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the transformer; eight output channels are eps and the variance's interpolation factor (§1.6)."""
        timestep = send(self.schedule.timesteps[index.cpu()].long(), x_t.device)
        output = self.transformer(
            x_t.to(self.dtype), timestep=timestep, class_labels=condition.tensors["class_labels"]
        ).sample.float()
        return with_variance(output, "eps", x_t, self.schedule, index)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, classes, latents, dtype, schedule and transform; not where the files lie."""
        return {
            **self.provenance,
            "classes": classes_hash(self.class_names),
            "latents": self.space.scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": "eps",
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }


def open_folder(opened: Opened) -> ClassTransformer:
    """The backbone of a DiT folder.

    Raises:
        ModelError: If it predicts something else than eps.
    """
    network, config = opened.denoiser(DiTTransformer2DModel, "transformer"), opened.scheduler()
    if predicted(config) != "eps":
        raise ModelError(f"{opened.folder} is a DiT with {config['prediction_type']!r} prediction; only eps is known.")
    space = LatentSpace(opened.autoencoder(AutoencoderKL))
    labels = opened.index.get("id2label") or {}
    count = network.config.num_embeds_ada_norm
    return ClassTransformer(
        name=opened.called,
        transformer=network,
        space=space,
        schedule=from_config(config),
        transform=opened.transform(network.config.sample_size * space.factor, resize="adm"),
        class_names=tuple(str(labels.get(str(i), i)) for i in range(count)),
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
