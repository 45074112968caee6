"""DINOv2: images as vectors, learnt without texts and without labels."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import Dinov2Model

try:
    from transformers import BitImageProcessorPil as DinoProcessor
except ImportError:  # as for CLIP
    from transformers import BitImageProcessor as DinoProcessor

from diffsight.backbones.base import resolve_device, resolve_dtype
from diffsight.backbones.encoders.folders import content_hash, locate, made_size, read_network, reading
from diffsight.backbones.encoders.processing import Processor, as_bytes, described, normalised
from diffsight.backbones.opened import frozen
from diffsight.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class DinoEncoder:
    """A frozen ``Dinov2Model`` with its image processor; made by `load_dinov2`."""

    name: str
    model: Dinov2Model
    processor: Processor
    size: int
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    def prepare(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """An RGB image, resized and cut, for `vectors`."""
        return as_bytes(self.processor, image)

    @torch.no_grad()
    def vectors(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The class token of images that were prepared, after the last norm, fp32, on the model's device."""
        pixels = normalised(self.processor, batch.to(self.device)).to(self.dtype)
        return self.model(pixel_values=pixels).pooler_output.float()

    def identity(self) -> dict[str, str]:
        """Revision, weights hash, dtype, and how images reach the network; not where the files lie."""
        return {
            **self.provenance,
            "dtype": str(self.dtype).removeprefix("torch."),
            "preprocessing": described(self.processor),
        }


def load_dinov2(
    name: str | Path, *, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> DinoEncoder:
    """Load a DINOv2.

    Args:
        name: A Hub repository (``"hf:facebook/dinov2-base"``), or a local folder in transformers' format.
        device: Where to run; by default the GPU if there is one.
        dtype: ``"fp32"``, ``"bf16"`` or ``"fp16"``; by default bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        ModelError: If it cannot be reached, is no DINOv2, is not complete, or has no safetensors.
        InputError: If the device or dtype does not exist.
    """
    where = resolve_device(device)
    chosen = resolve_dtype(dtype, where)
    folder, _, revision = locate(str(name), kind="dinov2")
    provenance = {"revision": revision, "weights": content_hash(folder, kind="Dinov2Model")}
    with reading(name, folder):
        # The mask token is of training alone, and some copies leave it out.
        model = read_network(Dinov2Model, folder, chosen, spared="mask_token")
        processor = DinoProcessor.from_pretrained(folder, local_files_only=True)
        side = made_size(processor)
    patch = model.config.patch_size
    if side[0] != side[1] or side[0] % patch:
        raise ModelError(
            f"The preprocessor of {folder} makes images of {side[0]}×{side[1]} pixels, which the network cannot cut "
            f"into patches of {patch}. Give the folder the model's own preprocessor_config.json."
        )
    return DinoEncoder(
        name=str(name),
        model=frozen(model, where),
        processor=processor,
        size=side[0],
        provenance=provenance,
        device=where,
        dtype=chosen,
    )
