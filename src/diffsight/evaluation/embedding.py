"""Images to one feature vector each, by a network that has a name: a diffusion model, or one of timm's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from diffsight.backbones.base import Backbone, resolve_device
from diffsight.data.sources import Source
from diffsight.errors import ImageError, InputError, ModelError, NumericsError, nearest
from diffsight.features.cache import extract
from diffsight.features.extraction import Extraction, plan
from diffsight.store.disk import digest
from diffsight.synthesis.networks import normalisation_of
from diffsight.synthesis.preprocessing import IMAGENET, Normalised, Preprocessing, to_unit

TIMM = "timm:"
_BATCH = 64


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Embedded:
    """Feature vectors of the images of a source.

    Attributes:
        values: A row for each image that could be read, float32.
        positions: Which images they are, ascending.
        failures: Id and reason of each of the others.
        calls: Denoiser calls of this time; none for features that were kept, or of an ordinary network.
    """

    values: Float[np.ndarray, "n d"]
    positions: Int[np.ndarray, " n"]
    failures: tuple[tuple[str, str], ...]
    calls: int


@runtime_checkable
class Embedder(Protocol):
    """Gives a feature vector for each image."""

    @property
    def name(self) -> str:
        """What it is called in reports."""
        ...

    @property
    def calls_per_image(self) -> int:
        """Denoiser calls; 0 of an ordinary network."""
        ...

    def identity(self) -> dict[str, Any]:
        """What its features depend on, as JSON values."""
        ...

    def embed(self, source: Source, progress: Callable[[int, int], None] | None = None) -> Embedded:
        """Features of all images; ``progress`` is called with (images finished, denoiser calls so far)."""
        ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DiffusionEmbedder:
    """Activations of a diffusion model, kept in a cache on the disk.

    Attributes:
        extraction: Which; one vector for each image.
        cache: A directory of caches, as for `extract`; None for the usual one.
        batch_size: Rows of the denoiser in one call; does not change results.
    """

    extraction: Extraction
    cache: Path | None = None
    batch_size: int = 64

    def __post_init__(self) -> None:
        if (views := self.extraction.stored_views) > 1:
            raise InputError(f"One vector for each image is needed, and these settings give {views}: use one view.")

    @property
    def name(self) -> str:
        """Model and columns."""
        return f"{self.extraction.backbone.name} {'+'.join(self.extraction.columns)}"

    @property
    def calls_per_image(self) -> int:
        """Denoiser calls for an image whose features are not kept yet."""
        return self.extraction.calls_per_image

    def identity(self) -> dict[str, Any]:
        """Model, layers, noise and pooling."""
        return self.extraction.fingerprint()

    def embed(self, source: Source, progress: Callable[[int, int], None] | None = None) -> Embedded:
        """Features of all images, from the cache where it has them.

        Raises:
            ImageError: If no image can be read.
            RunError: If the cache is damaged or in use, or the disk refuses.
        """
        calls = 0

        def told(images: int, so_far: int) -> None:
            nonlocal calls
            calls = so_far
            if progress is not None:
                progress(images, so_far)

        found = extract(self.extraction, source, root=self.cache, batch_size=self.batch_size, progress=told)
        rows = np.arange(len(found))
        columns = [found.rows(name, rows).flatten(1) for name in found.names]
        return Embedded(
            values=torch.cat(columns, dim=1).numpy(),
            positions=found.positions,
            failures=tuple((source.ids[one.position], one.reason) for one in found.failures),
            calls=calls,
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NetworkEmbedder:
    """What an ordinary network knows of an image before its last layer, such as DINOv2 of timm.

    Attributes:
        name: What it is called in reports.
        network: Images from 0 to 1 → a row of features for each.
        preprocessing: From an image to what it takes.
    """

    name: str
    network: Normalised
    preprocessing: Preprocessing

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @property
    def calls_per_image(self) -> int:
        """None."""
        return 0

    def identity(self) -> dict[str, Any]:
        """Weights and preprocessing."""
        weights = (tensor.detach().cpu().contiguous() for tensor in self.network.state_dict().values())
        whole = digest(b"".join(digest(each.numpy().tobytes()).encode() for each in weights))
        return {"network": self.name, "weights": whole, "preprocessing": self.preprocessing.to_dict()}

    def embed(self, source: Source, progress: Callable[[int, int], None] | None = None) -> Embedded:
        """Features of all images.

        Raises:
            ImageError: If no image can be read.
            NumericsError: If a feature is not finite.
        """

        def vectors(batch: Tensor) -> Tensor:
            return self.network(to_unit(batch.to(self.network.mean.device)))

        found = embed_in_batches(source, self.preprocessing, vectors, progress)
        if not len(found.values):
            raise ImageError(f"None of {len(source)} images could be used. The first: {found.failures[0][1]}")
        if not np.isfinite(found.values).all():
            raise NumericsError(f"{self.name} gives a feature that is not finite. Its weights are damaged.")
        return found


@torch.inference_mode()
def embed_in_batches(
    source: Source,
    prepare: Callable[[Image.Image], UInt8[Tensor, "3 h w"]],
    vectors: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b d"]],
    progress: Callable[[int, int], None] | None = None,
) -> Embedded:
    """Vectors of all images by two functions; what cannot be read is a failure.

    Args:
        source: The images.
        prepare: From an image to bytes, all of one size.
        vectors: From a batch of these to a vector each.
        progress: Called with images that are done, and 0 calls.
    """
    rows: list[np.ndarray] = []
    positions: list[int] = []
    failures: list[tuple[str, str]] = []
    for start in range(0, len(source), _BATCH):
        images = []
        for position in range(start, min(start + _BATCH, len(source))):
            sample = source[position]
            try:
                images.append(prepare(sample.load()))
                positions.append(position)
            except ImageError as error:
                failures.append((sample.id, str(error)))
        if images:
            rows.append(vectors(torch.stack(images)).float().cpu().numpy())
        if progress is not None:
            progress(min(start + _BATCH, len(source)), 0)
    return Embedded(
        values=np.concatenate(rows) if rows else np.zeros((0, 0), np.float32),
        positions=np.array(positions, dtype=np.int64),
        failures=tuple(failures),
        calls=0,
    )


def diffusion_embedder(backbone: Backbone, *, cache: Path | None = None, batch_size: int = 64) -> DiffusionEmbedder:
    """The features of a diffusion model that `FeatureExtractor` takes by default: the papers' depth and noise."""
    return DiffusionEmbedder(extraction=plan(backbone), cache=cache, batch_size=batch_size)


