"""Stable Diffusion XL: two text encoders, a pooled text and the sizes of the picture (eps, v or EDM's preconditioning).

References:
    Podell et al., SDXL: Improving Latent Diffusion Models, 2307.01952, §2.1 (encoders) and §2.2 (sizes and crops).
    Li et al., Playground v2.5, 2402.17245, §2.1: the same network with EDM's levels and preconditioning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerBase

from diffsight.backbones.base import Condition, Layer, encode_prompts
from diffsight.backbones.layers import unet_layers
from diffsight.backbones.models.distilled import check_distillation
from diffsight.backbones.models.edm import Preconditioning, preconditioning
from diffsight.backbones.models.vae import LatentSpace
from diffsight.backbones.opened import Opened, predicted
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens, check_length, spelled, tokenize
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

_SIZES = 6  # Original height and width, top and left of the crop, target height and width.
_TOGETHER = 64  # Prompts that go through the text encoders at once.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SDXL:
    """The backbone of a ``StableDiffusionXLPipeline``; made by `diffsight.load`.

    Each picture is said to have been made at the model's resolution and not to be cropped, as the pipeline says by
    default. The null member is zeros where ``force_zeros_for_empty_prompt`` says so, as in the published models, and
    the empty prompt elsewhere.

    Attributes:
        text_encoder: The first encoder; None in a pipeline that has the second alone.
        zero_null: Whether the null member is zeros.
        edm: How the network is wrapped, in models with EDM's noise levels.

    Raises:
        ModelError: If the network is of a sort whose outputs would be misread.
    """

    name: str
    unet: UNet2DConditionModel
    space: LatentSpace
    text_encoder: CLIPTextModel | None
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: PreTrainedTokenizerBase | None
    tokenizer_2: PreTrainedTokenizerBase
    zero_null: bool
    schedule: Schedule
    prediction: Space
    edm: Preconditioning | None
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
        """False: SDXL predicts the mean alone."""
        return False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(4, 128, 128) at 1024 pixels."""
        side = self.transform.output_size // self.space.factor
        return (self.unet.config.in_channels, side, side)

    @property
    def network(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.unet

    @property
    def layers(self) -> tuple[Layer, ...]:
        """19 blocks in SDXL: enc.0 to enc.8, mid, dec.0 to dec.8."""
        return unet_layers(self.unet)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to scaled posterior means, fp32."""
        return self.space.encode(images)

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        return self.space.decode(x0)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the null member: tokens, the pooled text, and the sizes of a whole picture.

        Raises:
            PromptError: If a prompt has more tokens than an encoder reads: its end would be ignored silently.
        """
        self._check_length(names)
        with visiting(self.text_encoder, self.device), visiting(self.text_encoder_2, self.device):
            read = encode_prompts(names, self._encode_text, together=_TOGETHER)
        null = {key: torch.zeros_like(value) for key, value in read.null.items()} if self.zero_null else read.null
        side = float(self.transform.output_size)
        sizes = torch.tensor([[side, side, 0, 0, side, side]], device=self.device)
        return Condition(
            names=read.names,
            tensors={**read.tensors, "time_ids": sizes.repeat(len(names), 1)},
            null={**null, "time_ids": sizes},
        )

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the text encoders do: both read the same tokens.

        Raises:
            PromptError: As `condition`.
        """
        self._check_length(texts)
        return tokenize(self.tokenizer or self.tokenizer_2, texts)

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the UNet; its input and output are in its own dtype, the prediction's views in fp32."""
        timestep = send(self.schedule.timesteps[index.cpu()].float(), x_t.device)
        alpha, sigma = self.schedule.at(index, like=x_t)
        given = condition.tensors
        output = self.unet(
            (x_t if self.edm is None else self.edm.scaled(x_t, sigma)).to(self.dtype),
            timestep,
            encoder_hidden_states=given["encoder_hidden_states"],
            added_cond_kwargs={"text_embeds": given["text_embeds"], "time_ids": given["time_ids"]},
        ).sample.float()
        if self.edm is not None:
            output = self.edm.noise(output, x_t, sigma)
        return Prediction(output=output, kind=self.prediction, x_t=x_t, alpha=alpha, sigma=sigma)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, latents, null member, dtype, parametrisation, schedule and transform."""
        return {
            **self.provenance,
            "latents": self.space.scale,
            "null": "zeros" if self.zero_null else "empty prompt",
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": self.prediction if self.edm is None else str(self.edm),
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _readers(self) -> Iterator[tuple[str, PreTrainedTokenizerBase, CLIPTextModel | CLIPTextModelWithProjection]]:
        if self.tokenizer is not None and self.text_encoder is not None:
            yield "text_encoder", self.tokenizer, self.text_encoder
        yield "text_encoder_2", self.tokenizer_2, self.text_encoder_2

    def _check_length(self, texts: Sequence[str]) -> None:
        for part, tokenizer, _ in self._readers() if texts else ():
            check_length(tokenizer, texts, f"{self.name} ({part})")

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The states before the last layer of all encoders side by side, and the pooled text of the second."""
        outputs = []
        for _, tokenizer, encoder in self._readers():
            length, texts = tokenizer.model_max_length, spelled(tokenizer, prompts)
            ids = tokenizer(texts, padding="max_length", max_length=length, return_tensors="pt").input_ids
            outputs.append(encoder(input_ids=ids.to(encoder.device), output_hidden_states=True))
        states = [output.hidden_states[-2].to(self.device, self.dtype) for output in outputs]
        pooled = outputs[-1].text_embeds.to(self.device, self.dtype)
        return {"encoder_hidden_states": torch.cat(states, dim=-1), "text_embeds": pooled}

    def _objections(self) -> Iterator[str]:
        """What a pass would not complain about, or only in words that nobody understands."""
        config = self.unet.config
        if config.addition_embed_type != "text_time":
            yield f"its UNet takes {config.addition_embed_type!r} beside the text, and SDXL's takes 'text_time'"
        elif (found := config.projection_class_embeddings_input_dim - self._width()) != 0:
            yield (
                f"its UNet expects {abs(found)} numbers {'more' if found > 0 else 'fewer'} than the pooled text and "
                f"{_SIZES} sizes are (a refiner takes 5 and is not the model to classify with; take the base model)"
            )
        width = sum(encoder.config.hidden_size for _, _, encoder in self._readers())
        if config.encoder_hid_dim is None and config.cross_attention_dim != width:
            yield f"its UNet reads texts of {config.cross_attention_dim} numbers, and its text encoders give {width}"
        if config.in_channels != self.space.vae.config.latent_channels:
            yield f"its UNet takes {config.in_channels} channels and not the latent alone (is it for inpainting?)"
        limits = {part: tokenizer.model_max_length for part, tokenizer, _ in self._readers()}
        if len(set(limits.values())) > 1:
            yield f"its encoders read different numbers of tokens, {limits}, and these are put side by side"
        if self.schedule.kind == "flow":
            yield "its noise levels are those of a rectified flow, which SDXL's pipeline does not know"

    def _width(self) -> int:
        return self.text_encoder_2.config.projection_dim + _SIZES * self.unet.config.addition_time_embed_dim


def open_folder(opened: Opened) -> SDXL:
    """The backbone of an SDXL folder.

    Raises:
        ModelError: If it has no second text encoder, or is a latent consistency model.
    """
    check_distillation(opened)
    if not opened.has("text_encoder_2"):
        raise ModelError(f"{opened.folder} has no text_encoder_2, without which it reads no prompts. Add one.")
    config, first = opened.scheduler(), opened.has("text_encoder") and opened.has("tokenizer")
    edm = preconditioning(config)
    unet = opened.denoiser(UNet2DConditionModel, "unet")
    space = LatentSpace(opened.autoencoder(AutoencoderKL))
    return SDXL(
        name=opened.called,
        unet=unet,
        space=space,
        text_encoder=opened.text_encoder(CLIPTextModel) if first else None,
        text_encoder_2=opened.text_encoder(CLIPTextModelWithProjection, "text_encoder_2"),
        tokenizer=opened.tokenizer(CLIPTokenizer) if first else None,
        tokenizer_2=opened.tokenizer(CLIPTokenizer, "tokenizer_2"),
        zero_null=bool(opened.index.get("force_zeros_for_empty_prompt", True)),
        schedule=from_config(config),
        prediction=predicted(config) if edm is None else "eps",
        edm=edm,
        transform=opened.transform(unet.config.sample_size * space.factor, resize="shortest"),
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
