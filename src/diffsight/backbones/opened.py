"""A diffusers folder that is being loaded: its parts as frozen networks where and in what the user wants them."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from diffsight.backbones.cards import Card
from diffsight.backbones.folders import listed, one_line, own_settings, part_folder, read_json
from diffsight.backbones.own.embeddings import ReadEmbedding, add_tokens, add_vectors
from diffsight.backbones.own.loras import ReadLora
from diffsight.backbones.own.own_denoiser import read_own
from diffsight.backbones.small_memory import quantized
from diffsight.backbones.vocabularies import check_vocabulary
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Space
from diffsight.errors import ModelError

Network = TypeVar("Network", bound=nn.Module)
Part = TypeVar("Part")

log = logging.getLogger(__name__)

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
        own_denoiser: A diffusers folder of the network or its weights, instead of the pipeline's.
        loras: To be fused into the parts.
        embeddings: Tokens to be taught to tokenizers and text encoders.
        encoders: How text encoders are kept; see `diffsight.load`.
    """

    folder: Path
    called: str
    card: Card | None
    index: Mapping[str, Any]
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype
    own_denoiser: Path | None = None
    loras: tuple[ReadLora, ...] = ()
    embeddings: tuple[ReadEmbedding, ...] = ()
    encoders: str | None = None

    def has(self, part: str) -> bool:
        """Whether the pipeline has an optional part."""
        return listed(self.index, part)

    def denoiser_folder(self, part: str) -> Path:
        """Where the denoiser's configuration is."""
        own = self.own_denoiser
        return own if own is not None and own.is_dir() else part_folder(self.folder, part)

    def denoiser(self, kind: type[Network], part: str) -> Network:
        """The denoiser, in the precision that was asked for, with the user's own weights and LoRA.

        Raises:
            ModelError: If these do not fit.
        """
        # What LoRA adds is small, and would be lost in part where weights are rounded to half precision first.
        dtype = torch.float32 if self.loras else self.dtype
        if self.own_denoiser is None:
            place = part_folder(self.folder, part)
            network = _read(kind, place, use_safetensors=True, torch_dtype=dtype)
        else:
            network = read_own(kind, self.own_denoiser, part_folder(self.folder, part), dtype)
        for lora in self.loras:
            lora.fuse(network, part)
        return frozen(network.to(self.dtype), self.device)

    def autoencoder(self, kind: type[Network]) -> Network:
        """The autoencoder, in fp32: see `LatentSpace`."""
        read = _read(kind, self.folder / "vae", use_safetensors=True, torch_dtype=torch.float32)
        return frozen(read, self.device)

    def text_encoder(self, kind: type[Network], part: str = "text_encoder", *, large: bool = False) -> Network:
        """A text encoder, in fp32: it runs once for each prompt. Offloaded it lies in main memory, see `visiting`.

        Args:
            kind: Its class.
            part: Its folder.
            large: Of billions of parameters, like T5-XXL: bf16 unless the denoiser is in fp32. Never fp16, in which T5
                overflows.

        Raises:
            ModelError: If the pipeline says that it has none, or what is there is not one.
        """
        if not self.has(part):
            raise ModelError(
                f"{self.folder} has no {part}, without which it cannot be told its prompts: model_index.json lists "
                "nothing there. Put that of the original pipeline into it, and its entry in model_index.json."
            )
        dtype = torch.bfloat16 if large and self.dtype != torch.float32 else torch.float32
        options: dict[str, Any] = {"use_safetensors": True, "dtype": dtype, "local_files_only": True}
        small = self.encoders in ("8bit", "4bit")
        if small:
            options |= quantized(str(self.encoders), self.device)
        read = _read(kind, self.folder / part, **options)
        for lora in self.loras:
            lora.fuse(read, part, quantized=small)
        if self.embeddings and isinstance(read, PreTrainedModel):
            tokenizer = self.tokenizer(CLIPTokenizer, part.replace("text_encoder", "tokenizer"))
            add_vectors(read, part, tokenizer, self.embeddings)
        if small:
            return read.eval().requires_grad_(False)
        return frozen(read, torch.device("cpu") if self.encoders == "offload" else self.device)

    def tokenizer(self, kind: type[Part], part: str = "tokenizer") -> Part:
        """A tokenizer, which knows the user's own tokens.

        Raises:
            ModelError: If there is no vocabulary, for which transformers would take an empty one, or none that can be
                read; or if nothing says how many tokens it reads.
        """
        place = self.folder / part
        check_vocabulary(place)
        tokenizer = _read(kind, place, local_files_only=True)
        if isinstance(tokenizer, PreTrainedTokenizerBase):
            if kind is CLIPTokenizer and tokenizer.model_max_length >= VERY_LARGE_INTEGER:
                raise ModelError(
                    f"{place} does not say how many tokens the model reads (model_max_length in tokenizer_config.json)."
                    " The copy is not complete."
                )
            add_tokens(tokenizer, self.embeddings)
        return tokenizer

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
    """Read one part from its folder. Diffusers and transformers share the method, and no class that declares it.

    Raises:
        ModelError: If it has no configuration, or its file is damaged or lacks weights: both libraries would go on with
            random ones, and only say so.
    """
    reader: Any = kind
    if not issubclass(kind, nn.Module):
        return reader.from_pretrained(place, **options)
    # Without it, transformers would take the shape of some model.
    read_json(place / "config.json", f"without the config.json of its {kind.__name__}")
    try:
        read, found = reader.from_pretrained(place, output_loading_info=True, **options)
    except SafetensorError as error:
        raise ModelError(f"{place} holds damaged weights: {one_line(error)}. Get them again.") from error
    if missing := sorted({*found["missing_keys"]} & {name for name, _ in read.named_parameters()}):
        raise ModelError(
            f"{place} lacks {len(missing)} weights of a {kind.__name__}, such as {missing[0]}. The copy is not "
            "complete, or was written by a newer diffusers or transformers: update these, or get it again."
        )
    if unknown := sorted(found["unexpected_keys"]):
        log.warning(
            "%s has %d weights that no %s knows, and they are left out: %s. Is it another kind of network?",
            place,
            len(unknown),
            kind.__name__,
            ", ".join(unknown[:3]),
        )
    return read
