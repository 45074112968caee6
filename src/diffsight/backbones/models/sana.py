"""Sana: a rectified flow in the latents of a deep autoencoder, told its prompts by Gemma after an instruction.

References:
    Xie et al., SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers, 2410.10629, §2.1
    (autoencoder) and §2.3 (Gemma and its instruction).
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderDC, SanaPipeline, SanaTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import Condition, Layer
from diffsight.backbones.layers import transformer_layers
from diffsight.backbones.models.distilled import check_distillation
from diffsight.backbones.models.gemma import GemmaReader, open_gemma
from diffsight.backbones.opened import Opened
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

_LENGTH = 300  # Tokens of text; nothing in a folder says so.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sana:
    """The backbone of a ``SanaPipeline``; made by `diffsight.load`.

    Prompts follow an instruction to enhance them, which is that of the installed diffusers' pipeline. The empty prompt
    of the null member comes without it, as there.
    """

    name: str
    transformer: SanaTransformer2DModel
    vae: AutoencoderDC
    text: GemmaReader
    schedule: Schedule
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
        """False: a flow has none."""
        return False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(32, 32, 32) at 1024 pixels."""
        side = self.transform.output_size // self.vae.spatial_compression_ratio
        return (self.transformer.config.in_channels, side, side)

    @property
    def network(self) -> SanaTransformer2DModel:
        """The transformer."""
        return self.transformer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """20 blocks in the model of 1.6 billion parameters: block.0 to block.19."""
        return transformer_layers(self.transformer)

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to scaled latents, fp32; this autoencoder has no distribution, and no shift."""
        latents = self.vae.encode(images.to(self.vae.device, torch.float32)).latent
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        latents = x0.to(self.vae.device, torch.float32) / self.vae.config.scaling_factor
        return self.vae.decode(latents).sample.clamp(-1, 1)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the empty prompt as the null member, each with its mask.

        Raises:
            PromptError: If a prompt has more tokens than the transformer is given.
        """
        with visiting(self.text.encoder, self.device):
            null = self._encode_text([""], instructed=False)
            tensors = self._encode_text(names) if names else {key: value[:0] for key, value in null.items()}
        return Condition(names=tuple(names), tensors=tensors, null=null)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the text encoder does; of the instruction the first token and the last are left.

        Raises:
            PromptError: As `condition`.
        """
        return self.text.tokens(texts, self.name)

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the transformer, which gives the velocity ``eps - x0``."""
        timestep = send(self.schedule.timesteps[index.cpu()].float(), x_t.device)
        output = self.transformer(
            x_t.to(self.dtype),
            encoder_hidden_states=condition.tensors["encoder_hidden_states"],
            encoder_attention_mask=condition.tensors["encoder_attention_mask"],
            timestep=timestep * self.transformer.config.timestep_scale,
        ).sample
        alpha, sigma = self.schedule.at(index, like=x_t)
        return Prediction(output=output.float(), kind="flow", x_t=x_t, alpha=alpha, sigma=sigma)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, how text is read, scale of the latents, dtype, schedule and transform."""
        return {
            **self.provenance,
            "text": self.text.said,
            "latents": str(self.vae.config.scaling_factor),
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": "flow",
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _encode_text(self, prompts: Sequence[str], *, instructed: bool = True) -> dict[str, Tensor]:
        states, mask = self.text.encode(prompts, self.name, instructed=instructed)
        return {
            "encoder_hidden_states": states.to(self.device, self.dtype),
            "encoder_attention_mask": mask.to(self.device),
        }


def open_folder(opened: Opened) -> Sana:
    """The backbone of a Sana folder.

    Raises:
        ModelError: If it is no flow, is fed a guidance scale, or its channels or the picture's size do not fit.
    """
    check_distillation(opened, "transformer")
    network, config = opened.denoiser(SanaTransformer2DModel, "transformer"), opened.scheduler()
    vae, schedule = opened.autoencoder(AutoencoderDC), from_config(config)
    if schedule.kind != "flow" or config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise ModelError(
            f"{opened.folder} is a Sana whose scheduler, {config.get('_class_name')} with prediction_type "
            f"{config.get('prediction_type')!r}, is none of a flow; only flows are known."
        )
    if network.config.guidance_embeds:
        raise ModelError(
            f"{opened.folder} is fed a guidance scale, as a Sana that was distilled to a few steps (Sana-Sprint): its "
            "errors are those of a guided model. Use the Sana that it was made from."
        )
    if network.config.out_channels not in (None, network.config.in_channels):
        raise ModelError(
            f"{opened.folder} makes {network.config.out_channels} channels of {network.config.in_channels}, and Sana "
            "makes as many: another model."
        )
    transform = opened.transform(network.config.sample_size * vae.spatial_compression_ratio, resize="shortest")
    if transform.output_size % (step := vae.spatial_compression_ratio * network.config.patch_size):
        raise ModelError(f"{opened.folder} takes pictures whose side is a multiple of {step}; {transform} is not.")
    asked = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    return Sana(
        name=opened.called,
        transformer=network,
        vae=vae,
        text=open_gemma(opened, "\n".join(asked), _LENGTH),
        schedule=schedule,
        transform=transform,
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
