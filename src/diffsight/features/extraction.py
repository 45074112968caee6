"""What is taken out of a model, and taking it: images in, pooled activations of chosen layers and noise levels out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from diffsight.backbones.base import Backbone, Condition, Layer
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.backbones.layers import find_layers, intermediates
from diffsight.data.images import Images
from diffsight.data.views import STREAM, augmented_view
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import InputError, ModelError
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool

GROUP = 16  # Images that go through the VAE at once, cut by position.
# The papers' choices: just after the middle of a UNet (block 24 of 37), at 45 % of a transformer (block 13 of 28), and
# a little noise (t = 90 of ADM's schedule).
_DEPTH_OF_UNET, _DEPTH_OF_TRANSFORMER, _LOG_SNR = 24 / 37, 13 / 28, 2.35


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An image without features.

    Attributes:
        position: Its place among the images.
        reason: Why.
    """

    position: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Chunk:
    """The features of a stretch of images.

    Attributes:
        positions: Which images have features, in order.
        features: For each column a tensor (images, views, channels, height, width), fp32 on the CPU.
        failures: The images of the stretch that have none.
        start: Where the stretch begins.
        stop: Where it ends.
    """

    positions: tuple[int, ...]
    features: dict[str, Float[Tensor, "n v c h w"]]
    failures: tuple[Failure, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Extraction:
    """Everything that features depend on but the images. Made by `plan`.

    Attributes:
        backbone: The model.
        layers: Whose outputs.
        levels: At which levels of the schedule, 0 (clean) to ``len(schedule) - 1``: DDPM's timesteps.
        noise: What is mixed in.
        pool: What is kept of a map.
        prompt: The text that the model reads with every image; empty, and so no text, by default. A class-conditional
            model gets its null class.
        views: How many views of each image; the first is the image itself, the others are augmented.
        flip: Whether augmented views may be mirrored.
        condition: The prompt or the null member, encoded.
    """

    backbone: Backbone
    layers: tuple[Layer, ...]
    levels: tuple[int, ...]
    noise: Noise = field(default_factory=Noise)
    pool: Pool = field(default_factory=Pool)
    prompt: str = ""
    views: int = 1
    flip: bool = True
    condition: Condition = field(repr=False)

    @property
    def columns(self) -> tuple[str, ...]:
        """``dec.4@90`` and so on: timestep by timestep, and in each the layers, both in the order asked for."""
        return tuple(f"{layer.name}@{level}" for level in self.levels for layer in self.layers)

    @property
    def stored_views(self) -> int:
        """Feature vectors of an image in each column: its views, times its draws where these are kept apart."""
        return self.views * (self.noise.draws if self.noise.kind == "resample" else 1)

    @property
    def calls_per_image(self) -> int:
        """Passes through the denoiser, up to the last layer."""
        return self.views * self.noise.draws * len(self.levels)

    def fingerprint(self) -> dict[str, Any]:
        """All that the numbers depend on, as JSON values."""
        return {
            "backbone": self.backbone.identity(),
            "layers": [layer.path for layer in self.layers],
            "timesteps": list(self.levels),
            "noise": {"kind": self.noise.kind, "draws": self.noise.draws, "shared": self.noise.shared}
            | {"bank": NoiseBank(self.noise.seed).fingerprint()},
            "pool": {"kind": self.pool.kind, "size": self.pool.size}
            | ({"power": self.pool.power} if self.pool.kind == "gem" else {}),
            "prompt": self.prompt,
            "views": {"count": self.views, "flip": self.flip, "stream": STREAM} if self.views > 1 else 1,
        }

    def run(self, images: Images, *, batch_size: int = 64, start: int = 0, stop: int | None = None) -> Iterator[Chunk]:
        """Extract features, a stretch of images at a time.

        An image's features depend on its pixels and on what is in this object, and neither on its neighbours nor on the
        batch size, beyond rounding.

        Args:
            images: From `images_from`.
            batch_size: Rows of the denoiser in one call; halved when the device runs out of memory.
            start: The first image.
            stop: The image after the last; all by default.

        Yields:
            Stretches that follow one another.

        Raises:
            ModelError: If a single row does not fit the device's memory.
        """
        stop = len(images) if stop is None else min(stop, len(images))
        step = GROUP * max(1, round(batch_size / (GROUP * self.calls_per_image)))
        for low in range(start, stop, step):
            yield self._chunk(images, range(low, min(low + step, stop)), batch_size)

    @torch.no_grad()
    def _chunk(self, images: Images, positions: range, batch_size: int) -> Chunk:
        ids: list[str] = []
        opened = list(by_content(images, ids, positions))
        encoded = [
            list(encode_images(self.backbone, opened, group=GROUP, prepare=partial(self.prepare, view=view)))
            for view in range(self.views)
        ]
        reasons = {i: one.failure for view in encoded for i, one in enumerate(view) if one.failure is not None}
        good = [i for i in range(len(ids)) if i not in reasons]
        maps: list[Tensor] = []
        if good:
            shape = self.backbone.latent_shape
            x0 = [one.x0 for i in good for one in (view[i] for view in encoded) if one.x0 is not None]
            eps = [self.noise.eps(ids[i], view, self.levels, shape) for i in good for view in range(self.views)]
            maps = self._features(torch.stack(x0), torch.stack(eps), batch_size)
            maps = [m.unflatten(0, (len(good), self.stored_views)) for m in maps]
            finite = torch.stack([m.flatten(1).isfinite().all(1) for m in maps]).all(0)
            if not finite.all():
                dtype = str(self.backbone.dtype).removeprefix("torch.")
                advice = "" if dtype == "float32" else "; try dtype fp32"
                reason = f"the network gave a value that is not finite (computing in {dtype}){advice}"
                bad = [i for i, fine in zip(good, finite.tolist(), strict=True) if not fine]
                reasons |= {i: f"Image X[{positions[i]}]: {reason}" for i in bad}
                maps = [m[finite] for m in maps]
                good = [i for i in good if i not in reasons]
        return Chunk(
            positions=tuple(positions[i] for i in good),
            features=dict(zip(self.columns, maps, strict=True)) if good else {},
            failures=tuple(Failure(position=positions[i], reason=reason) for i, reason in sorted(reasons.items())),
            start=positions.start,
            stop=positions.stop,
        )

    def prepare(self, image_id: str, image: Image.Image, *, view: int) -> Float[Tensor, "3 h w"]:
        """One view of an image as the model is fed, addressed by the image's identity and the noise's seed."""
        transform = self.backbone.transform
        return augmented_view(image, transform, image_id=image_id, view=view, seed=self.noise.seed, flip=self.flip)

    def _features(self, x0: Tensor, eps: Tensor, batch_size: int) -> list[Tensor]:
        """Pooled maps of each column, one row per view of an image, or per draw of it where draws are kept apart."""
        draws, count = self.noise.draws, len(self.levels)
        device = self.backbone.device
        level = torch.tensor(self.levels).repeat(len(x0) * draws)
        parts: list[list[Tensor]] = []
        for rows in torch.arange(len(level)).split(batch_size):
            clean = x0[(rows // (draws * count)).to(x0.device)].to(device)
            noise = eps.flatten(0, 1)[rows].to(device)
            x_t = self.backbone.schedule.mix(clean, noise, level[rows])
            parts.append(self._forward(x_t, level[rows]))
        columns = []
        joined = [torch.cat(layer).cpu().unflatten(0, (-1, draws, count)) for layer in zip(*parts, strict=True)]
        for number in range(count):
            for layer in joined:
                kept = layer[:, :, number]
                columns.append(kept.flatten(0, 1) if self.noise.kind == "resample" else kept.mean(1))
        return columns

    def _forward(self, x_t: Tensor, level: Int[Tensor, " b"]) -> list[Tensor]:
        condition = self.condition.nulls(len(x_t)) if not self.prompt else self.condition.take([0] * len(x_t))
        try:
            return [self.pool(m) for m in intermediates(self.backbone, x_t, level, condition, self.layers)]
        except torch.OutOfMemoryError as error:
            if len(x_t) == 1:
                raise ModelError(
                    f"{self.backbone.name} does not fit {x_t.device}: a single row ran out of memory. Free memory, or "
                    "use dtype 'bf16' or device 'cpu'."
                ) from error
            torch.cuda.empty_cache()
        half = len(x_t) // 2
        parts = (self._forward(x_t[part], level[part]) for part in (slice(None, half), slice(half, None)))
        return [torch.cat(both) for both in zip(*parts, strict=True)]


def plan(
    backbone: Backbone,
    *,
    layers: Sequence[str] | None = None,
    timesteps: Sequence[int] | None = None,
    noise: Noise | None = None,
    pool: Pool | None = None,
    prompt: str = "",
    views: int = 1,
    flip: bool = True,
) -> Extraction:
    """Check what is to be extracted, and encode the prompt.

    Args:
        backbone: The model.
        layers: Names from `find_layers`; None takes the block just after the middle of a UNet, or the one at 45 % of a
            transformer, where the papers found the best features.
        timesteps: Levels of the schedule; None takes one with a log-SNR of 2.35, as t = 90 has it in ADM.
        noise: What is mixed in; one fixed draw by default.
        pool: What is kept of a map; its mean over all places by default.
        prompt: A text for all images. Class names in it would give the answer away; it stays empty by default.
        views: Of each image.
        flip: Whether augmented views may be mirrored.

    Raises:
        InputError: If a layer is unknown or named twice, a timestep is out of range or named twice, or a number makes
            no sense.
        PromptError: If the prompt does not fit the model.
    """
    chosen = find_layers(backbone, layers) if layers is not None else (default_layer(backbone),)
    levels = (backbone.schedule.nearest_level(_LOG_SNR),) if timesteps is None else tuple(timesteps)
    if not levels:
        raise InputError("Features need at least one timestep.")
    for level in levels:
        if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level < len(backbone.schedule):
            raise InputError(
                f"{level!r} is not a timestep of {backbone.name}: they go from 0 (clean) to "
                f"{len(backbone.schedule) - 1} (noise)."
            )
    if repeated := [level for level in levels if levels.count(level) > 1]:
        raise InputError(f"The timestep {repeated[0]} is there twice; name it once, or use several draws.")
    if isinstance(views, bool) or not isinstance(views, int) or views < 1:
        raise InputError(f"The number of views must be at least 1; got {views!r}.")
    return Extraction(
        backbone=backbone,
        layers=chosen,
        levels=levels,
        noise=noise or Noise(),
        pool=pool or Pool(),
        prompt=prompt,
        views=views,
        flip=flip,
        condition=backbone.condition((prompt,) if prompt else ()),
    )


def default_layer(backbone: Backbone) -> Layer:
    """The block where the papers found the best features, by its depth."""
    layers = backbone.layers
    depth = _DEPTH_OF_TRANSFORMER if layers[0].name.startswith("block") else _DEPTH_OF_UNET
    return layers[max(1, round(depth * len(layers))) - 1]


def unaugmented(extraction: Extraction) -> Extraction:
    """The same for images that are to be recognised: one view of each, as it is."""
    return replace(extraction, views=1)
