"""Stable Diffusion 1.x and 2.x: a text-conditional UNet in the latent space of a VAE (eps or v prediction)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase

from diffsight.backbones.base import Condition, Layer, encode_prompts
from diffsight.backbones.layers import unet_layers
from diffsight.backbones.models.distilled import check_distillation
from diffsight.backbones.models.vae import LatentSpace
from diffsight.backbones.opened import Opened, predicted
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens, check_length, spelled, tokenize
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LatentUNet:
    """The backbone of a ``StableDiffusionPipeline``; made by `diffsight.load`.

    Raises:
        ModelError: If the UNet is of a sort that is fed something else.
    """

    name: str
    unet: UNet2DConditionModel
    space: LatentSpace
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    schedule: Schedule
    prediction: Space
    transform: ImageTransform
    provenance: dict[str, str]
    # Kept, because diffusers looks through all parameters each time it is asked: 1 ms in the hot loop.
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if objection := next(self._objections(), None):
            raise ModelError(f"{self.name} cannot be used: {objection}.")

    @property
    def class_names(self) -> None:
        """None: any text is a class."""
        return None

    @property
    def learned_variance(self) -> bool:
        """False: Stable Diffusion predicts the mean alone."""
        return False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4, 64, 64) for a 512-pixel Stable Diffusion."""
        side = self.transform.output_size // self.space.factor
        return (self.unet.config.in_channels, side, side)

    @property
    def network(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.unet

    @property
    def layers(self) -> tuple[Layer, ...]:
        """25 blocks in Stable Diffusion 1 and 2: enc.0 to enc.11, mid, dec.0 to dec.11."""
        return unet_layers(self.unet)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to scaled posterior means, fp32."""
        return self.space.encode(images)

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        return self.space.decode(x0)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the empty prompt as the null member.

        Raises:
            PromptError: If a prompt has more tokens than the text encoder reads: its end would be ignored silently.
        """
        if names:
            check_length(self.tokenizer, names, self.name)
        with visiting(self.text_encoder, self.device):
            return encode_prompts(names, self._encode_text, together=64)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the text encoder does.

        Raises:
            PromptError: As `condition`.
        """
        if texts:
            check_length(self.tokenizer, texts, self.name)
        return tokenize(self.tokenizer, texts)

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the UNet; its input and output are in its own dtype, the prediction's views in fp32."""
        timestep = send(self.schedule.timesteps[index.cpu()].float(), x_t.device)
        output = self.unet(
            x_t.to(self.dtype), timestep, encoder_hidden_states=condition.tensors["encoder_hidden_states"]
        ).sample
        alpha, sigma = self.schedule.at(index, like=x_t)
        return Prediction(output=output.float(), kind=self.prediction, x_t=x_t, alpha=alpha, sigma=sigma)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, scale of the latents, dtype, schedule and transform; not where the files lie."""
        return {
            **self.provenance,
            "latents": self.space.scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": self.prediction,
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            spelled(self.tokenizer, prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            return_tensors="pt",
        )
        # Stable Diffusion 2's text encoder says itself whether it wants the mask; 1.x was trained without it.
        mask = tokens.attention_mask if getattr(self.text_encoder.config, "use_attention_mask", False) else None
        states = self.text_encoder(
            input_ids=tokens.input_ids.to(self.text_encoder.device),
            attention_mask=mask if mask is None else mask.to(self.text_encoder.device),
        ).last_hidden_state
        return {"encoder_hidden_states": states.to(self.device, self.dtype)}

    def _objections(self) -> Iterator[str]:
        """What a pass would complain about late, and in words that nobody understands."""
        config, width = self.unet.config, self.text_encoder.config.hidden_size
        if config.in_channels != self.space.vae.config.latent_channels:
            yield f"its UNet takes {config.in_channels} channels and not the latent alone (is it for inpainting?)"
        if config.addition_embed_type is not None or config.class_embed_type is not None:
            yield "its UNet takes something beside the text (is it one of Stable Diffusion XL, or an upscaler?)"
        if config.encoder_hid_dim is None and config.cross_attention_dim != width:
            yield (
                f"its UNet reads texts of {config.cross_attention_dim} numbers, and its text encoder gives {width} "
                "(is one of Stable Diffusion 1, and the other of 2?)"
            )


def open_folder(opened: Opened) -> LatentUNet:
    """The backbone of a Stable Diffusion folder.

    Raises:
        ModelError: If it is a latent consistency model, or has other noise levels than DDPM's, or another UNet.
    """
    check_distillation(opened)
    config = opened.scheduler()
    schedule = from_config(config)
    if schedule.kind != "ddpm":
        raise ModelError(
            f"{opened.folder} has noise levels of the kind {schedule.kind!r}, and only DDPM's are known here."
        )
    unet = opened.denoiser(UNet2DConditionModel, "unet")
    space = LatentSpace(opened.autoencoder(AutoencoderKL))
    return LatentUNet(
        name=opened.called,
        unet=unet,
        space=space,
        text_encoder=opened.text_encoder(CLIPTextModel),
        tokenizer=opened.tokenizer(CLIPTokenizer),
        schedule=schedule,
        prediction=predicted(config),
        transform=opened.transform(unet.config.sample_size * space.factor, resize="shortest"),
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
