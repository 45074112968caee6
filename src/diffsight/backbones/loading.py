"""`load`: from a name, a Hub repository or a local diffusers folder to a backbone."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from diffsight.backbones.base import Backbone, resolve_device, resolve_dtype
from diffsight.backbones.cards import Card, assets, cards, find_card
from diffsight.backbones.folders import one_line, own_settings, part_folder, read_json, weights_hash
from diffsight.backbones.hub import download, repositories, repository
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Space
from diffsight.diffusion.schedule import from_config
from diffsight.errors import ModelError

if TYPE_CHECKING:
    from diffsight.backbones.latent_unet import LatentUNet
    from diffsight.backbones.pixel_unet import PixelUNet
    from diffsight.backbones.transformer import ClassTransformer

Network = TypeVar("Network", bound=torch.nn.Module)

log = logging.getLogger(__name__)

# Pipelines by the class name in model_index.json, and the parts of each that hold weights.
FAMILIES = {
    "StableDiffusionPipeline": "latent_unet",
    "DiTPipeline": "transformer",
    "DDPMPipeline": "pixel_unet",
    "DDIMPipeline": "pixel_unet",
}
PARTS = {
    "latent_unet": ("unet", "vae", "text_encoder"),
    "transformer": ("transformer", "vae"),
    "pixel_unet": ("unet",),
}
# The first DDPM repositories have no sub-folders; in others, what lies beside the index is another format.
_BESIDE = ("model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors")
_FILES = (*_BESIDE, "*/*.json", "*/*.txt", "*/*.safetensors")
_IGNORED = ("*.fp16.*", "*.non_ema.*", "safety_checker/*", "*.msgpack")
PREDICTIONS: Mapping[str, Space] = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Backbone:
    """Load a diffusion model.

    Args:
        name: A card's name (``"tiny-fashion"``, ``"sd-1.5"``; `diffsight ls models` lists them), a Hub repository
            (``"hf:org/repo"`` or ``"hf:org/repo@revision"``), or a local folder in diffusers' format.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.
        revision: A commit, tag or branch of the Hub repository instead of the card's.

    Returns:
        The backbone in evaluation mode, its weights frozen.

    Raises:
        ModelError: If the model is unknown, cannot be reached, is no supported pipeline, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    if str(name) in cards() and find_card(str(name)).family == "clip":
        raise ModelError(f"{name} is a CLIP model and draws nothing: it is for 'diffsight match' alone.")
    folder, card, found_revision = _locate(str(name), revision)
    index = read_json(folder / "model_index.json", "no diffusers model: it has no model_index.json")
    pipeline = index.get("_class_name")
    if pipeline not in FAMILIES:
        raise ModelError(f"{name} is a {pipeline}, which diffsight cannot use yet. It reads {', '.join(FAMILIES)}.")
    family = FAMILIES[pipeline]
    provenance = {"revision": found_revision, "weights": weights_hash(folder, PARTS[family])}
    if card and card.weights and card.weights != provenance["weights"]:
        raise ModelError(
            f"The weights of {card.name} in {folder} are not those of its card (SHA-256 {provenance['weights'][:12]}… "
            f"and not {card.weights[:12]}…): a damaged or foreign copy. Install or download it again."
        )
    build = {"latent_unet": _latent_unet, "transformer": _transformer, "pixel_unet": _pixel_unet}[family]
    called = card.name if card else str(name)
    try:
        with quiet():
            return build(folder, called, card, index, provenance, device=chosen_device, dtype=chosen_dtype)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{name} in {folder} cannot be loaded: {one_line(error)}") from error


def _locate(name: str, revision: str | None) -> tuple[Path, Card | None, str]:
    """The folder with the model's files, downloading them if need be; its card; its revision."""
    if name.startswith("hf:"):
        repo, wanted = repository(name, revision)
        folder, found = _download([(repo, wanted)])
        card = next((card for card in cards().values() if repo in (card.repo, *card.mirrors)), None)
        return folder, card, found
    path = Path(name).expanduser()
    if name not in cards() and (path.is_dir() or path.exists() or "/" in name or "\\" in name):
        if not path.exists():
            raise ModelError(f"The folder {name} does not exist. A Hub model is written 'hf:org/repo@revision'.")
        if not path.is_dir():
            raise ModelError(
                f"{name} is a file. Give the folder that diffusers' save_pretrained writes (with model_index.json)."
            )
        return path, None, "local"
    card = find_card(name)
    if card.embedded:
        return assets() / card.embedded, card, "embedded"
    if card.checkpoint:
        raise ModelError(
            f"{name} is not to be had in a form that diffsight reads. Download {card.checkpoint} and convert it once: "
            f"diffsight convert {card.checkpoint.rpartition('/')[2]} --kind {name} --out FOLDER. Then give that folder."
        )
    folder, found = _download(repositories(card, revision))
    return folder, card, found


