"""CLIP, the baseline of image–text matching: images and texts as vectors whose cosine says how well they fit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

try:
    from transformers import CLIPImageProcessorPil as ClipProcessor
except ImportError:  # The first releases of transformers 5 call it by the name that now means torchvision's resizing.
    from transformers import CLIPImageProcessor as ClipProcessor

from diffsight.backbones.base import resolve_device, resolve_dtype
from diffsight.backbones.cards import Card, assets, cards, find_card
from diffsight.backbones.folders import PICKLES, one_line, read_json
from diffsight.backbones.hub import download, repositories, repository
from diffsight.backbones.kinds import model_type
from diffsight.backbones.opened import frozen, quiet
from diffsight.backbones.processing import as_bytes, described, normalised, processed, unit
from diffsight.backbones.text import check_length
from diffsight.errors import ModelError

_GROUP = 64
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")
_FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"]
_ADVICE = "a local folder instead of the name"
# What a CLIP of before 2023-06 says in its configuration, whatever its vocabulary is.
_OLD_END = 2


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClipEncoder:
    """A frozen ``CLIPModel`` with its tokenizer and image processor; made by `load_clip`."""

    name: str
    model: CLIPModel
    tokenizer: PreTrainedTokenizerBase
    processor: BaseImageProcessor
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.model.visual_projection.out_features

    @property
    def size(self) -> int:
        """Side of the images that the network reads."""
        side: Any = self.model.vision_model.config.image_size
        return int(side)

    @property
    def scale(self) -> float:
        """By what cosines are multiplied to be logits."""
        return float(self.model.logit_scale.detach().float().exp())

    def prepare(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """An RGB image, resized and cut, for `vectors`."""
        return as_bytes(self.processor, image)

    @torch.no_grad()
    def vectors(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images that were prepared: those of `images`."""
        pixels = normalised(self.processor, batch.to(self.device)).to(self.dtype)
        return unit(self.model.visual_projection(self.model.vision_model(pixel_values=pixels)[1]))

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Vectors of RGB images, of length 1, fp32, on the model's device."""
        vectors = [torch.zeros(0, self.dim, device=self.device)]
        for start in range(0, len(images), _GROUP):
            group = list(images[start : start + _GROUP])
            pixels = processed(self.processor, group).to(self.device, self.dtype)
            vectors.append(unit(self.model.visual_projection(self.model.vision_model(pixel_values=pixels)[1])))
        return torch.cat(vectors)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, of length 1, fp32, on the model's device.

        Raises:
            PromptError: If a text has more tokens than the model reads: its end would be ignored silently.
        """
        if texts:
            check_length(self.tokenizer, texts, self.name)
        vectors = [torch.zeros(0, self.dim, device=self.device)]
        for start in range(0, len(texts), _GROUP):
            # Padded to the full length on the right, whatever else is in the batch, and without a mask: attention looks
            # back only and the vector is read at the end of the text, so that nothing after it can matter. With a mask
            # transformers would choose another kernel when a neighbour is shorter.
            tokens = self.tokenizer(
                list(texts[start : start + _GROUP]),
                padding="max_length",
                padding_side="right",
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids
            pooled = self.model.text_model(input_ids=tokens.to(self.device))[1]
            vectors.append(unit(self.model.text_projection(pooled)))
        return torch.cat(vectors)

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "n m"]:
        """How well each image fits each text: the cosine of their vectors times the model's learnt scale, fp32.

        These are CLIP's logits (`CLIPModel`'s ``logits_per_image``), not probabilities: no softmax over images or texts
        is taken, so that values of different queries can be compared, as Winoground's scores do (2204.03162 §4).
        """
        scale = self.model.logit_scale.detach().float().exp()
        return scale * self.images(images) @ self.texts(texts).T

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, dtype, and how images and texts reach the network; not where the files lie."""
        return {
            **self.provenance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": described(self.processor),
            "tokens": str(self.tokenizer.model_max_length),
        }

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying it.
        return self


