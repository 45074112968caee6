"""DeepFloyd IF, stage I: a text-conditional UNet on pixels of 64×64, told its prompts by T5; what comes near Imagen."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import Condition, Layer
from diffsight.backbones.layers import unet_layers
from diffsight.backbones.models.t5 import T5Reader, open_t5
from diffsight.backbones.opened import Opened, predicted
from diffsight.backbones.small_memory import visiting
from diffsight.backbones.text import Tokens
from diffsight.data.images import ImageTransform
from diffsight.diffusion.likelihood import with_variance
from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError

_LENGTH = 77  # Tokens that its authors' T5 reads, and diffusers' pipeline.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DeepFloyd:
    """The backbone of an ``IFPipeline``; made by `diffsight.load`.

    ``x0`` is the image in [-1, 1]. The padding of a prompt is masked in T5 and not in the UNet, as it was trained.

    Raises:
        ModelError: If the network is of a sort whose outputs would be misread.
    """

    name: str
    unet: UNet2DConditionModel
    text: T5Reader
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
        """Whether the output has twice the channels of the input."""
        return self.unet.config.out_channels == 2 * self.unet.config.in_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(3, 64, 64): the image itself."""
        side = self.transform.output_size
        return (self.unet.config.in_channels, side, side)

    @property
    def network(self) -> UNet2DConditionModel:
        """The UNet."""
        return self.unet

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The blocks of the UNet, from enc.0 over mid to the last of dec."""
        return unet_layers(self.unet)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images themselves, fp32."""
        return images.to(self.device, torch.float32)

    def decode(self, x0: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images themselves, clipped to [-1, 1], fp32."""
        return x0.float().clamp(-1, 1)

    def condition(self, names: Sequence[str]) -> Condition:
        """Encode prompts, and the empty prompt as the null member.

        Raises:
            PromptError: If a prompt has more tokens than the UNet is given.
        """
        with visiting(self.text.encoder, self.device):
            states = self.text.encode(["", *names], self.name)[0].to(self.device, self.dtype)
        return Condition(
            names=tuple(names),
            tensors={"encoder_hidden_states": states[1:]},
            null={"encoder_hidden_states": states[:1]},
        )

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Split texts as the text encoder does.

        Raises:
            PromptError: As `condition`.
        """
        return self.text.tokens(texts, self.name)

    def predict(self, x_t: Float[Tensor, "b 3 h w"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the UNet; a second half of its output channels is the variance's interpolation factor (2102.09672)."""
        timestep = send(self.schedule.timesteps[index.cpu()].long(), x_t.device)
        output = self.unet(
            x_t.to(self.dtype), timestep, encoder_hidden_states=condition.tensors["encoder_hidden_states"]
        ).sample.float()
        return with_variance(output, self.prediction, x_t, self.schedule, index)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, how text is read, dtype, schedule and transform; not where the files lie."""
        return {
            **self.provenance,
            "text": self.text.said,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": self.prediction,
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _objections(self) -> Iterator[str]:
        """What a pass would not complain about, or only in words that nobody understands."""
        config, side = self.unet.config, self.transform.output_size
        if self.schedule.kind != "ddpm":
            yield f"its noise levels are of the kind {self.schedule.kind!r}, and IF's are DDPM's"
        if config.in_channels != 3 or config.class_embed_type is not None:
            yield "its UNet takes more than an image and a text, as IF's stages II and III do; only stage I is known"
        if config.out_channels not in (3, 6):
            yield f"of an image's 3 channels it makes {config.out_channels}, neither as many nor twice as many"
        if side % 2 ** (halvings := len(config.block_out_channels) - 1):
            yield f"images of {side} pixels cannot be halved {halvings} times"


def open_folder(opened: Opened) -> DeepFloyd:
    """The backbone of a folder of IF's stage I.

    Raises:
        ModelError: If it has no text encoder, or its variance or its UNet are of a form that is not known.
    """
    unet, config = opened.denoiser(UNet2DConditionModel, "unet"), opened.scheduler()
    if config.get("variance_type") == "learned":
        raise ModelError(f"{opened.folder} predicts the variance itself; only 'learned_range' is known, which IF has.")
    return DeepFloyd(
        name=opened.called,
        unet=unet,
        text=open_t5(opened, _LENGTH),
        schedule=from_config(config),
        prediction=predicted(config),
        # A square, then Pillow's bicubic: as its model card says of the training.
        transform=opened.transform(unet.config.sample_size, resize="crop_first"),
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
