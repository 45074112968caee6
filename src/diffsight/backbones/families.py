"""Which adapter loads which pipeline of diffusers: as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffsight.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Pipelines that one adapter loads.

    Attributes:
        module: Of this folder; its ``open_folder`` makes a backbone of an `Opened` folder.
        pipelines: By the class name in ``model_index.json``.
        parts: Folders that may hold weights; one that a pipeline lists as nothing may be missing.
    """

    module: str
    pipelines: tuple[str, ...]
    parts: tuple[str, ...]


FAMILIES = (
    Family(
        module="latent_unet",
        pipelines=("StableDiffusionPipeline",),
        parts=("unet", "vae", "text_encoder"),
    ),
    Family(module="transformer", pipelines=("DiTPipeline",), parts=("transformer", "vae")),
    Family(module="pixel_unet", pipelines=("DDPMPipeline", "DDIMPipeline"), parts=("unet",)),
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
    known = ", ".join(pipeline for family in FAMILIES for pipeline in family.pipelines)
    raise ModelError(
        f"{name} is a {pipeline}, which diffsight cannot use yet. It reads {known}. docs/adapters.md shows how "
        "to write an adapter for another."
    )