def load_clip(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> ClipEncoder:
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
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    folder, card, found_revision = _locate(str(name), revision)
    if (folder / "model_index.json").exists():
        raise ModelError(f"{name} is a diffusion pipeline and no CLIP. Load it with diffsight.load.")
    kind = read_json(folder / "config.json", "no CLIP model: it has no config.json").get("model_type")
    if kind != "clip":
        raise ModelError(f"{name} is a model of the type {kind!r}; only 'clip' is known here. Give a CLIP model.")
    provenance = {"revision": found_revision, "weights": clip_hash(folder)}
    if card and card.weights and card.weights != provenance["weights"]:
        raise ModelError(
            f"The weights of {card.name} in {folder} are not those of its card (SHA-256 {provenance['weights'][:12]}… "
            f"and not {card.weights[:12]}…): a damaged or foreign copy. Install or download it again."
        )
    try:
        with quiet():
            loaded: Any = CLIPModel.from_pretrained(
                folder, use_safetensors=True, dtype=chosen_dtype, local_files_only=True, output_loading_info=True
            )
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
            processor = ClipProcessor.from_pretrained(folder, local_files_only=True)
            side = processed(processor, [Image.new("RGB", (5, 3))]).shape[-2:]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name} in {folder} cannot be loaded: {one_line(error)}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        # transformers fills them with random numbers.
        raise ModelError(
            f"The weights in {folder} lack {', '.join(missing[:3])} ({len(missing)} in all). Get them again."
        )
    if set(side) != {expected := model.vision_model.config.image_size}:
        raise ModelError(
            f"The preprocessor of {folder} makes images of {side[0]}×{side[1]} pixels, but the network reads "
            f"{expected}×{expected}. Give the folder the model's own preprocessor_config.json."
        )
    _check_tokens(folder, model, tokenizer)
    # Some repositories do not say how much the model reads, and the tokenizer then believes that it is without limit.
    limit = model.text_model.config.max_position_embeddings
    tokenizer.model_max_length = min(tokenizer.model_max_length, limit)
    return ClipEncoder(
        name=card.name if card else str(name),
        model=frozen(model, chosen_device),
        tokenizer=tokenizer,
        processor=processor,
        provenance=provenance,
        device=chosen_device,
        dtype=chosen_dtype,
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
    weights = sorted(file for file in folder.glob("model*.safetensors") if ".fp16." not in file.name)
    if not weights:
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        found = f"holds its weights only as a pickle ({pickles[0]})" if pickles else "holds no model.safetensors"
        raise ModelError(
            f"{folder} {found}. A pickle can run code when it is read, so diffsight reads safetensors only. Where a "
            "repository has nothing else, convert it once where you trust it, with CLIPModel.from_pretrained(REPO)"
            ".save_pretrained(FOLDER), copy its tokenizer and preprocessor files, and give that folder."
        )
    vocabulary = [folder / name for name in _VOCABULARY if (folder / name).exists()]
    if not vocabulary:
        raise ModelError(f"{folder} has no tokenizer (tokenizer.json, or vocab.json and merges.txt). Copy its files.")
    digest = hashlib.sha256()
    for file in (*weights, *vocabulary):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _locate(name: str, revision: str | None) -> tuple[Path, Card | None, str]:
    """The folder with the model's files, downloading them if need be; its card; its revision."""
    patterns = [*_FILES, *_VOCABULARY, "model*.safetensors", "model.safetensors.index.json"]
    if name.startswith("hf:"):
        folder, found = download([repository(name, revision)], patterns, advice=_ADVICE)
        return folder, None, found
    path = Path(name).expanduser()
    if name not in cards() and (path.exists() or "/" in name or "\\" in name):
        if not path.is_dir():
            found = "is a file" if path.exists() else "does not exist"
            raise ModelError(
                f"{name} {found}. Give the folder that CLIPModel's save_pretrained writes, with its tokenizer and "
                "preprocessor; a Hub model is written 'hf:org/repo@revision'."
            )
        return path, None, "local"
    card = find_card(name)
    if card.family != "clip":
        raise ModelError(f"{name} is a diffusion model and no CLIP. Load it with diffsight.load.")
    if card.embedded:
        return assets() / card.embedded, card, "embedded"
    folder, found = download(repositories(card, revision), patterns, advice=_ADVICE)
    return folder, card, found


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
