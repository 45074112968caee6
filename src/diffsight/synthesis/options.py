"""How a network is trained, as one value: our recipe, and that of the paper."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil, cos, pi
from typing import Any, Literal, get_args

from diffsight.errors import InputError, nearest
from diffsight.synthesis.preprocessing import NORMALISATIONS

Augment = Literal["auto", "shift", "crop", "rotate", "none"]
Schedule = Literal["cosine", "cosine-epoch"]
Select = Literal["best", "last"]
Amp = Literal["auto", "no", "bf16", "fp16"]
_CHOICES = {
    "stem": ("auto", "small", "standard"),
    "augment": get_args(Augment),
    "normalize": NORMALISATIONS,
    "schedule": get_args(Schedule),
    "select": get_args(Select),
    "amp": get_args(Amp),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """All that decides what is learnt from given images. The default is ours.

    Attributes:
        network: A name in `networks.NETWORKS`, or one of timm's.
        size: Side of the images that the network takes; None is the shorter side of the first image, at most 224.
        resize_to: To what the shorter side is resized before the square of ``size`` is cut; None is ``size``.
        stem: ``"small"``, ``"standard"``, or ``"auto"``: small for images of at most 64 pixels.
        pretrained: Start from timm's weights, which are of real images; they are downloaded.
        normalize: ``"imagenet"`` mean and deviation, ``"none"``, or the ``"own"`` ones of a pre-trained network.
        augment: ``"shift"`` by up to an eighth of the side; ``"crop"``, a square of a random part of the image, as
            torchvision's RandomResizedCrop; ``"rotate"`` by up to 90 degrees, then a random square of ``size``;
            ``"none"``; or ``"auto"``: shift for images of at most 64 pixels, else crop.
        crop_scale: The smallest part of the area that ``"crop"`` takes.
        flip: Mirror every second image: not for digits and text.
        epochs: Passes over the images.
        batch_size: Images of a step, of all processes together; the images of an epoch are shared out evenly.
        learning_rate: Of AdamW, at its highest.
        weight_decay: Of AdamW.
        decay_all: Decay biases and the parameters of norms, too.
        warmup: The share of all steps in which the rate rises.
        schedule: Down to 0 by a cosine, step by step or epoch by epoch.
        clip: The largest norm of a gradient, or None.
        label_smoothing: The share of the target that is spread over all classes.
        mixup: Images are mixed in pairs with weights of Beta(mixup, mixup); 0 is never.
        ema_decay: The weights that are kept are a moving average with this decay, or None: those of the last step. In
            the first steps the decay is less, or the average would remember the start.
        norm_momentum: How fast the statistics of BatchNorm follow the batches, or None: as the network has it.
            torchvision's MobileNets have 0.01, with which they are recognisers only after many hundred steps.
        amp: Precision of the network's arithmetic: ``"no"`` is fp32, ``"auto"`` bf16 on a GPU that has it.
        validation_share: Of the images of each class that are held out; 0 holds out none.
        select: Keep the ``"best"`` epoch on the held-out images, or the ``"last"``.
        patience: End after so many epochs in which the held-out images are recognised no better, or None.

    Raises:
        InputError: If a setting makes no sense.
    """

    network: str = "resnet-18"
    size: int | None = None
    resize_to: int | None = None
    stem: str = "auto"
    pretrained: bool = False
    normalize: str = "imagenet"
    augment: str = "auto"
    crop_scale: float = 0.35
    flip: bool = True
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    decay_all: bool = False
    warmup: float = 0.05
    schedule: str = "cosine"
    clip: float | None = 1.0
    label_smoothing: float = 0.1
    mixup: float = 0.0
    ema_decay: float | None = 0.998
    norm_momentum: float | None = 0.1
    amp: str = "auto"
    validation_share: float = 0.1
    select: str = "best"
    patience: int | None = 10

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(f"Unknown {name} {getattr(self, name)!r}. {nearest(str(getattr(self, name)), known)}")
        for name, low, high in (
            ("size", 4, 4096),
            ("resize_to", 4, 8192),
            ("epochs", 1, 100_000),
            ("batch_size", 2, 1_000_000),
            ("patience", 1, 100_000),
        ):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and low <= value <= high):
                raise InputError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")
        for name, fits, range_ in (
            ("learning_rate", self.learning_rate > 0, "over 0"),
            ("weight_decay", self.weight_decay >= 0, "at least 0"),
            ("warmup", 0 <= self.warmup < 1, "from 0 to under 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to under 1"),
            ("mixup", self.mixup >= 0, "at least 0"),
            ("validation_share", 0 <= self.validation_share < 1, "from 0 to under 1"),
            ("crop_scale", 0 < self.crop_scale <= 1, "over 0, at most 1"),
            ("ema_decay", self.ema_decay is None or 0 < self.ema_decay < 1, "between 0 and 1"),
            ("norm_momentum", self.norm_momentum is None or 0 < self.norm_momentum <= 1, "over 0, at most 1"),
            ("clip", self.clip is None or self.clip > 0, "over 0"),
        ):
            if not fits:
                raise InputError(f"{name} must be {range_}; got {getattr(self, name)!r}.")

    @property
    def validates(self) -> bool:
        """Whether something is decided by held-out images: the epoch that is kept, or the end."""
        return self.select == "best" or self.patience is not None

    def steps(self, images: int, processes: int = 1) -> int:
        """Steps of an epoch; none has a single image in a process, of which BatchNorm has no variance."""
        return max(1, min(ceil(images / self.batch_size), images // (2 * processes)))

    def rate(self, epoch: int, step: int, steps: int) -> float:
        """The learning rate of a step of an epoch that has so many."""
        if self.schedule == "cosine-epoch":  # torch's CosineAnnealingLR with T_max = epochs, one call for each epoch
            return self.learning_rate * (1 + cos(pi * epoch / self.epochs)) / 2
        done, total = epoch * steps + step, self.epochs * steps
        rising = round(self.warmup * total)
        if done < rising:
            return self.learning_rate * (done + 1) / rising
        return self.learning_rate * (1 + cos(pi * (done - rising) / (total - rising))) / 2

    def to_dict(self) -> dict[str, Any]:
        """All settings, as JSON can hold them."""
        return asdict(self)


# Shipard et al., arXiv:2302.03298, from their code (train_network.py): AdamW with a weight decay of 0.9 on all that is
# learnt, no warm-up, the networks as torchvision has them, a fixed number of epochs. Theirs kept the epoch that was
# best on the real test images; that is a choice by real images, so here it is the last. They tested without eval();
# see `TrainedClassifier.adapt_batch_norm`.
_SHIPARD = TrainSettings(
    network="resnet-50",
    size=32,
    stem="standard",
    augment="crop",
    crop_scale=0.08,
    epochs=50,
    batch_size=64,
    learning_rate=1e-4,
    weight_decay=0.9,
    decay_all=True,
    warmup=0.0,
    schedule="cosine-epoch",
    clip=None,
    label_smoothing=0.0,
    ema_decay=None,
    norm_momentum=None,
    amp="no",
    validation_share=0.0,
    select="last",
    patience=None,
)
PRESETS: Mapping[str, TrainSettings] = {
    "shipard2023": _SHIPARD,
    "shipard2023/eurosat": replace(_SHIPARD, size=224, resize_to=256, augment="rotate", normalize="none"),
}


def find_settings(preset: str | None, *, network: str | None = None) -> TrainSettings:
    """A paper's settings by their name in `PRESETS`, ours for None, with another network if one is given.

    Raises:
        InputError: If there is no such preset.
    """
    if preset is not None and preset not in PRESETS:
        raise InputError(f"Unknown preset of training {preset!r}. {nearest(preset, PRESETS)}")
    settings = TrainSettings() if preset is None else PRESETS[preset]
    return settings if network is None else replace(settings, network=network)
