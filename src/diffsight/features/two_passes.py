"""DifFeed's two passes: a frozen UNet looks at an image again with what it found the first time.

Features of decoder blocks go through small layers and are added, in a second pass over the same noised image, to the
outputs of the mirrored encoder blocks; a head reads one layer of the second pass. The head and the small layers are
trained, with gradients that come through the frozen network (Mukhopadhyay et al., ECCV 2024, arXiv 2311.17921).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from diffsight.backbones.base import Backbone, Layer
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.backbones.layers import find_layers, intermediates, profile
from diffsight.data.images import Images
from diffsight.diffusion.noise import NoiseBank
from diffsight.errors import ImageError, InputError, ModelError
from diffsight.features.extraction import GROUP, Extraction, plan
from diffsight.features.heads.columns import Shape
from diffsight.features.heads.networks import Feedback
from diffsight.features.heads.specs import DifFormer
from diffsight.features.noise import Noise

# The paper's b21, b24, …, b36 in the decoder, which has 18 of its 37 blocks.
_SOURCES, _OF = (1, 4, 7, 10, 13, 16), 18


def feedback_pairs(
    layers: Sequence[Layer], sources: Sequence[Layer] | None = None, *, name: str = "the model"
) -> dict[Layer, Layer]:
    """The encoder block that each decoder block is fed back to: its mirror image, ``enc.(n-1-j)`` of ``dec.j``.

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
        # The block around the same place: both decoders are cut into equal parts, and the middles of parts compared.
        places = dict.fromkeys((2 * place + 1) * len(decoder) // (2 * _OF) for place in _SOURCES)
        sources = [decoder[place] for place in places]
    if strange := [layer.name for layer in sources if layer not in decoder]:
        raise InputError(f"Only {decoder[0].name} to {decoder[-1].name} of {name} can be fed back, not {strange[0]!r}.")
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
    def backbone(self) -> Backbone:
        """The model."""
        return self.extraction.backbone

    @property
    def output(self) -> Layer:
        """The layer of the second pass that the head reads."""
        return self.extraction.layers[0]

    @property
    def seed(self) -> int:
        """Of the noise and the views."""
        return self.extraction.noise.seed

    def encode(
        self, images: Images, positions: range | None = None, *, view: int = 0
    ) -> tuple[list[str], Float[Tensor, "n c h w"]]:
        """Encode one view of images.

        Args:
            images: From `images_from`.
            positions: Which ones; all by default.
            view: Number of the view; 0 is the image as it is.

        Returns:
            Identities, which are those of the pixels, and latents on the CPU.

        Raises:
            ImageError: If an image cannot be read.
        """
        positions = range(len(images)) if positions is None else positions
        prepare = partial(self.extraction.prepare, view=view)
        ids: list[str] = []
        latents = []
        for one in encode_images(self.backbone, by_content(images, ids, positions), group=GROUP, prepare=prepare):
            if one.x0 is None:
                raise ImageError(one.failure)
            latents.append(one.x0.cpu())
        return ids, torch.stack(latents)

    def noised(self, ids: Sequence[str], x0: Float[Tensor, "b c h w"], *, draw: int) -> Float[Tensor, "b c h w"]:
        """Latents with one draw of the noise of their images, on the model's device."""
        bank, device = NoiseBank(self.seed), self.backbone.device
        eps = torch.cat([bank.noise(image_id, (draw,), x0.shape[1:]) for image_id in ids])
        return self.backbone.schedule.mix(x0.to(device), eps.to(device), self._levels(len(ids)))

    @torch.no_grad()
    def first(self, x_t: Float[Tensor, "b c h w"]) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """What the blocks that are fed back give, by name, fp32; nothing runs after the last of them."""
        return self._run(x_t, tuple(self.pairs), {})

    def second(
        self, x_t: Float[Tensor, "b c h w"], fed: Mapping[str, Float[Tensor, "b _ _ _"]]
    ) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """What the output layer gives, by name, fp32, when something is added to the encoder blocks.

        Args:
            x_t: What the first pass saw.
            fed: What is added to each encoder block of ``pairs``, by name; gradients flow to it.
        """
        dtype = self.backbone.dtype
        return self._run(x_t, (self.output,), {to.path: fed[to.name].to(dtype) for to in self.pairs.values()})

    def _levels(self, rows: int) -> Int[Tensor, " b"]:
        return torch.full((rows,), self.extraction.levels[0])

    def _run(self, x_t: Tensor, layers: Sequence[Layer], add: Mapping[str, Tensor]) -> dict[str, Tensor]:
        levels, condition = self._levels(len(x_t)), self.extraction.condition.nulls(len(x_t))
        try:
            maps = intermediates(self.backbone, x_t, levels, condition, layers, add=add)
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"{len(x_t)} rows of {self.backbone.name} do not fit {x_t.device}. Lower batch_size."
            ) from error
        return {layer.name: each.float() for layer, each in zip(layers, maps, strict=True)}


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
    """Check what is to be fed back and what is to be read; the arguments are those of `DifFeedClassifier`.

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
    found = {each.layer: each for each in profile(backbone, tuple(dict.fromkeys((*pairs, *targets, output))))}
    last = max(targets, key=lambda target: found[target].flops)
    if found[output].flops <= found[last].flops:
        raise InputError(f"The output layer {output.name} must run after {last.name}, which is fed. Take a later one.")
    return TwoPasses(extraction=extraction, pairs=pairs, shapes={each.name: p.shape for each, p in found.items()})


class DifFeed(nn.Module):
    """What is trained: the feedback, and a head on the output layer of the second pass.

    The paper's six pairs are 2.76 M parameters, and its head on b24 of ADM-256, with 1000 classes, 27.79 M.
    """

    def __init__(
        self, pairs: Mapping[str, str], shapes: Mapping[str, Shape], output: str, num_classes: int, head: DifFormer
    ) -> None:
        """Make both, with the head on the meta device: to be called by `heads.seeded`.

        Args:
            pairs: By names, the layer that each source layer is fed back to.
            shapes: Channels, height and width of what these layers and the output layer give.
            output: Name of the output layer.
            num_classes: How many logits.
            head: Its settings.
        """
        super().__init__()
        self.spec = head
        self.feedback = Feedback(pairs, shapes)
        self.head = head.build({output: shapes[output]}, num_classes)

    def forward(self, passes: TwoPasses, x_t: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Logits, from both passes."""
        return self.head(passes.second(x_t, self.feedback(passes.first(x_t))))


