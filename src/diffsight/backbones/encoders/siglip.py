"""SigLIP and SigLIP 2 (of fixed resolution): images and texts as vectors, as for CLIP."""

import string
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoTokenizer, SiglipModel

try:
    from transformers import SiglipImageProcessorPil as SiglipProcessor
except ImportError:  # as for CLIP
    from transformers import SiglipImageProcessor as SiglipProcessor

from diffsight.backbones.base import resolve_device, resolve_dtype
from diffsight.backbones.encoders.dual import DualEncoder
from diffsight.backbones.encoders.folders import (
    check_size,
    content_hash,
    limit_tokens,
    locate,
    made_size,
    read_network,
    reading,
)
from diffsight.backbones.folders import read_json
from diffsight.backbones.opened import frozen
from diffsight.errors import ModelError

_VOCABULARY = ("tokenizer.json", "spiece.model", "tokenizer.model")


def load_siglip(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> DualEncoder:
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
    folder, _, revision = locate(str(name), kind="siglip", vocabulary=_VOCABULARY)
    provenance = {"revision": revision, "weights": content_hash(folder, _VOCABULARY, kind="SiglipModel")}
    own = folder / "tokenizer_config.json"
    kind = str(read_json(own, "").get("tokenizer_class", "")) if own.exists() else ""
    with reading(name, folder, hint=". (A tokenizer without tokenizer.json needs the package sentencepiece.)"):
        model = read_network(SiglipModel, folder, chosen)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = SiglipProcessor.from_pretrained(folder, local_files_only=True)
        made = made_size(processor)
    check_size(folder, made, model.vision_model.config.image_size)
    limit_tokens(tokenizer, model.text_model.config.max_position_embeddings)
    if tokenizer.pad_token_id is None or len(tokenizer) > model.text_model.config.vocab_size:
        raise ModelError(f"The tokenizer in {folder} is not the model's. Give the folder the model's own files.")
    # The first SigLIP was trained without punctuation as well.
    unpunctuated = "Gemma" not in kind and "Siglip2" not in kind
    provenance["texts"] = "lower case" + (", no punctuation" if unpunctuated else "")

    def of_pixels(pixels: Tensor) -> Tensor:
        return model.vision_model(pixel_values=pixels).pooler_output

    def of_tokens(tokens: Tensor) -> Tensor:
        return model.text_model(input_ids=tokens).pooler_output

    return DualEncoder(
        name=str(name),
        model=frozen(model, where),
        tokenizer=tokenizer,
        processor=processor,
        of_pixels=of_pixels,
        of_tokens=of_tokens,
        plain=_unpunctuated if unpunctuated else _lower,
        dim=model.vision_model.config.hidden_size,
        provenance=provenance,
        device=where,
        dtype=chosen,
    )


def _lower(text: str) -> str:
    return " ".join(text.lower().split())


def _unpunctuated(text: str) -> str:
    return _lower(text.translate(str.maketrans("", "", string.punctuation)))
