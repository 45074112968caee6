"""SigLIP and SigLIP 2 (of fixed resolution): images and texts as vectors, as for CLIP."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, SiglipModel

try:
    from transformers import SiglipImageProcessorPil as SiglipProcessor
except ImportError:  # as for CLIP
    from transformers import SiglipImageProcessor as SiglipProcessor

from diffsight.backbones.base import resolve_device, resolve_dtype
from diffsight.backbones.encoder_folders import content_hash, locate
from diffsight.backbones.folders import one_line, read_json
from diffsight.backbones.opened import frozen, quiet
from diffsight.backbones.processing import Processor, as_bytes, described, normalised, processed, unit
from diffsight.backbones.text import check_length
from diffsight.errors import ModelError

_VOCABULARY = ("tokenizer.json", "spiece.model", "tokenizer.model")
_GROUP = 64


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SiglipEncoder:
    """A frozen ``SiglipModel`` with its tokenizer and image processor; made by `load_siglip`."""

    name: str
    model: SiglipModel
    tokenizer: PreTrainedTokenizerBase
    processor: Processor
    unpunctuated: bool
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Side of the images that the network reads."""
        side: Any = self.model.vision_model.config.image_size
        return int(side)

    @property
    def scale(self) -> float:
        """By what cosines are multiplied to be logits; a bias that all logits share is left out."""
        return float(self.model.logit_scale.detach().float().exp())

    def prepare(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """An RGB image, resized, for `vectors`."""
        return as_bytes(self.processor, image)

    @torch.no_grad()
    def vectors(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images that were prepared, of length 1, fp32, on the model's device."""
        pixels = normalised(self.processor, batch.to(self.device)).to(self.dtype)
        return unit(self.model.vision_model(pixel_values=pixels).pooler_output)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, of length 1, fp32, on the model's device.

        SigLIP was trained on lower case, the first one also without punctuation, and with padding to its full length.

        Raises:
            PromptError: If a text has more tokens than the model reads.
        """
        said = [self.plain(text) for text in texts]
        check_length(self.tokenizer, said, self.name)
        vectors = []
        for start in range(0, len(said), _GROUP):
            tokens = self.tokenizer(
                said[start : start + _GROUP],
                padding="max_length",
                padding_side="right",
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids
            vectors.append(unit(self.model.text_model(input_ids=tokens.to(self.device)).pooler_output))
        return torch.cat(vectors)

    def plain(self, text: str) -> str:
        """A text as the model was trained on texts."""
        if self.unpunctuated:
            text = text.translate(str.maketrans("", "", string.punctuation))
        return " ".join(text.lower().split())

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, dtype, and how images and texts reach the network; not where the files lie."""
        return {
            **self.provenance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": described(self.processor),
            "tokens": str(self.tokenizer.model_max_length),
            "texts": "lower case" + (", no punctuation" if self.unpunctuated else ""),
        }


def load_siglip(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> SiglipEncoder:
    """Load a SigLIP, or a SigLIP 2 of fixed resolution (not NaFlex).

    Args:
        name: A Hub repository (``"hf:org/repo"``), or a local folder in transformers' format.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        ModelError: If it cannot be reached, is no SigLIP, is not complete, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    where = resolve_device(device)
    chosen = resolve_dtype(dtype, where)
    folder, revision = locate(str(name), kind="siglip", vocabulary=_VOCABULARY)
    provenance = {"revision": revision, "weights": content_hash(folder, _VOCABULARY)}
    own = folder / "tokenizer_config.json"
    kind = str(read_json(own, "").get("tokenizer_class", "")) if own.exists() else ""
    try:
        with quiet():
            loaded: Any = SiglipModel.from_pretrained(
                folder, use_safetensors=True, dtype=chosen, local_files_only=True, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            processor = SiglipProcessor.from_pretrained(folder, local_files_only=True)
            side = processed(processor, [Image.new("RGB", (5, 3))]).shape[-2:]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(
            f"{name} in {folder} cannot be loaded: {one_line(error)}. (A tokenizer without tokenizer.json needs the "
            "package sentencepiece.)"
        ) from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"The weights in {folder} lack {', '.join(missing[:3])} ({len(missing)} in all). Get them again."
        )
    if set(side) != {expected := model.vision_model.config.image_size}:
        raise ModelError(
            f"The preprocessor of {folder} makes images of {side[0]}×{side[1]} pixels, but the network reads "
            f"{expected}×{expected}. Give the folder the model's own preprocessor_config.json."
        )
    limit = model.text_model.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    if tokenizer.pad_token_id is None or len(tokenizer) > model.text_model.config.vocab_size:
        raise ModelError(f"The tokenizer in {folder} is not the model's. Give the folder the model's own files.")
    return SiglipEncoder(
        name=str(name),
        model=frozen(model, where),
        tokenizer=tokenizer,
        processor=processor,
        unpunctuated="Gemma" not in kind and "Siglip2" not in kind,
        provenance=provenance,
        device=where,
        dtype=chosen,
    )
