"""FLUX.1: a rectified flow whose transformer takes packed latents, with text and image in double and single blocks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerBase, T5EncoderModel, T5TokenizerFast

from diffsight.backbones.base import Condition, Layer, encode_prompts
from diffsight.backbones.folders import own_settings
from diffsight.backbones.layers import transformer_layers
from diffsight.backbones.models.distilled import check_distillation
from diffsight.backbones.models.vae import LatentSpace
from diffsight.backbones.opened import Opened
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens, check_length, tokenize_pieces
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

log = logging.getLogger(__name__)

_PATCH = 2  # Latents are packed 2×2; the pipeline has it in its code and no file says it.
_SIZE = 1024  # Pixels; the same.
_TOKENS, _FAST_TOKENS = 512, 256  # That T5 reads: the pipeline's default, and all that FLUX.1-schnell can.
_GUIDANCE = 1.0
_GROUP = 64  # Prompts that are encoded at once.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Flux:
    """The backbone of a ``FluxPipeline``; made by `diffsight.load`.

    T5 reads the text; CLIP gives one vector of it. Padding is read, too: no mask hides it.

    FLUX.1-dev was distilled from a guided model and is told the scale of the guidance. Here that is always 1, which is
    no guidance: then its errors are the nearest it has to those of a plain model, and the guidance of `draw` means what
    it does elsewhere. ``{"guidance": 3.5}`` in the folder's diffsight.json tells it another scale.
    """

    name: str
    transformer: FluxTransformer2DModel
    space: LatentSpace
    clip: tuple[PreTrainedTokenizerBase, CLIPTextModel]
    t5: tuple[PreTrainedTokenizerBase, T5EncoderModel]
    max_tokens: int
    guidance: float | None
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
        """(16, 128, 128) at 1024 pixels: as the VAE has it, not packed."""
        side = self.transform.output_size // self.space.factor
        return (self.transformer.config.in_channels // _PATCH**2, side, side)

    @property
    def network(self) -> FluxTransformer2DModel:
        """The transformer."""
        return self.transformer

    @property
    def layers(self) -> tuple[Layer, ...]:
        """double.0 to double.18 and single.0 to single.37; what they give of the image, and not of the text."""
        double = transformer_layers(self.transformer, name="double", output=1)
        single = "single_transformer_blocks"
        return double + transformer_layers(self.transformer, single, name="single", before=len(double), output=1)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to posterior means, shifted and scaled, fp32."""
        return self.space.encode(images)

    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map latents to images in [-1, 1], fp32."""
        return self.space.decode(x0)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the empty prompt as the null member.

        Raises:
            PromptError: If a prompt has more tokens than CLIP (77) or T5 reads: one would silently ignore its end.
        """
        self._check(names)
        with visiting(self.t5[1], self.device):  # Of the two the one that is large.
            return encode_prompts(names, self._encode_text, together=_GROUP)

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as T5 does.

        Raises:
            PromptError: As `condition`.
        """
        self._check(texts)
        return tokenize_pieces(self.t5[0], texts, self.max_tokens)

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the transformer, which is told sigma and gives the velocity ``eps - x0``."""
        states, device = condition.tensors["encoder_hidden_states"], x_t.device
        height, width = x_t.shape[2] // _PATCH, x_t.shape[3] // _PATCH
        output = self.transformer(
            nn.functional.pixel_unshuffle(x_t.to(self.dtype), _PATCH).flatten(2).transpose(1, 2),
            # The network multiplies by 1000 itself.
            timestep=send(self.schedule.timesteps[index.cpu()].float() / 1000, device),
            guidance=None if self.guidance is None else torch.full((len(x_t),), self.guidance, device=device),
            encoder_hidden_states=states,
            pooled_projections=condition.tensors["pooled_projections"],
            txt_ids=torch.zeros(states.shape[1], 3, device=device),
            img_ids=_places(height, width, device),
        ).sample
        output = nn.functional.pixel_shuffle(output.float().transpose(1, 2).unflatten(2, (height, width)), _PATCH)
        alpha, sigma = self.schedule.at(index, like=x_t)
        return Prediction(output=output, kind="flow", x_t=x_t, alpha=alpha, sigma=sigma)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, latents, dtype, guidance, text, schedule and transform; not where the files lie."""
        return {
            **self.provenance,
            "latents": self.space.scale,
            "dtype": str(self.dtype).removeprefix("torch."),
            "text": f"CLIP, T5 in {self.t5[1].dtype}, {self.max_tokens} tokens",
            "prediction": "flow",
            "guidance": str(self.guidance),
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _check(self, texts: Sequence[str]) -> None:
        if texts:
            check_length(self.clip[0], texts, f"CLIP of {self.name}")
            check_length(self.t5[0], texts, f"T5 of {self.name}", self.max_tokens)

    @torch.no_grad()
    def _encode_text(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        (tokenizer, clip), (pieces, t5) = self.clip, self.t5
        ids = _padded(tokenizer, prompts, tokenizer.model_max_length)
        pooled = clip(input_ids=ids.to(clip.device)).pooler_output
        ids = _padded(pieces, prompts, self.max_tokens)
        states = t5(input_ids=ids.to(t5.device)).last_hidden_state
        return {
            "encoder_hidden_states": states.to(self.device, self.dtype),
            "pooled_projections": pooled.to(self.device, self.dtype),
        }


def _padded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Int[Tensor, "texts {length}"]:
    return tokenizer(list(texts), padding="max_length", max_length=length, return_tensors="pt").input_ids


def _places(height: int, width: int, device: torch.device) -> Float[Tensor, "places 3"]:
    """Row and column of each packed latent, after a zero."""
    grid = torch.meshgrid(*(torch.arange(side, device=device) for side in (height, width)), indexing="ij")
    return torch.stack([torch.zeros_like(grid[0]), *grid], dim=-1).flatten(0, 1).float()


def open_folder(opened: Opened) -> Flux:
    """The backbone of a FLUX.1 folder.

    Raises:
        ModelError: If the scheduler is none of a flow, the transformer wants more channels than the packed latents have
            (FLUX.1 Fill, Canny, Depth), or the size of the images cannot be packed.
    """
    scheduler = opened.scheduler()
    schedule = from_config(scheduler)
    if schedule.kind != "flow":
        raise ModelError(
            f"{opened.called} is a FluxPipeline with {schedule.kind} noise levels; its network predicts a flow. Put "
            "the scheduler_config.json of a FlowMatchEulerDiscreteScheduler into its folder 'scheduler'."
        )
    network = opened.denoiser(FluxTransformer2DModel, "transformer")
    config, space = network.config, LatentSpace(opened.autoencoder(AutoencoderKL))
    if config.in_channels != _PATCH**2 * space.vae.config.latent_channels:
        raise ModelError(
            f"{opened.called} has a transformer of {config.in_channels} channels and latents of "
            f"{space.vae.config.latent_channels}, which are {_PATCH**2} times as many when packed: it is shown "
            "something beside the noised image. Use FLUX.1-dev or FLUX.1-schnell."
        )
    transform = opened.transform(_SIZE, resize="shortest")
    if transform.output_size % (_PATCH * space.factor):
        raise ModelError(
            f"{opened.called} reads images with sides that are multiples of {_PATCH * space.factor} pixels; its "
            f"transform makes {transform.output_size}. Change 'size' in its diffsight.json."
        )
    guidance = _guidance(opened) if config.guidance_embeds else None
    # The second sign tells FLUX.1-schnell from a FLUX.1-dev whose distillation was undone.
    fast = guidance is None and not scheduler.get("use_dynamic_shifting")
    if fast:
        log.warning(
            "%s is of the kind of FLUX.1-schnell, which was distilled into four steps: its errors are a doubtful "
            "measure of fit, unless later training undid that.",
            opened.called,
        )
    else:
        check_distillation(opened, "transformer")
    if guidance is not None:
        log.warning(
            "%s was distilled from a guided model. It is told a guidance of %g, but its errors bound no likelihood.",
            opened.called,
            guidance,
        )
    return Flux(
        name=opened.called,
        transformer=network,
        space=space,
        clip=(opened.tokenizer(CLIPTokenizer), opened.text_encoder(CLIPTextModel)),
        t5=(
            opened.tokenizer(T5TokenizerFast, "tokenizer_2"),
            opened.text_encoder(T5EncoderModel, "text_encoder_2", large=True),
        ),
        max_tokens=_FAST_TOKENS if fast else _TOKENS,
        guidance=guidance,
        schedule=schedule,
        transform=transform,
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )


def _guidance(opened: Opened) -> float:
    """Of the folder's diffsight.json, or none."""
    value = own_settings(opened.folder).get("guidance", _GUIDANCE)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ModelError(f"'guidance' in {opened.folder / 'diffsight.json'} must be a number from 0; got {value!r}.")
    return float(value)
