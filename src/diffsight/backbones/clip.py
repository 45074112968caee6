"""CLIP, the baseline of image–text matching: two encoders and the angle between what they give."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from diffsight.backbones.base import resolve_device, resolve_dtype
from diffsight.backbones.cards import assets, cards, find_card
from diffsight.backbones.folders import PICKLES, one_line, read_json, weights_hash
from diffsight.backbones.text import check_length
from diffsight.errors import InputError, ModelError

_GROUP = 64  # Images or texts that are encoded together.


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ClipEncoder:
    """A CLIP model; made by `load_clip`.

    Attributes:
        name: How the user called it.
        model: transformers' own, frozen.
        tokenizer: Of its texts.
        processor: From a picture to its input.
        provenance: Revision and hash of the weights.
        device: Where it is.
        dtype: What it computes in; embeddings are fp32 whatever it is.
    """

    name: str
    model: CLIPModel
    tokenizer: CLIPTokenizer
    processor: CLIPImageProcessor
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Embed RGB images: unit vectors, fp32."""
        if not images:
            raise InputError("There is no image to embed.")
        parts = []
        for start in range(0, len(images), _GROUP):
            pixels = self.processor(images=list(images[start : start + _GROUP]), return_tensors="pt")["pixel_values"]
            vision = self.model.vision_model(pixel_values=pixels.to(self.device, self.dtype))
            parts.append(self.model.visual_projection(vision.pooler_output))
        return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Embed texts: unit vectors, fp32.

        Raises:
            PromptError: If a text is longer than the model reads.
        """
        if not texts:
            raise InputError("There is no text to embed.")
        check_length(self.tokenizer, texts, self.name)
        parts = []
        for start in range(0, len(texts), _GROUP):
            # Padded to one length always: the attention is causal, so what stands behind the end changes nothing.
            tokens = self.tokenizer(
                list(texts[start : start + _GROUP]),
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            ).to(self.device)
            text = self.model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            parts.append(self.model.text_projection(text.pooler_output))
        return torch.nn.functional.normalize(torch.cat(parts).float(), dim=-1)

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "n m"]:
        """Cosine of each image and text times the learnt scale: CLIP's logits, comparable along rows and columns."""
        scale = self.model.logit_scale.detach().float().exp()
        return scale * self.images(images) @ self.texts(texts).T

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, dtype and preprocessing; not where the files lie."""
        processing = {k: v for k, v in self.processor.to_dict().items() if not k.startswith("_")}
        return {
            **self.provenance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "transform": json.dumps(processing, sort_keys=True, default=str),
        }


def is_clip(name: str) -> bool:
    """Whether a name means a CLIP model and not a diffusion model.

    True for a card of that family, a folder whose config.json says so, and a Hub repository with "clip" in its name:
    what a repository holds is only known once it has been downloaded.
    """
    if name in cards():
        return cards()[name].family == "clip"
    if name.startswith("hf:"):
        return "clip" in name.partition("/")[2].partition("@")[0].lower()
    folder = Path(name).expanduser()
    if (folder / "model_index.json").exists() or not (folder / "config.json").is_file():
        return False
    try:
        return json.loads((folder / "config.json").read_text("utf-8")).get("model_type") == "clip"
    except (OSError, ValueError, AttributeError):
        return False


def load_clip(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> ClipEncoder:
    """Load a CLIP model.

    Args:
        name: A card's name (``"tiny-shapes-clip"``), a Hub repository (``"hf:openai/clip-vit-large-patch14"``, with
            ``@revision`` if wanted), or a folder that transformers' ``save_pretrained`` wrote.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.
        revision: A commit, tag or branch of the Hub repository.

    Raises:
        ModelError: If it is unknown, cannot be reached, is no CLIP model, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    folder, called, found = _locate(str(name), revision)
    config = read_json(folder / "config.json", "no CLIP model: it has no config.json")
    if (kind := config.get("model_type")) != "clip":
        raise ModelError(f"{name} is a model of type {kind!r} and not 'clip', the only baseline that diffsight reads.")
    if not list(folder.glob("*.safetensors")):
        held = [file.name for file in folder.glob("*") if file.suffix in PICKLES]
        raise ModelError(
            f"{name} holds its weights only as a pickle ({held[0]}), which can run code when it is read. Convert it "
            "once where you trust it: model.save_pretrained(FOLDER, safe_serialization=True)."
            if held
            else f"{name} has no weights: there is no .safetensors file in {folder}."
        )
    digest = weights_hash(folder, (".",))
    card = cards().get(called)
    if card and card.weights and card.weights != digest:
        raise ModelError(f"The weights of {called} in {folder} are not those of its card: a damaged or foreign copy.")
    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=chosen_dtype, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{name} in {folder} cannot be loaded: {one_line(error)}") from error
    torch.nn.Module.to(model, chosen_device)  # The method of transformers' own has another type.
    return ClipEncoder(
        name=called,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        processor=processor,
        provenance={"revision": found, "weights": digest},
        device=chosen_device,
        dtype=chosen_dtype,
    )


def _locate(name: str, revision: str | None) -> tuple[Path, str, str]:
    """The folder of a model, what to call it, and its revision."""
    if name.startswith("hf:"):
        repo, _, written = name.removeprefix("hf:").partition("@")
        folder = _download(repo, revision or written or None)
        return folder, name, f"{repo}@{folder.name}"
    if name in cards() or not ("/" in name or Path(name).exists()):
        card = find_card(name)
        if card.family != "clip" or not card.embedded:
            raise ModelError(f"{name} is no CLIP model. 'tiny-shapes-clip' comes with diffsight.")
        return assets() / card.embedded, name, "embedded"
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise ModelError(f"There is no folder {name}. A Hub model is written 'hf:org/repo@revision'.")
    return folder, name, "local"


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["config.json", "preprocessor_config.json", "*token*.json", "vocab.json", "merges.txt", "*.safetensors"]
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        raise ModelError(
            f"{repo} could not be had from the Hugging Face Hub ({one_line(error)}). Offline, give a local folder of "
            "the model instead of its name."
        ) from error
