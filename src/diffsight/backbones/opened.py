"""A diffusers folder that is being loaded: its parts as frozen networks where and in what the user wants them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from diffsight.backbones.cards import Card
from diffsight.backbones.folders import listed, own_settings, part_folder, read_json
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Space
from diffsight.errors import ModelError

Network = TypeVar("Network", bound=nn.Module)
Part = TypeVar("Part")

PREDICTIONS: Mapping[str, Space] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A pipeline's folder, and how it is to be loaded.

    Attributes:
        folder: With ``model_index.json``.
        called: The name by which the user knows the model.
        card: Of a known model.
        index: What ``model_index.json`` says.
        provenance: Revision and weights hash, for `Backbone.identity`.
        device: Of the denoiser.
        dtype: Of the denoiser.
    """

    folder: Path
    called: str
    card: Card | None
    index: Mapping[str, Any]
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    def has(self, part: str) -> bool:
        """Whether the pipeline has an optional part."""
        return listed(self.index, part)

    def denoiser(self, kind: type[Network], part: str) -> Network:
        """The denoiser, in the precision that was asked for."""
        place = part_folder(self.folder, part)
        return frozen(_read(kind, place, use_safetensors=True, torch_dtype=self.dtype), self.device)

    def autoencoder(self, kind: type[Network]) -> Network:
        """The autoencoder, in fp32: see `LatentSpace`."""
        read = _read(kind, self.folder / "vae", use_safetensors=True, torch_dtype=torch.float32)
        return frozen(read, self.device)

    def text_encoder(self, kind: type[Network], part: str = "text_encoder", *, large: bool = False) -> Network:
        """A text encoder, in fp32: it runs once for each prompt.

        Args:
            kind: Its class.
            part: Its folder.
            large: Of billions of parameters, like T5-XXL: bf16 unless the denoiser is in fp32. Never fp16, in which T5
                overflows.
        """
        dtype = torch.bfloat16 if large and self.dtype != torch.float32 else torch.float32
        read = _read(kind, self.folder / part, use_safetensors=True, dtype=dtype, local_files_only=True)
        return frozen(read, self.device)

    def tokenizer(self, kind: type[Part], part: str = "tokenizer") -> Part:
        """A tokenizer."""
        return _read(kind, self.folder / part, local_files_only=True)

    def scheduler(self) -> dict[str, Any]:
        """The configuration of the scheduler.

        Raises:
            ModelError: If there is none.
        """
        place = part_folder(self.folder, "scheduler")
        return read_json(place / "scheduler_config.json", "without a scheduler configuration")

    def transform(self, size: int, *, resize: str, grayscale: bool = False) -> ImageTransform:
        """The family's transform at the model's resolution, with what the card or the folder's diffsight.json says."""
        settings: dict[str, Any] = {"size": size, "resize": resize, "grayscale": grayscale}
        settings |= own_settings(self.folder).get("transform", {})
        return ImageTransform.from_dict(settings | dict(self.card.transform if self.card else {}))


def predicted(config: Mapping[str, Any]) -> Space:
    """What a DDPM network predicts, of the scheduler's configuration.

    Raises:
        ModelError: If that is unknown.
    """
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise ModelError(
            f"Unknown prediction_type {kind!r} in the scheduler configuration; known: {list(PREDICTIONS)}."
        )
    return PREDICTIONS[kind]


def frozen(network: Network, device: torch.device) -> Network:
    """Put a network on its device, in evaluation mode, and keep its weights from being trained."""
    return network.to(device).eval().requires_grad_(False)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars and advice out of the user's output while they load weights."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    levels = [library.get_verbosity() for library in libraries]
    bars = of_transformers.is_progress_bar_enabled()
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level in zip(libraries, levels, strict=True):
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


def _read(kind: type[Part], place: Path, **options: Any) -> Part:  # noqa: ANN401 - of the libraries
    """Read one part from its folder. Diffusers and transformers share the method, and no class that declares it."""
    reader: Any = kind
    return reader.from_pretrained(place, **options)
