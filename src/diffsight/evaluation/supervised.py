"""Networks of timm that were trained on labelled images elsewhere, asked for a task's classes alone."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from diffsight.backbones.base import resolve_device
from diffsight.data.images import INTERPOLATIONS
from diffsight.errors import InputError, ModelError, NumericsError, nearest
from diffsight.evaluation.embedding import TIMM
from diffsight.evaluation.recognisers import Prepares
from diffsight.store.disk import digest
from diffsight.synthesis.preprocessing import IMAGENET, Normalised, Preprocessing, pixels, to_unit
from diffsight.synthesis.training_set import plain_name

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Squashed:
    """Both sides to ``size``, whatever the aspect was; timm's ``crop_mode`` "squash"."""

    size: int
    method: Image.Resampling

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Resize an RGB image."""
        return pixels(image.resize((self.size, self.size), self.method))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TimmNetwork:
    """A network of timm with its weights; made by `load_timm`.

    Attributes:
        name: As the user called it.
        network: Images from 0 to 1 → logits of its own classes, or features.
        preprocessing: From an image to what it takes, as timm evaluates it.
        settings: That preprocessing as JSON values.
        names: For each of its classes all that it is called; empty where that is not known.
    """

    name: str
    network: Normalised
    preprocessing: Prepares
    settings: Mapping[str, Any]
    names: tuple[tuple[str, ...], ...]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.network.mean.device

    def weights(self) -> str:
        """A hash of all its numbers."""
        tensors = (each.detach().cpu().contiguous() for each in self.network.state_dict().values())
        return digest(b"".join(digest(each.float().numpy().tobytes()).encode() for each in tensors))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SupervisedRecogniser:
    """A network's logits of a task's classes; a `Recogniser`.

    Attributes:
        timm: The network.
        class_names: The task's.
        columns: Where each of them is among the network's classes.
    """

    timm: TimmNetwork
    class_names: tuple[str, ...]
    columns: tuple[int, ...]

    @property
    def preprocessing(self) -> Prepares:
        """From an image to what it takes."""
        return self.timm.preprocessing

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.timm.device

    @property
    def label(self) -> str:
        """What has to be said beside its numbers."""
        return (
            f"supervised: {self.timm.name} was trained on labelled images of {len(self.timm.names):,} classes, asked "
            f"for {len(self.class_names)} of them; no zero-shot result"
        )

    @torch.inference_mode()
    def run(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images that were preprocessed, on the CPU.

        Raises:
            NumericsError: If one is not finite.
        """
        logits = self.timm.network(to_unit(batch.to(self.device))).float().cpu()[:, list(self.columns)]
        if not logits.isfinite().all():
            raise NumericsError(f"{self.timm.name} gives a logit that is not finite. Its weights are damaged.")
        return logits

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return {
            "network": self.timm.name,
            "weights": self.timm.weights(),
            "preprocessing": dict(self.timm.settings),
            "columns": list(self.columns),
        }


def supervised(network: TimmNetwork, class_names: Sequence[str]) -> SupervisedRecogniser:
    """Ask a network for a task's classes.

    Args:
        network: From `load_timm`, with its classes.
        class_names: Each must be one of the names of one of the network's classes (ImageNet's have several, separated
            by commas); case and what is no letter or digit do not count.

    Raises:
        InputError: If what the network's classes are called is not known, or a class has no or several counterparts.
    """
    if not network.names:
        raise InputError(
            f"What the classes of {network.name} are called is not known: its config.json has no label_names, and it "
            "is no network of ImageNet-1k. Add label_names in the order of its logits."
        )
    places: dict[str, set[int]] = {}
    for index, synonyms in enumerate(network.names):
        for name in synonyms:
            places.setdefault(plain_name(name), set()).add(index)
    columns = []
    for name in class_names:
        found = places.get(plain_name(name), set())
        if len(found) != 1:
            what = f"{len(found)} classes {name!r} (numbers {sorted(found)})" if found else f"no class {name!r}"
            close = difflib.get_close_matches(plain_name(name), places, n=3)
            raise InputError(
                f"{network.name} has {what} among its {len(network.names):,}, so it cannot answer this task."
                + (f" Nearest: {', '.join(map(repr, close))}." if close and not found else "")
                + " Call the classes by the names of its own, or measure a probe on its features with 'diffsight "
                "compare'."
            )
        columns += found
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        pair = [name for name, column in zip(class_names, columns, strict=True) if column == twice]
        raise InputError(f"{pair[0]!r} and {pair[1]!r} are the same class of {network.name} (number {twice}).")
    return SupervisedRecogniser(timm=network, class_names=tuple(class_names), columns=tuple(columns))


