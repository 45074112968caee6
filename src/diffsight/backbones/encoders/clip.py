"""CLIP, the baseline of image–text matching, and of classification."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase

try:
    from transformers import CLIPImageProcessorPil as ClipProcessor
except ImportError:  # The first releases of transformers 5 call it by the name that now means torchvision's resizing.
    from transformers import CLIPImageProcessor as ClipProcessor

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
from diffsight.backbones.encoders.kinds import model_type
from diffsight.backbones.opened import frozen
from diffsight.errors import ModelError

_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")
# What a CLIP of before 2023-06 says in its configuration, whatever its vocabulary is.
_OLD_END = 2


def load_clip(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> DualEncoder:
    """Load a CLIP model.

    Args:
        name: The name of a card of the family ``clip``, a Hub repository (``"hf:org/repo"`` or
            ``"hf:org/repo@revision"``), or a local folder in transformers' format.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.
        revision: A commit, tag or branch of the Hub repository instead of the card's.

    Returns:
        The model in evaluation mode, its weights frozen.

    Raises:
        ModelError: If the model is unknown, cannot be reached, is no CLIP, is not complete, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    where = resolve_device(device)
    chosen = resolve_dtype(dtype, where)
    folder, card, found_revision = locate(str(name), kind="clip", vocabulary=_VOCABULARY, revision=revision)
    provenance = {"revision": found_revision, "weights": clip_hash(folder)}
    if card and card.weights and card.weights != provenance["weights"]:
        raise ModelError(
            f"The weights of {card.name} in {folder} are not those of its card (SHA-256 {provenance['weights'][:12]}… "
            f"and not {card.weights[:12]}…): a damaged or foreign copy. Install or download it again."
        )
    with reading(name, folder):
        model = read_network(CLIPModel, folder, chosen)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = ClipProcessor.from_pretrained(folder, local_files_only=True)
        made = made_size(processor)
    check_size(folder, made, model.vision_model.config.image_size)
    _check_tokens(folder, model, tokenizer)
    limit_tokens(tokenizer, model.text_model.config.max_position_embeddings)

    def of_pixels(pixels: Tensor) -> Tensor:
        return model.visual_projection(model.vision_model(pixel_values=pixels)[1])

    def of_tokens(tokens: Tensor) -> Tensor:
        return model.text_projection(model.text_model(input_ids=tokens)[1])

    return DualEncoder(
        name=card.name if card else str(name),
        model=frozen(model, where),
        tokenizer=tokenizer,
        processor=processor,
        of_pixels=of_pixels,
        of_tokens=of_tokens,
        plain=str,
        dim=model.visual_projection.out_features,
        provenance=provenance,
        device=where,
        dtype=chosen,
    )


def is_clip(name: str | Path) -> bool:
    """Whether a name means a CLIP model, and so is for `load_clip` and not for `diffsight.load`.

    Of a card its family decides, of a local folder what is in it. Of a Hub repository ``config.json`` is fetched (or
    found in the cache): a few kilobytes, which loading needs anyway, and which a diffusion pipeline does not have.

    Args:
        name: As for `load_clip`.

    Returns:
        False also for what does not exist or cannot be reached: `diffsight.load` then says so.
    """
    return model_type(name) == "clip"


def clip_hash(folder: Path) -> str:
    """SHA-256 over the safetensors files of a CLIP and its tokenizer's vocabulary, by content and in order.

    Raises:
        ModelError: If the folder holds only pickles, no weights at all, or no vocabulary.
    """
    found = content_hash(folder, _VOCABULARY, kind="CLIPModel")
    if not any((folder / name).exists() for name in _VOCABULARY):
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt). Copy its files.")
    return found


def _check_tokens(folder: Path, model: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer whose end mark is not where the network reads a text's vector: it would be that of another.

    transformers looks for the end mark that the configuration names, and takes the first token if there is none. Where
    the configuration says 2, as the old ones do, it takes the highest id, which is the end in CLIP's own vocabulary.
    """
    config, largest = model.text_model.config, max(tokenizer.get_vocab().values())
    read = largest if config.eos_token_id == _OLD_END else config.eos_token_id
    if largest >= config.vocab_size or tokenizer.eos_token_id != read:
        raise ModelError(
            f"The tokenizer in {folder} is not the model's: it has {largest + 1} tokens and ends texts with number "
            f"{tokenizer.eos_token_id}, where the network has {config.vocab_size} and looks for {read}. Give the "
            "folder the files of the model's own tokenizer."
        )
