"""DDPM, ADM and EDM: a UNet on the pixels themselves, unconditional or class-conditional.

It predicts eps, v or x0 at DDPM's noise levels, or is wrapped in EDM's preconditioning at EDM's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from diffusers import UNet2DModel
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.backbones.base import Condition, Layer
from diffsight.backbones.folders import own_settings
from diffsight.backbones.layers import unet_layers
from diffsight.backbones.models.classes import class_id, classes_hash
from diffsight.backbones.models.edm import Preconditioning, preconditioning
from diffsight.backbones.opened import Opened, predicted
from diffsight.data.images import ImageTransform
from diffsight.diffusion.likelihood import with_variance
from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule, from_config
from diffsight.diffusion.transfer import send
from diffsight.errors import ModelError, PromptError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PixelUNet:
    """The backbone of a ``DDPMPipeline`` or ``DDIMPipeline``; made by `diffsight.load`.

    EDM's levels are known by the folder's scheduler, whichever of these pipelines it names.

    ``x0`` is the image in [-1, 1]; a network with one channel sees one of the three equal ones of a grey image.

    A class-conditional ``UNet2DModel`` does not say whether one of its classes is the null class of classifier-free
    guidance. Where ``diffsight.json`` says so (``{"null_class": 1000}``), that is the condition's null member and never
    a candidate. Without it there is no null member, and only what needs one is refused.

    Attributes:
        edm: How the network is wrapped, where the noise levels are EDM's.

    Raises:
        ModelError: If the network is of a sort whose outputs would be misread.
    """

    name: str
    unet: UNet2DModel
    schedule: Schedule
    prediction: Space
    edm: Preconditioning | None = None
    transform: ImageTransform
    class_names: tuple[str, ...]
    null_class: int | None
    provenance: dict[str, str]
    # Kept, because diffusers looks through all parameters each time it is asked: 1 ms in the hot loop.
    device: torch.device
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if objection := next(self._objections(), None):
            raise ModelError(f"{self.name} cannot be used: {objection}.")

    @property
    def learned_variance(self) -> bool:
        """Whether the output has twice the channels of the input."""
        return self.unet.config.out_channels == 2 * self.unet.config.in_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(3, 256, 256) for a 256-pixel ADM: the image itself."""
        side = self.transform.output_size
        return (self.unet.config.in_channels, side, side)

    @property
    def network(self) -> UNet2DModel:
        """The UNet."""
        return self.unet

    @property
    def layers(self) -> tuple[Layer, ...]:
        """37 blocks in the 256-pixel ADM: enc.0 to enc.17, mid, dec.0 to dec.17."""
        return unet_layers(self.unet)

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h w"]:
        """The images themselves, fp32."""
        return images[:, : self.unet.config.in_channels].to(self.device, torch.float32)

    def decode(self, x0: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
        """The images themselves, clipped to [-1, 1], fp32."""
        return x0.float().clamp(-1, 1).expand(-1, 3, -1, -1)

    def condition(self, names: Sequence[str]) -> Condition:
        """Look classes up by name or by id written as text; an unconditional model has the null member alone.

        Raises:
            PromptError: If the model does not know a class.
        """
        if self.unet.config.num_class_embeds is None:
            if names:
                raise PromptError(f"{self.name} is unconditional: it takes neither classes nor text; got {names[0]!r}.")
            return Condition(names=(), tensors={}, null={})
        ids = [class_id(name, self.class_names, self.name) for name in names]
        labels = torch.tensor(ids, dtype=torch.long, device=self.device)
        null = {} if self.null_class is None else {"class_labels": torch.tensor([self.null_class], device=self.device)}
        return Condition(names=tuple(names), tensors={"class_labels": labels}, null=null)

    def predict(self, x_t: Float[Tensor, "b c h w"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the UNet; a second half of its output channels is the variance's interpolation factor (2102.09672).

        Raises:
            ModelError: If the condition is the null member and the model has none.
        """
        labels = condition.tensors.get("class_labels")
        if labels is None and self.unet.config.num_class_embeds is not None:
            raise ModelError(
                f"{self.name} is class-conditional and has no null class, which this needs: name a class, or write "
                f'{{"null_class": ID}} into its diffsight.json if one of its classes was trained as that.'
            )
        _, sigma = self.schedule.at(index, like=x_t)
        times = self.schedule.timesteps[index.cpu()]
        timestep = send(times.long() if self.edm is None else times.float(), x_t.device)
        fed = x_t if self.edm is None else self.edm.scaled(x_t, sigma)
        output = self.unet(fed.to(self.dtype), timestep, class_labels=labels).sample.float()
        if self.edm is not None:
            output = self.edm.noise(output, x_t, sigma)
        return with_variance(output, self.prediction, x_t, self.schedule, index)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, dtype, classes, schedule and transform; not where the files lie."""
        return {
            **self.provenance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": self.prediction if self.edm is None else str(self.edm),
            "classes": classes_hash(self.class_names),
            "null_class": str(self.null_class),
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _objections(self) -> Iterator[str]:
        """What a pass would not complain about, or only in words that nobody understands."""
        config, side = self.unet.config, self.transform.output_size
        classes = config.num_class_embeds
        if config.time_embedding_type == "fourier":
            yield "its Fourier time embedding belongs to variance-exploding models, which are not known here"
        if self.schedule.kind != ("ddpm" if self.edm is None else "edm"):
            yield f"its noise levels are of the kind {self.schedule.kind!r}, and only DDPM's and EDM's are known here"
        if self.edm is not None and self.learned_variance:
            yield "its network predicts a variance as well, which models with EDM's noise levels have not"
        if config.class_embed_type is not None:
            yield f"class_embed_type {config.class_embed_type!r} takes something else than class ids"
        if config.in_channels not in (1, 3):
            yield f"it takes {config.in_channels} channels, and images have 1 or 3 (is it a part of a latent model?)"
        if config.out_channels not in (config.in_channels, 2 * config.in_channels):
            yield f"of {config.in_channels} channels it makes {config.out_channels}, neither as many nor twice as many"
        if side % 2 ** (halvings := len(config.block_out_channels) - 1):
            yield f"images of {side} pixels cannot be halved {halvings} times"
        if self.null_class is not None and self.null_class != (classes or 0) - 1:
            yield f"its null class must be the last of {classes or 'no'} classes, and is said to be {self.null_class}"
        if len(self.class_names) != (classes or 0) - (self.null_class is not None):
            yield f"{len(self.class_names)} names were given for {classes or 'no'} classes"


def open_folder(opened: Opened) -> PixelUNet:
    """The backbone of a DDPM, DDIM, ADM or EDM folder.

    Raises:
        ModelError: If its size or the form of its variance is not known.
    """
    unet, config = opened.denoiser(UNet2DModel, "unet"), opened.scheduler()
    if config.get("variance_type") == "learned":
        raise ModelError(
            f"{opened.folder} predicts the variance itself; only 'learned_range' is known, as in guided-diffusion."
        )
    sides = unet.config.sample_size
    height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
    if height is None or height != width:
        found = "of unknown size (unet/config.json has no sample_size)" if height is None else f"of {height}×{width}"
        raise ModelError(f"{opened.folder} draws images {found}; they must be square and known.")
    edm = preconditioning(config)
    null = own_settings(opened.folder).get("null_class")
    labels = opened.index.get("id2label") or {}
    return PixelUNet(
        name=opened.called,
        unet=unet,
        schedule=from_config(config),
        prediction=predicted(config) if edm is None else "eps",
        edm=edm,
        transform=opened.transform(height, resize="adm", grayscale=unet.config.in_channels == 1),
        class_names=tuple(str(labels.get(str(i), i)) for i in range(unet.config.num_class_embeds or 0) if i != null),
        null_class=null,
        provenance=opened.provenance,
        device=opened.device,
        dtype=opened.dtype,
    )
