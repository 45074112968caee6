"""Stable Diffusion 3 and 3.5: a rectified flow whose transformer lets image and text attend to each other (MMDiT)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import (
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    T5EncoderModel,
    T5TokenizerFast,
)

from diffsight.backbones.base import Condition, Layer, encode_prompts
from diffsight.backbones.layers import transformer_layers
from diffsight.backbones.models.distilled import check_distillation
from diffsight.backbones.models.vae import LatentSpace
from diffsight.backbones.opened import Opened
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens, check_length, tokenize
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

_T5_TOKENS = 256  # Stability's code, and the default of diffusers' pipeline.
_GROUP = 64  # Prompts that are encoded at once.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MMDiT:
    """The backbone of a ``StableDiffusion3Pipeline``; made by `diffsight.load`.

    The text is read by two CLIPs, whose states lie side by side, and by T5, whose states come after theirs. Padding is
    read, too: no mask hides it. A folder without T5 gives zeros in its place: the authors left out each encoder now and
    then in training, so that this would do (2403.03206, "Flexible text encoders").
    """

    name: str
    transformer: SD3Transformer2DModel
    space: LatentSpace
    clips: tuple[tuple[PreTrainedTokenizerBase, CLIPTextModelWithProjection], ...]
    t5: tuple[PreTrainedTokenizerBase, T5EncoderModel] | None
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
        """(16, 128, 128) at 1024 pixels."""
        side = self.transform.output_size // self.space.factor
        return (self.transformer.config.in_channels, side, side)

    @property
    def network(self) -> SD3Transformer2DModel:
        """The transformer."""
        return self.transformer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """24 blocks in the medium models, 38 in the large ones; what they give of the image, and not of the text."""
        return transformer_layers(self.transformer, output=1)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to posterior means, shifted and scaled, fp32."""
        return self.space.encode(images)

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        return self.space.decode(x0)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the empty prompt as the null member.

        Raises:
            PromptError: If a prompt has more tokens than one of the text encoders reads: its end would be ignored
                silently, by CLIP from 77 tokens on.
        """
        self._check(names)
        with visiting(self.t5 and self.t5[1], self.device):  # Of the three the one that is large.
            return encode_prompts(names, self._encode_text, together=_GROUP)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the first CLIP does; T5 splits them into other tokens, which are no content here.

        Raises:
            PromptError: As `condition`.
        """
        self._check(texts)
        tokens = tokenize(self.clips[0][0], texts)
        content, end = (nn.functional.pad(part, (0, _T5_TOKENS)) for part in (tokens.content, tokens.end))
        return Tokens(pieces=tokens.pieces, content=content, end=end)

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the transformer, which is told 1000 · sigma and gives the velocity ``eps - x0``."""
        timestep = send(self.schedule.timesteps[index.cpu()].float(), x_t.device)
        output = self.transformer(
            x_t.to(self.dtype),
            timestep=timestep,
            encoder_hidden_states=condition.tensors["encoder_hidden_states"],
            pooled_projections=condition.tensors["pooled_projections"],
        ).sample
        alpha, sigma = self.schedule.at(index, like=x_t)
        return Prediction(output=output.float(), kind="flow", x_t=x_t, alpha=alpha, sigma=sigma)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, latents, dtype, text encoders, schedule and transform; not where the files lie."""
        return {
            **self.provenance,
            "latents": self.space.scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "text": f"CLIP, CLIP, T5 in {self.t5[1].dtype}" if self.t5 else "CLIP, CLIP, no T5",
            "prediction": "flow",
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _check(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        for number, (tokenizer, _) in enumerate(self.clips, start=1):
            check_length(tokenizer, texts, f"CLIP {number} of {self.name}", self._clip_tokens)
        if self.t5 is not None:
            check_length(self.t5[0], texts, f"T5 of {self.name}", _T5_TOKENS)

    @property
    def _clip_tokens(self) -> int:
        return self.clips[0][0].model_max_length

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        states, pooled = zip(*(self._read_clip(prompts, *clip) for clip in self.clips), strict=True)
        width = self.transformer.config.joint_attention_dim
        clip = torch.cat(states, dim=-1)
        clip = nn.functional.pad(clip, (0, width - clip.shape[-1]))
        return {
            "encoder_hidden_states": torch.cat([clip, self._read_t5(prompts, width)], dim=1),
            "pooled_projections": torch.cat(pooled, dim=-1),
        }

    def _read_clip(
        self, prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, encoder: CLIPTextModelWithProjection
    ) -> tuple[Tensor, Tensor]:
        """The states before the last layer, and the projected state of the end mark."""
        ids = tokenizer(
            list(prompts), padding="max_length", max_length=self._clip_tokens, return_tensors="pt"
        ).input_ids
        read = encoder(input_ids=ids.to(encoder.device), output_hidden_states=True)
        return read.hidden_states[-2].to(self.device, self.dtype), read.text_embeds.to(self.device, self.dtype)

    def _read_t5(self, prompts: Sequence[str], width: int) -> Tensor:
        if self.t5 is None:
            return torch.zeros(len(prompts), _T5_TOKENS, width, device=self.device, dtype=self.dtype)
        tokenizer, encoder = self.t5
        ids = tokenizer(list(prompts), padding="max_length", max_length=_T5_TOKENS, return_tensors="pt").input_ids
        return encoder(input_ids=ids.to(encoder.device)).last_hidden_state.to(self.device, self.dtype)


def open_folder(opened: Opened) -> MMDiT:
    """The backbone of a Stable Diffusion 3 folder.

    Raises:
        ModelError: If the scheduler is none of a flow, or the transformer cannot take images of the transform's size.
    """
    check_distillation(opened, "transformer")
    schedule = from_config(opened.scheduler())
    if schedule.kind != "flow":
        raise ModelError(
            f"{opened.called} is a StableDiffusion3Pipeline with {schedule.kind} noise levels; its network predicts a "
            "flow. Put the scheduler_config.json of a FlowMatchEulerDiscreteScheduler into its folder 'scheduler'."
        )
    network = opened.denoiser(SD3Transformer2DModel, "transformer")
    config, space = network.config, LatentSpace(opened.autoencoder(AutoencoderKL))
    transform = opened.transform(config.sample_size * space.factor, resize="shortest")
    step, largest = config.patch_size * space.factor, config.patch_size * space.factor * config.pos_embed_max_size
    if transform.output_size % step or transform.output_size > largest:
        raise ModelError(
            f"{opened.called} reads images with sides that are multiples of {step}, up to {largest} pixels; its "
            f"transform makes {transform.output_size}. Change 'size' in its diffsight.json."
        )
    clips = tuple(
        (
            opened.tokenizer(CLIPTokenizer, f"tokenizer{suffix}"),
            opened.text_encoder(CLIPTextModelWithProjection, f"text_encoder{suffix}"),
        )
        for suffix in ("", "_2")
    )
    t5 = None
    if opened.has("text_encoder_3"):
        t5 = (
            opened.tokenizer(T5TokenizerFast, "tokenizer_3"),
            opened.text_encoder(T5EncoderModel, "text_encoder_3", large=True),
        )
    return MMDiT(
        name=opened.called,
        transformer=network,
        space=space,
        clips=clips,
        t5=t5,
        schedule=schedule,
        transform=transform,
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
