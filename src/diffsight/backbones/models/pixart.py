"""PixArt-α and PixArt-Σ: text-conditional diffusion transformers with T5, cross-attention and learned variance."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import Condition, Layer
from diffsight.backbones.layers import transformer_layers
from diffsight.backbones.models.distilled import check_distillation
from diffsight.backbones.models.t5 import T5Reader, open_t5
from diffsight.backbones.models.vae import LatentSpace
from diffsight.backbones.opened import Opened, predicted
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens
from diffsight.data.images import ImageTransform
from diffsight.diffusion.likelihood import with_variance
from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

# Tokens of T5 that each was trained with (2310.00426 §3.1, 2403.04692 §3.1); nothing in a folder says so.
_LENGTHS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PixArt:
    """The backbone of a ``PixArtAlphaPipeline`` or ``PixArtSigmaPipeline``; made by `diffsight.load`.

    PixArt-α at 1024 pixels is also told the picture's size and aspect ratio, which here are those that the transform
    gives: a square.
    """

    name: str
    transformer: PixArtTransformer2DModel
    space: LatentSpace
    text: T5Reader
    schedule: Schedule
    prediction: Space
    transform: ImageTransform
    provenance: dict[str, str]
    # Kept, because diffusers looks through all parameters each time it is asked: 1 ms in the hot loop.
    device: torch.device
    dtype: torch.dtype

    @property
    def class_names(self) -> None:
        """None: any text is a class."""
        return None

    @property
    def learned_variance(self) -> bool:
        """Whether the output has twice the channels of the input."""
        return self.transformer.config.out_channels == 2 * self.transformer.config.in_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4, 128, 128) for a 1024-pixel PixArt."""
        side = self.transform.output_size // self.space.factor
        return (self.transformer.config.in_channels, side, side)

    @property
    def network(self) -> PixArtTransformer2DModel:
        """The transformer."""
        return self.transformer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """28 blocks in PixArt-XL/2: block.0 to block.27."""
        return transformer_layers(self.transformer)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to scaled posterior means, fp32."""
        return self.space.encode(images)

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        return self.space.decode(x0)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the empty prompt as the null member, each with its mask.

        Raises:
            PromptError: If a prompt has more tokens than the transformer is given.
        """
        with visiting(self.text.encoder, self.device):
            states, mask = self.text.encode(["", *names], self.name)
        tensors = {"encoder_hidden_states": states.to(self.device, self.dtype), "encoder_attention_mask": mask}
        if self.transformer.use_additional_conditions:
            side = float(self.transform.output_size)
            tensors["resolution"] = torch.full((len(mask), 2), side)
            tensors["aspect_ratio"] = torch.ones(len(mask), 1)
        tensors = {key: value.to(self.device) for key, value in tensors.items()}
        return Condition(
            names=tuple(names),
            tensors={key: value[1:] for key, value in tensors.items()},
            null={key: value[:1] for key, value in tensors.items()},
        )

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the text encoder does.

        Raises:
            PromptError: As `condition`.
        """
        return self.text.tokens(texts, self.name)

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the transformer; a second half of its channels is the variance's interpolation factor (2102.09672)."""
        timestep = send(self.schedule.timesteps[index.cpu()].long(), x_t.device)
        output = self.transformer(
            x_t.to(self.dtype),
            encoder_hidden_states=condition.tensors["encoder_hidden_states"],
            encoder_attention_mask=condition.tensors["encoder_attention_mask"],
            timestep=timestep,
            added_cond_kwargs={key: condition.tensors.get(key) for key in ("resolution", "aspect_ratio")},
        ).sample.float()
        return with_variance(output, self.prediction, x_t, self.schedule, index)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, how text is read, scale of the latents, dtype, schedule and transform."""
        return {
            **self.provenance,
            "text": self.text.said,
            "latents": self.space.scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": self.prediction,
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }


def open_folder(opened: Opened) -> PixArt:
    """The backbone of a PixArt folder.

    Raises:
        ModelError: If it has no text encoder, its noise levels are none of DDPM, or its channels or the picture's size
            do not fit.
    """
    check_distillation(opened, "transformer")
    network, config = opened.denoiser(PixArtTransformer2DModel, "transformer"), opened.scheduler()
    space, schedule = LatentSpace(opened.autoencoder(AutoencoderKL)), from_config(config)
    channels, found = network.config.in_channels, network.config.out_channels
    if schedule.kind != "ddpm":
        raise ModelError(f"{opened.folder} has noise levels of the kind {schedule.kind!r}; PixArt's are DDPM's.")
    if found not in (channels, 2 * channels):
        raise ModelError(
            f"{opened.folder} makes {found} channels of {channels}, neither as many nor twice as many: another model."
        )
    transform = opened.transform(network.config.sample_size * space.factor, resize="shortest")
    if transform.output_size % (step := space.factor * network.config.patch_size):
        raise ModelError(f"{opened.folder} takes pictures whose side is a multiple of {step}; {transform} is not.")
    return PixArt(
        name=opened.called,
        transformer=network,
        space=space,
        text=open_t5(opened, _LENGTHS[opened.index["_class_name"]]),
        schedule=schedule,
        prediction=predicted(config),
        transform=transform,
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
