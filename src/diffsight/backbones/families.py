"""Which adapter loads which pipeline of diffusers: as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffsight.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Pipelines that one adapter loads.

    Attributes:
        module: Of `diffsight.backbones.models`; its ``open_folder`` makes a backbone of an `Opened` folder.
        pipelines: By the class name in ``model_index.json``.
        parts: Folders that may hold weights, the denoiser's first; one that a pipeline lists as nothing may be missing.
    """

    module: str
    pipelines: tuple[str, ...]
    parts: tuple[str, ...]

    @property
    def denoiser(self) -> str:
        """The folder of the denoiser."""
        return self.parts[0]


FAMILIES = (
    Family(
        module="latent_unet",
        pipelines=("StableDiffusionPipeline",),
        parts=("unet", "vae", "text_encoder"),
    ),
    Family(
        module="sdxl",
        pipelines=("StableDiffusionXLPipeline",),
        parts=("unet", "vae", "text_encoder", "text_encoder_2"),
    ),
    Family(
        module="mmdit",
        pipelines=("StableDiffusion3Pipeline",),
        parts=("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    ),
    Family(
        module="flux",
        pipelines=("FluxPipeline",),
        parts=("transformer", "vae", "text_encoder", "text_encoder_2"),
    ),
    Family(
        module="pixart",
        pipelines=("PixArtAlphaPipeline", "PixArtSigmaPipeline"),
        parts=("transformer", "vae", "text_encoder"),
    ),
    Family(module="sana", pipelines=("SanaPipeline",), parts=("transformer", "vae", "text_encoder")),
    Family(module="deepfloyd", pipelines=("IFPipeline",), parts=("unet", "text_encoder")),
    Family(module="transformer", pipelines=("DiTPipeline",), parts=("transformer", "vae")),
    Family(module="pixel_unet", pipelines=("DDPMPipeline", "DDIMPipeline"), parts=("unet",)),
)

# Pipelines that no adapter will read, and why.
_REFUSED = dict.fromkeys(
    ("LatentConsistencyModelPipeline", "ConsistencyModelPipeline"),
    "its network was distilled to jump to an image that it makes up, and its errors say nothing about how well a class "
    "fits. Use the model that it was distilled from",
)


def family_of(index: Mapping[str, Any], name: str) -> Family:
    """The family of a pipeline.

    Args:
        index: What ``model_index.json`` says.
        name: Of the model, for the message.

    Raises:
        ModelError: If no adapter knows the pipeline.
    """
    pipeline = index.get("_class_name")
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
    if pipeline in _REFUSED:
        raise ModelError(f"{name} is a {pipeline}: {_REFUSED[pipeline]}.")
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise ModelError(
        f"{name} is a {pipeline}, which diffsight cannot use yet. It reads {known}. docs/adapters.md shows how "
        "to write an adapter for another."
    )
