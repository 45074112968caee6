"""`DifFeedClassifier`: a frozen UNet looks at an image twice, the second time with what it found the first time.

DifFeed (fact sheet §3; Mukhopadhyay et al., ECCV 2024, arXiv 2311.17921): features of decoder blocks go through small
layers and are added, in a second pass over the same noised image, to the outputs of the mirrored encoder blocks; an
attention head reads one layer of the second pass. The head and the small layers are trained, with gradients that come
through the frozen network, so that no features can be cached.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from diffsight.backbones.base import Backbone, Layer
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.backbones.layers import find_layers, intermediates, profile
from diffsight.backbones.loading import load
from diffsight.data.images import Images, images_from
from diffsight.data.views import augmented_view
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ImageError, InputError, ModelError, NumericsError
from diffsight.features.columns import Shape, check_labels
from diffsight.features.extraction import GROUP, Extraction, plan
from diffsight.features.heads import DifFormer, head_from_dict, seeded
from diffsight.features.networks import Feedback
from diffsight.features.noise import Noise
from diffsight.features.probe import check_model
from diffsight.features.recipes import LEARNING_RATES, Recipe, find_recipe
from diffsight.store.disk import digest, make, put, to_json

# The paper's b21, b24, …, b36 in the decoder, which has 18 of the 37 blocks.
_SOURCES, _OF = (1, 4, 7, 10, 13, 16), 18
_OWN = Recipe(epochs=28, batch_size=16, standardize=False)
_FORMAT, _VERSION, _JSON, _WEIGHTS = "diffsight-difffeed", 1, "difffeed.json", "difffeed.safetensors"


def feedback_pairs(
    layers: Sequence[Layer], sources: Sequence[Layer] | None = None, *, name: str = "the model"
) -> dict[Layer, Layer]:
    """The encoder block that each decoder block is fed back to: its mirror, ``enc.(n-1-j)`` of ``dec.j`` (§3).

    Args:
        layers: All blocks of a UNet.
        sources: Which blocks of the decoder; by default those at the places of the paper's six.
        name: What to call the UNet in the error.

    Raises:
        InputError: If it has not as many encoder as decoder blocks, or a source is no decoder block.
    """
    encoder = [layer for layer in layers if layer.name.startswith("enc.")]
    decoder = [layer for layer in layers if layer.name.startswith("dec.")]
    if not decoder or len(encoder) != len(decoder):
        raise InputError(
            f"DifFeed feeds the blocks of a decoder back to their mirror images in the encoder, and {name} has "
            f"{len(encoder)} encoder and {len(decoder)} decoder blocks. Use a UNet with as many of one as of the other."
        )
    if sources is None:
        places = dict.fromkeys((2 * place + 1) * len(decoder) // (2 * _OF) for place in _SOURCES)
        sources = [decoder[place] for place in places]
    if strange := [layer.name for layer in sources if layer not in decoder]:
        raise InputError(f"{strange[0]!r} is no block of the decoder: feed back {decoder[0].name} to {decoder[-1].name}.")
    return {layer: encoder[-1 - decoder.index(layer)] for layer in sources}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TwoPasses:
    """How a frozen UNet looks twice. Made by `plan_passes`.

    Attributes:
        extraction: The model, the output layer, the timestep, the noise and the views.
        pairs: The encoder block that each decoder block is fed back to.
        shapes: Channels, height and width of what these blocks and the output layer give, by name.
    """

    extraction: Extraction
    pairs: Mapping[Layer, Layer]
    shapes: Mapping[str, Shape]

    @property
    def output(self) -> Layer:
        """The layer of the second pass that the head reads."""
        return self.extraction.layers[0]

    def encode(
        self, images: Images, positions: range | None = None, *, view: int = 0
    ) -> tuple[list[str], Float[Tensor, "n c h w"]]:
        """Identities, which are those of the pixels, and latents of one view of some images, on the CPU.

        Raises:
            ImageError: If an image cannot be read.
        """
        setup, positions = self.extraction, range(len(images)) if positions is None else positions

        def prepare(image_id: str, image: Any) -> Tensor:  # noqa: ANN401
            transform, seed = setup.backbone.transform, setup.noise.seed
            return augmented_view(image, transform, image_id=image_id, view=view, seed=seed, flip=setup.flip)

        ids: list[str] = []
        latents = []
        opened = by_content(images, ids, positions)
        for one in encode_images(setup.backbone, opened, group=GROUP, prepare=prepare):
            if one.x0 is None:
                raise ImageError(f"X[{positions[len(latents)]}]: {one.failure}")
            latents.append(one.x0.cpu())
        return ids, torch.stack(latents)

    def noised(self, ids: Sequence[str], x0: Float[Tensor, "b c h w"], *, draw: int) -> Float[Tensor, "b c h w"]:
        """Latents with the noise of this draw, on the model's device."""
        backbone, bank = self.extraction.backbone, NoiseBank(self.extraction.noise.seed)
        eps = torch.cat([bank.noise(image_id, (draw,), x0.shape[1:]) for image_id in ids])
        return backbone.schedule.mix(x0.to(backbone.device), eps.to(backbone.device), self._index(len(ids)))

    @torch.no_grad()
    def first(self, x_t: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """What the blocks that are fed back give, by name, fp32; nothing runs after the last of them."""
        sources = tuple(self.pairs)
        return dict(zip((layer.name for layer in sources), self._run(x_t, sources), strict=True))

    def second(
        self, x_t: Float[Tensor, "b c h w"], fed: Mapping[str, Float[Tensor, "b _ _ _"]]
    ) -> Float[Tensor, "b _ _ _"]:
        """What the output layer gives when something is added to encoder blocks, fp32; gradients flow to that."""
        dtype = self.extraction.backbone.dtype
        return self._run(x_t, (self.output,), {to.path: fed[to.name].to(dtype) for to in self.pairs.values()})[0]

    def _index(self, rows: int) -> Int[Tensor, " b"]:
        return torch.full((rows,), self.extraction.levels[0])

    def _run(self, x_t: Tensor, layers: Sequence[Layer], add: Mapping[str, Tensor] | None = None) -> list[Tensor]:
        backbone, condition = self.extraction.backbone, self.extraction.condition.nulls(len(x_t))
        try:
            maps = intermediates(backbone, x_t, self._index(len(x_t)), condition, layers, add=add)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{len(x_t)} rows of {backbone.name} do not fit {x_t.device}: lower batch_size.") from error
        return [each.float() for each in maps]


def plan_passes(
    backbone: Backbone,
    *,
    timestep: int | None = None,
    layer: str | None = None,
    sources: Sequence[str] | None = None,
    views: int = 1,
    flip: bool = True,
    seed: int = 0,
) -> TwoPasses:
    """Check what is to be fed back and read; arguments as those of `DifFeedClassifier`.

    Raises:
        InputError: If the model is no UNet with as many encoder as decoder blocks, a layer is unknown or in the wrong
            place, or a number makes no sense.
    """
    named = None if sources is None else find_layers(backbone, sources)
    pairs = feedback_pairs(backbone.layers, named, name=backbone.name)
    extraction = plan(
        backbone,
        layers=None if layer is None else (layer,),
        timesteps=None if timestep is None else (timestep,),
        noise=Noise(seed=seed),
        views=views,
        flip=flip,
    )
    output, targets = extraction.layers[0], tuple(pairs.values())
    found = {p.layer: p for p in profile(backbone, tuple(dict.fromkeys((*pairs, *targets, output))))}
    last = max(targets, key=lambda target: found[target].flops)
    if found[output].flops <= found[last].flops:
        raise InputError(f"The output layer {output.name} must run after {last.name}, which is fed. Take a later one.")
    return TwoPasses(extraction=extraction, pairs=pairs, shapes={each.name: p.shape for each, p in found.items()})


class DifFeed(nn.Module):
    """What is trained: the feedback, and the head D′ on the output layer of the second pass (§3).

    The paper's six pairs and b24 of ADM-256 are 2.76 M + 27.79 M = 30.55 M parameters with 1000 classes.
    """

    def __init__(
        self, pairs: Mapping[str, str], shapes: Mapping[str, Shape], output: str, num_classes: int, spec: DifFormer
    ) -> None:
        """Make both; ``pairs``, ``shapes`` and ``output`` are by names of layers."""
        super().__init__()
        self.output = output
        self.feedback = Feedback(pairs, shapes)
        self.head = spec.build({output: shapes[output]}, num_classes)

    def forward(self, passes: TwoPasses, x_t: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits."""
        return self.read(passes.second(x_t, self.feedback(passes.first(x_t))))

    def read(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits from what the second pass gave."""
        return self.head({self.output: maps})


def build(
    passes: TwoPasses, num_classes: int, spec: DifFormer, generator: torch.Generator | None = None
) -> DifFeed:
    """Make the trained part for a model; without a generator on the meta device, to be counted or loaded."""
    pairs = {source.name: target.name for source, target in passes.pairs.items()}
    return seeded(lambda: DifFeed(pairs, passes.shapes, passes.output.name, num_classes, spec), generator)


def backward(
    network: DifFeed,
    passes: TwoPasses,
    x_t: Float[Tensor, "b c h w"],
    targets: Int[Tensor, " b"],
    *,
    batch_size: int,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of a training step, with its gradients added to the trained weights.

    The denoiser keeps the activations of ``batch_size`` rows only, while BatchNorm sees all rows of the step: gradients
    are summed where the feedback enters the denoiser, and go on from there at once. So ``batch_size`` bounds the memory
    and, but for rounding, changes nothing.
    """
    parts = x_t.split(batch_size)
    features = [passes.first(part) for part in parts]
    fed = network.feedback({name: torch.cat([each[name] for each in features]) for name in features[0]})
    entries = {name: each.detach().requires_grad_() for name, each in fed.items()}
    pieces = zip(*(each.split(batch_size) for each in entries.values()), strict=True)
    total = torch.zeros((), device=x_t.device)
    for part, wanted, piece in zip(parts, targets.split(batch_size), pieces, strict=True):
        logits = network.read(passes.second(part, dict(zip(entries, piece, strict=True))))
        loss = functional.cross_entropy(logits, wanted, reduction="sum") / len(x_t)
        loss.backward()
        total += loss.detach()
    torch.autograd.backward(list(fed.values()), [entry.grad for entry in entries.values()])
    return total