def backward(
    network: DifFeed,
    passes: TwoPasses,
    x_t: Float[Tensor, "b c h w"],
    targets: Int[Tensor, " b"],
    *,
    batch_size: int,
) -> Float[Tensor, ""]:
    """The mean cross-entropy of a training step, with its gradients added to those of the trained weights.

    The frozen network keeps the activations of ``batch_size`` rows and no more, while the feedback's BatchNorm sees all
    rows of the step: gradients are collected where the feedback enters the frozen network, and go on from there
    together. So ``batch_size`` bounds the memory and, but for rounding, changes nothing; a BatchNorm in the head alone
    takes the statistics of that many rows.
    """
    parts = x_t.split(batch_size)
    features = [passes.first(part) for part in parts]
    fed = network.feedback({name: torch.cat([each[name] for each in features]) for name in features[0]})
    entries = {name: each.detach().requires_grad_() for name, each in fed.items()}
    pieces = zip(*(entry.split(batch_size) for entry in entries.values()), strict=True)
    total = torch.zeros((), device=x_t.device)
    for part, wanted, piece in zip(parts, targets.split(batch_size), pieces, strict=True):
        logits = network.head(passes.second(part, dict(zip(entries, piece, strict=True))))
        loss = functional.cross_entropy(logits, wanted, reduction="sum") / len(x_t)
        loss.backward()
        total += loss.detach()
    torch.autograd.backward(list(fed.values()), [entry.grad for entry in entries.values()])
    return total