def load_timm(name: str | Path, *, features: bool = False, device: str | torch.device | None = None) -> TimmNetwork:
    """Load a network of timm with its weights.

    Args:
        name: As timm calls it, with or without ``timm:`` (its weights are from the Hub, or its cache); or a local
            folder in timm's format: ``config.json`` and ``model.safetensors``.
        features: Without the last layer.
        device: Where it computes; by default CUDA where there is one.

    Raises:
        InputError: If there is no such network, or no such device.
        ModelError: If timm is not installed, the weights cannot be had, or the folder is damaged.
    """
    where = resolve_device(device)
    try:
        import timm
        from timm.data.config import resolve_model_data_config
    except ImportError as error:
        raise ModelError(f"{name} needs timm. Install it: pip install 'diffsight[train]'.") from error
    short = str(name).removeprefix(TIMM)
    folder = Path(short).expanduser()
    local = folder.is_dir()
    if local and not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; diffsight reads no pickles. Save it with timm's save_for_hf.")
    if not local and (":" in short or not timm.is_model(short)):
        hint = f"There is no folder {folder}." if "/" in short else nearest(short, timm.list_models(pretrained=True))
        raise InputError(f"timm has no network {short!r}. {hint}")
    headless: dict[str, Any] = {"num_classes": 0} if features else {}
    try:
        network = timm.create_model(f"local-dir:{folder}" if local else short, pretrained=True, **headless)
    except Exception as error:  # whatever the Hub and its client raise, and torch for weights that do not fit
        cause = " ".join(str(error).split())[:300]
        advice = "Get the folder again" if local else "They come from the Hub; offline, give a folder as timm:FOLDER"
        raise ModelError(f"The weights of {short!r} could not be had: {cause}. {advice}.") from error
    prepared, settings = _preprocessing(resolve_model_data_config(network), short)
    mean, std = settings["mean"], settings["std"]
    return TimmNetwork(
        name=f"{TIMM}{short}",
        network=Normalised(network.eval().requires_grad_(False), mean, std).to(where),
        preprocessing=prepared,
        settings=settings,
        names=() if features else _class_names(network),
    )


def _preprocessing(known: Mapping[str, Any], name: str) -> tuple[Prepares, dict[str, Any]]:
    """What timm's evaluation does to an image, and the same as JSON values."""
    channels, height, width = known["input_size"]
    filter_ = known.get("interpolation", "bicubic")
    if channels != 3 or height != width or filter_ not in INTERPOLATIONS:
        raise ModelError(f"{name} takes images of {channels}×{height}×{width} ({filter_}); only RGB squares are known.")
    mean, std = known.get("mean", IMAGENET[0]), known.get("std", IMAGENET[1])
    scale = math.floor(height / known.get("crop_pct", 1.0))
    mode = known.get("crop_mode", "center")
    settings = {"size": height, "scale": scale, "filter": filter_, "mode": mode, "mean": list(mean), "std": list(std)}
    if mode == "squash" and scale == height:
        return Squashed(size=height, method=Image.Resampling[filter_.upper()]), settings
    if mode != "center":
        raise ModelError(f"{name} is evaluated with timm's crop mode {mode!r}, which is not known here.")
    prepared = Preprocessing(size=height, scale=scale, interpolation=filter_, mean=tuple(mean), std=tuple(std))
    return prepared, settings


def _class_names(network: nn.Module) -> tuple[tuple[str, ...], ...]:
    """For each logit all that its class is called."""
    known: Mapping[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    count = int(getattr(network, "num_classes", 0))
    labels, described = known.get("label_names"), known.get("label_descriptions") or {}
    if labels is None and count == 1000:
        from timm.data.imagenet_info import ImageNetInfo

        labels, described = ImageNetInfo().label_names(), ImageNetInfo().label_descriptions(as_dict=True)
    if labels is None or len(labels) != count:
        return ()
    texts = (str(described.get(label, label)) if isinstance(described, Mapping) else str(label) for label in labels)
    return tuple(tuple(part.strip() for part in re.split(r",", text) if part.strip()) for text in texts)
