"""Images and texts as vectors whose cosine says how well they fit: what CLIP and SigLIP have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffsight.backbones.encoders.processing import Processor, as_bytes, described, normalised, processed, unit
from diffsight.backbones.text import check_length

_GROUP = 64


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DualEncoder:
    """A frozen network of images and texts with its tokenizer and image processor; of `load_clip` and `load_siglip`.

    Attributes:
        name: How the user called it.
        model: ``CLIPModel`` or ``SiglipModel``.
        tokenizer: Its own, told how much the model reads.
        processor: Of images.
        of_pixels: From what the processor gives to a vector for each image.
        of_tokens: From tokens, padded to all that the model reads, to a vector for each text.
        plain: From a text to how the texts were written that the model has learnt from.
        dim: Length of the vectors.
        provenance: What changes numbers and is not seen in the other attributes: revision, weights hash, ….
        device: Where it is.
        dtype: Of its weights.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    processor: Processor
    of_pixels: Callable[[Tensor], Tensor]
    of_tokens: Callable[[Tensor], Tensor]
    plain: Callable[[str], str]
    dim: int
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Side of the images that the network reads."""
        return int(self.model.vision_model.config.image_size)

    @property
    def scale(self) -> float:
        """By what cosines are multiplied to be logits; SigLIP's bias, which all logits share, is left out."""
        return float(self.model.logit_scale.detach().float().exp())

    def prepare(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """An RGB image, resized and cut, for `vectors`."""
        return as_bytes(self.processor, image)

    @torch.no_grad()
    def vectors(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images that were prepared: those of `images`."""
        return unit(self.of_pixels(normalised(self.processor, batch.to(self.device)).to(self.dtype)))

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Vectors of RGB images, of length 1, fp32, on the model's device."""
        vectors = [torch.zeros(0, self.dim, device=self.device)]
        for start in range(0, len(images), _GROUP):
            pixels = processed(self.processor, list(images[start : start + _GROUP]))
            vectors.append(unit(self.of_pixels(pixels.to(self.device, self.dtype))))
        return torch.cat(vectors)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Vectors of texts, of length 1, fp32, on the model's device.

        Raises:
            PromptError: If a text has more tokens than the model reads: its end would be ignored silently.
        """
        said = [self.plain(text) for text in texts]
        if said:
            check_length(self.tokenizer, said, self.name)
        vectors = [torch.zeros(0, self.dim, device=self.device)]
        for start in range(0, len(said), _GROUP):
            # Padded to the full length on the right, whatever else is in the batch, and without a mask. SigLIP was
            # trained so. CLIP's attention looks back only, and its vector is read at the end of the text: nothing after
            # it can matter. With a mask transformers would choose another kernel when a neighbour is shorter.
            tokens = self.tokenizer(
                said[start : start + _GROUP],
                padding="max_length",
                padding_side="right",
                max_length=self.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids
            vectors.append(unit(self.of_tokens(tokens.to(self.device))))
        return torch.cat(vectors)

    def similarity(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "n m"]:
        """How well each image fits each text: the cosine of their vectors times the model's learnt scale, fp32.

        These are CLIP's logits (`CLIPModel`'s ``logits_per_image``), not probabilities: no softmax over images or texts
        is taken, so that values of different queries can be compared, as Winoground's scores do (2204.03162 §4).
        """
        return self.scale * self.images(images) @ self.texts(texts).T

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