def timm_embedder(name: str, *, device: str | None = None) -> NetworkEmbedder:
    """A network of timm with its pre-trained weights, without its last layer.

    Args:
        name: As timm has it, with or without ``timm:``: ``"vit_small_patch14_dinov2.lvd142m"``.
        device: Where it computes; by default CUDA where there is one.

    Raises:
        InputError: If there is no such network, or no such device.
        ModelError: If timm is not installed, or the weights cannot be had.
    """
    where = resolve_device(device)
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"{name!r} needs timm. Install it: pip install 'diffsight[train]'.") from error
    short = name.removeprefix(TIMM)
    if short.startswith(("hf-hub:", "hf_hub:", "local-dir:")) or not timm.is_model(short):
        raise InputError(f"timm has no network {short!r}. {nearest(short, timm.list_models(pretrained=True))}")
    try:
        network = timm.create_model(short, pretrained=True, num_classes=0)
    except Exception as error:  # whatever the Hub and its client raise
        cause = " ".join(str(error).split())[:300]
        raise ModelError(f"The weights of {short!r} could not be had: {cause}. They come from the Hub.") from error
    return network_embedder(network.to(where), f"{TIMM}{short}")


def network_embedder(network: nn.Module, name: str) -> NetworkEmbedder:
    """A network of timm without its last layer, with the size and normalisation that timm knows for it."""
    known = getattr(network, "pretrained_cfg", None) or {}
    size = int(tuple(known.get("input_size", (3, 224, 224)))[-1])
    mean, std = normalisation_of(network) or IMAGENET
    side = max(size, round(size / known.get("crop_pct", 1.0)))
    preprocessing = Preprocessing(size=size, scale=side, interpolation="bicubic", mean=mean, std=std)  # pyright: ignore[reportArgumentType] - there are three
    where = next(network.parameters()).device
    return NetworkEmbedder(name=name, network=Normalised(network, mean, std).to(where), preprocessing=preprocessing)