def _download(candidates: Sequence[tuple[str, str | None]]) -> tuple[Path, str]:
    advice = "a local diffusers folder instead of the name, or use --model tiny-fashion"
    return download(candidates, _FILES, ignored=_IGNORED, advice=advice)


def _latent_unet(
    folder: Path,
    called: str,
    card: Card | None,
    index: Mapping[str, Any],
    provenance: dict[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> "LatentUNet":
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from diffsight.backbones.latent_unet import LatentUNet
    from diffsight.backbones.vae import LatentSpace

    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True, torch_dtype=dtype)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True, torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(
        folder / "text_encoder", use_safetensors=True, dtype=torch.float32, local_files_only=True
    )
    config = read_json(folder / "scheduler" / "scheduler_config.json", "without a scheduler configuration")
    space = LatentSpace(frozen(vae, device))
    return LatentUNet(
        name=called,
        unet=frozen(unet, device),
        space=space,
        text_encoder=frozen(text_encoder, device),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        schedule=from_config(config),
        prediction=_prediction(config),
        transform=_transform(folder, card, unet.config.sample_size * space.factor, resize="shortest"),
        provenance=provenance,
        device=device,
        dtype=dtype,
    )


def _transformer(
    folder: Path,
    called: str,
    card: Card | None,
    index: Mapping[str, Any],
    provenance: dict[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> "ClassTransformer":
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    from diffsight.backbones.transformer import ClassTransformer
    from diffsight.backbones.vae import LatentSpace

    network = DiTTransformer2DModel.from_pretrained(
        folder, subfolder="transformer", use_safetensors=True, torch_dtype=dtype
    )
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", use_safetensors=True, torch_dtype=torch.float32)
    config = read_json(folder / "scheduler" / "scheduler_config.json", "without a scheduler configuration")
    if _prediction(config) != "eps":
        raise ModelError(f"{folder} is a DiT with {config['prediction_type']!r} prediction; only eps is known.")
    space = LatentSpace(frozen(vae, device))
    labels = index.get("id2label") or {}
    count = network.config.num_embeds_ada_norm
    return ClassTransformer(
        name=called,
        transformer=frozen(network, device),
        space=space,
        schedule=from_config(config),
        transform=_transform(folder, card, network.config.sample_size * space.factor, resize="adm"),
        class_names=tuple(str(labels.get(str(i), i)) for i in range(count)),
        provenance=provenance,
        device=device,
        dtype=dtype,
    )


def _pixel_unet(
    folder: Path,
    called: str,
    card: Card | None,
    index: Mapping[str, Any],
    provenance: dict[str, str],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> "PixelUNet":
    from diffusers import UNet2DModel

    from diffsight.backbones.pixel_unet import PixelUNet

    unet = UNet2DModel.from_pretrained(part_folder(folder, "unet"), use_safetensors=True, torch_dtype=dtype)
    config = read_json(part_folder(folder, "scheduler") / "scheduler_config.json", "without a scheduler configuration")
    if config.get("variance_type") == "learned":
        raise ModelError(
            f"{folder} predicts the variance itself; only 'learned_range' is known, as in guided-diffusion."
        )
    sides = unet.config.sample_size
    height, width = sides if isinstance(sides, list | tuple) else (sides, sides)
    if height is None or height != width:
        found = "of unknown size (unet/config.json has no sample_size)" if height is None else f"of {height}×{width}"
        raise ModelError(f"{folder} draws images {found}; they must be square and known.")
    null = own_settings(folder).get("null_class")
    labels = index.get("id2label") or {}
    return PixelUNet(
        name=called,
        unet=frozen(unet, device),
        schedule=from_config(config),
        prediction=_prediction(config),
        transform=_transform(folder, card, height, resize="adm", grayscale=unet.config.in_channels == 1),
        class_names=tuple(str(labels.get(str(i), i)) for i in range(unet.config.num_class_embeds or 0) if i != null),
        null_class=null,
        provenance=provenance,
        device=device,
        dtype=dtype,
    )


def _transform(folder: Path, card: Card | None, size: int, *, resize: str, grayscale: bool = False) -> ImageTransform:
    """The family's transform at the model's resolution, with what the card or the folder's own diffsight.json says."""
    settings: dict[str, Any] = {"size": size, "resize": resize, "grayscale": grayscale}
    settings |= own_settings(folder).get("transform", {})
    return ImageTransform.from_dict(settings | dict(card.transform if card else {}))


def _prediction(config: Mapping[str, Any]) -> Space:
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
