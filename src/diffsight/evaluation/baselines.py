"""Other recognisers than diffusion models, on the same tasks and with the same metrics: CLIP, SigLIP, networks of timm.

A baseline is named as models are: a card (``tiny-shapes-clip``), ``hf:org/repo``, a folder, which its ``config.json``
tells apart, or ``timm:NAME`` and ``timm:FOLDER``. OpenCLIP's weights of LAION are on the Hub in transformers' CLIP
format, such as ``hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K``, and need nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffsight.backbones.encoders.loading import WITH_TEXTS, ImageEncoder, TextImageEncoder, encoder_kind, load_encoder
from diffsight.backbones.folders import read_json
from diffsight.data.prompts import PromptSet
from diffsight.errors import InputError, ModelError, NumericsError
from diffsight.evaluation.embedding import TIMM
from diffsight.evaluation.recognisers import Prepares, Recogniser
from diffsight.evaluation.supervised import load_timm, supervised
from diffsight.evaluation.task import Task
from diffsight.evaluation.trained import TrainedJob

TIMM_KIND = "timm"


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """From an image to what an encoder takes.

    Attributes:
        encoder: The encoder.
    """

    encoder: ImageEncoder

    @property
    def size(self) -> int:
        """Side of the square."""
        return self.encoder.size

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Resize and cut an RGB image."""
        return self.encoder.prepare(image)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ZeroShotRecogniser:
    """An encoder of images and texts that knows a task's classes by their prompts; made by `zero_shot`.

    Attributes:
        encoder: CLIP or SigLIP.
        class_names: The task's.
        templates: Whose prompts were averaged.
        weights: A vector of length 1 for each class.
    """

    encoder: TextImageEncoder
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    weights: Float[Tensor, "k d"]

    @property
    def preprocessing(self) -> Prepares:
        """From an image to what the encoder takes."""
        return Prepared(self.encoder)

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return self.encoder.device

    @property
    def label(self) -> str:
        """What has to be said beside its numbers."""
        return "zero-shot: classes are known by their prompts alone; the network was trained on images with captions"

    def run(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images that were preprocessed, on the CPU.

        Raises:
            NumericsError: If one is not finite.
        """
        logits = (self.encoder.scale * self.encoder.vectors(batch) @ self.weights.T).cpu()
        if not logits.isfinite().all():
            raise NumericsError(f"{self.encoder.name} gives a logit that is not finite. Try dtype fp32.")
        return logits

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return {
            "network": self.encoder.name,
            **self.encoder.identity(),
            "templates": list(self.templates),
            "classes": list(self.class_names),
        }


def zero_shot(encoder: TextImageEncoder, class_names: Sequence[str], templates: Sequence[str]) -> ZeroShotRecogniser:
    """Make a classifier of prompts: the mean of a class's text vectors, brought to length 1 (CLIP, 2103.00020 §3.1.4).

    Args:
        encoder: CLIP or SigLIP.
        class_names: What to tell apart.
        templates: Each with one ``{}`` for the class name.

    Raises:
        PromptError: If names or templates make no sense, or a prompt is too long for the encoder.
    """
    prompts = PromptSet.from_templates(class_names, templates)
    vectors = encoder.texts(prompts.prompts).unflatten(0, (len(prompts.class_names), len(templates)))
    weights = torch.nn.functional.normalize(vectors.mean(dim=1), dim=-1)
    return ZeroShotRecogniser(
        encoder=encoder, class_names=tuple(class_names), templates=tuple(templates), weights=weights
    )


def baseline_kind(model: str | Path) -> str | None:
    """``"clip"``, ``"siglip"``, ``"dinov2"`` or ``"timm"``; None for what is no baseline, as a diffusion model."""
    if str(model).startswith(TIMM):
        return TIMM_KIND
    if (kind := encoder_kind(model)) is not None:
        return kind
    folder = Path(model).expanduser()
    try:
        return TIMM_KIND if "architecture" in read_json(folder / "config.json", "") else None
    except ModelError:
        return None


def load_baseline(
    model: str | Path,
    class_names: Sequence[str],
    templates: Sequence[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Recogniser:
    """A recogniser of a task's classes.

    Args:
        model: A baseline, see above.
        class_names: The classes.
        templates: For those that read texts.
        device: Where it computes; by default the GPU if there is one.
        dtype: Of encoders; by default bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        ModelError: If it cannot be had, or is none.
        InputError: If it cannot tell these classes apart: DINOv2 has no classes, timm's networks others.
        PromptError: If a prompt is too long.
    """
    kind = baseline_kind(model)
    if kind == TIMM_KIND:
        return supervised(load_timm(model, device=device), class_names)
    if kind == "dinov2":
        raise InputError(
            f"{model} is a DINOv2, which knows neither texts nor classes: it needs labels. Measure a probe on its "
            "vectors with 'diffsight compare --baseline'."
        )
    encoder = load_encoder(model, device=device, dtype=dtype)
    if not isinstance(encoder, TextImageEncoder):
        raise InputError(f"{model} reads no texts. Of the baselines {' and '.join(WITH_TEXTS)} do.")
    return zero_shot(encoder, class_names, templates)


def make_baseline_job(
    task: Task,
    model: str | Path,
    *,
    templates: Sequence[str] | None = None,
    limit: int | None = None,
    root: Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> TrainedJob:
    """Open a task's data, and load a baseline for its classes; `evaluate_trained` runs it.

    Args:
        task: From `load_task` or `folder_task`.
        model: A baseline, see above.
        templates: Instead of the task's own.
        limit: Only the first images.
        root: Where the data set lies, if not in a standard place.
        device: Where it computes; by default the GPU if there is one.
        dtype: Of encoders; by default bf16 on a GPU that has it and fp32 elsewhere.

    Raises:
        SourceError: If the data is not there.
        InputError: If the limit is not positive, or the baseline cannot tell these classes apart.
        ModelError: If it cannot be had.
    """
    source = task.open(limit=limit, root=root)
    classes = task.names(source.class_names)
    recogniser = load_baseline(model, classes, templates or task.templates, device=device, dtype=dtype)
    return TrainedJob(
        task=task,
        source=source,
        model=recogniser,
        classes=classes,
        order=tuple(range(len(classes))),
        kind=kind_of(recogniser),
        name=str(model),
    )


def kind_of(recogniser: Recogniser) -> str:
    """What sort of network it is, for a run's manifest."""
    return "zero-shot baseline" if isinstance(recogniser, ZeroShotRecogniser) else "supervised network"
