"""Ordinary networks by name: those of the paper, some small ones, and all that timm knows; with stems for small images.

The paper (Shipard et al., arXiv:2302.03298) trains torchvision's MobileNetV3-small, ResNet-50 and -101, ConvNeXt-S and
-B, and two ViTs of its own sizes, from scratch. The usual stem of these networks divides the side of an image by 4 to
16 before it learns anything: right for 224 pixels, and most of the picture for 32.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffsight.errors import InputError, ModelError, nearest
from diffsight.synthesis.randomness import seeded

SMALL = 64
Stem = Literal["small", "standard"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A network of torchvision under a clear name.

    Attributes:
        family: ``"mobilenet"``, ``"resnet"``, ``"convnext"`` or ``"vit"``.
        make: Its function in ``torchvision.models``; of a ViT, width, heads and width of the MLP.
        paper: Whether it is one of the paper's seven.
    """

    family: str
    make: str | tuple[int, int, int]
    paper: bool = False


NETWORKS: Mapping[str, Known] = {
    "mobilenetv3-small": Known(family="mobilenet", make="mobilenet_v3_small", paper=True),
    "mobilenetv3-large": Known(family="mobilenet", make="mobilenet_v3_large"),
    "resnet-18": Known(family="resnet", make="resnet18"),
    "resnet-34": Known(family="resnet", make="resnet34"),
    "resnet-50": Known(family="resnet", make="resnet50", paper=True),
    "resnet-101": Known(family="resnet", make="resnet101", paper=True),
    "convnext-t": Known(family="convnext", make="convnext_tiny"),
    "convnext-s": Known(family="convnext", make="convnext_small", paper=True),
    "convnext-b": Known(family="convnext", make="convnext_base", paper=True),
    "vit-ti": Known(family="vit", make=(192, 3, 768)),
    "vit-s": Known(family="vit", make=(448, 7, 1344), paper=True),  # as the paper's code has it: no usual ViT-S
    "vit-b": Known(family="vit", make=(768, 12, 3072), paper=True),
}
# By the module in which timm defines a network.
_TIMM_FAMILIES = {name: name for name in ("resnet", "convnext")}
_TIMM_FAMILIES |= {"vision_transformer": "vit", "deit": "vit", "mobilenetv3": "mobilenet", "efficientnet": "mobilenet"}
# What the stem for small images is, by family.
STEMS = {
    "resnet": "3×3 convolution of stride 1, no max-pooling",
    "convnext": "patches of {patch}",
    "mobilenet": "first convolution of stride 1",
    "vit": "patches of {patch}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """A network that can be built: all that its shape depends on.

    Attributes:
        name: A name in `NETWORKS`, or one of timm's.
        num_classes: Of the last layer.
        size: Side of its images, in pixels.
        stem: ``"small"`` for small images, or ``"standard"`` as published.
        patch: Side of the patches of a ViT or a small ConvNeXt stem; None where the network has its own.
        pretrained: Whether it starts from weights that were trained on real images.
    """

    name: str
    num_classes: int
    size: int
    stem: Stem
    patch: int | None = None
    pretrained: bool = False

    def to_dict(self) -> dict[str, Any]:
        """For a card: the settings, and what the stem is in words."""
        family = _family(self.name) if self.stem == "small" else None
        return asdict(self) | {"first_layers": STEMS[family].format(patch=self.patch) if family else "as published"}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "NetworkPlan":
        """Undo `to_dict`."""
        return cls(**{key: value for key, value in settings.items() if key != "first_layers"})


def plan_network(
    name: str, num_classes: int, size: int, *, stem: str = "auto", pretrained: bool = False
) -> NetworkPlan:
    """Say how a network is to be built.

    Args:
        name: A name in `NETWORKS`, or one of timm's.
        num_classes: At least 2.
        size: Side of its images, in pixels.
        stem: ``"small"``, ``"standard"``, or ``"auto"``: small for images of at most 64 pixels, where the family has
            such a stem and starts from scratch.
        pretrained: Start from timm's weights, which were trained on real images and have to be downloaded.

    Raises:
        InputError: If there is no such network, or it cannot be had like this.
        ModelError: If timm is needed and not installed.
    """
    family = _checked(name)
    if num_classes < 2:
        raise InputError(f"A classifier needs at least 2 classes; got {num_classes}.")
    if stem not in ("auto", "small", "standard"):
        raise InputError(f"Unknown stem {stem!r}. {nearest(stem, ('auto', 'small', 'standard'))}")
    if pretrained and name in NETWORKS:
        raise InputError(
            f"{name!r} is trained from scratch, as in the paper. Weights that were trained on real images come under "
            "timm's names, such as 'resnet50.a1_in1k'."
        )
    if stem == "small" and family is None:
        raise InputError(f"No stem for small images is known for {name!r}. Leave it 'standard'.")
    small = stem == "small" or (stem == "auto" and family is not None and size <= SMALL and not pretrained)
    patch = None
    if family == "vit" and small:
        if size % 2:
            raise InputError(f"Images of {size} pixels cannot be cut into patches for {name!r}. Use an even size.")
        patch = next((side for side in (8, 4) if size % side == 0 and size // side >= 7), 2)
    elif family == "vit" and name in NETWORKS:
        patch = 16
        if size % patch:
            raise InputError(f"{name!r} cuts images into patches of 16, and {size} is no multiple. Use another size.")
    elif family == "convnext" and small:
        patch = 1 if size <= 16 else 2
    return NetworkPlan(
        name=name,
        num_classes=num_classes,
        size=size,
        stem="small" if small else "standard",
        patch=patch,
        pretrained=pretrained,
    )


def build_network(plan: NetworkPlan, *, seed: int = 0, fetch: bool = True) -> nn.Module:
    """Build a network on the CPU, and try it on two images.

    Args:
        plan: From `plan_network`.
        seed: Of the initial weights; the global random state is left alone.
        fetch: Get the weights of a pre-trained network; without, it is only built, to be given others.

    Raises:
        InputError: If it cannot take images of this size.
        ModelError: If pre-trained weights cannot be had.
    """
    with seeded(torch.device("cpu"), "weights", seed):
        network = _of_torchvision(plan, NETWORKS[plan.name]) if plan.name in NETWORKS else _of_timm(plan, fetch)
        try:
            with torch.no_grad():
                logits = network.eval()(torch.zeros(2, 3, plan.size, plan.size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"{plan.name!r} cannot take images of {plan.size}×{plan.size} pixels: {error}. Give another size."
            ) from error
    if not isinstance(logits, Tensor) or logits.shape != (2, plan.num_classes):
        raise InputError(f"{plan.name!r} is no classifier: it gives {type(logits).__name__}, not a row of logits.")
    return network.train()


def normalisation_of(network: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation of the images that a network was pre-trained on, if timm knows them."""
    known = getattr(network, "pretrained_cfg", None) or {}
    return (tuple(known["mean"]), tuple(known["std"])) if "mean" in known and "std" in known else None


def _timm() -> Any:  # noqa: ANN401
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"Networks other than {', '.join(NETWORKS)} need timm. Install it: pip install 'diffsight[train]'."
        ) from error
    return timm


def _checked(name: str) -> str | None:
    """The family of a network, or None for one without a known stem.

    Raises:
        InputError: If there is no such network.
    """
    if name not in NETWORKS:
        timm = _timm()
        if name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) or not timm.is_model(name):
            close = difflib.get_close_matches(name.lower(), timm.list_models(), n=2, cutoff=0.6)
            raise InputError(f"Unknown network {name!r}. {nearest(name, [*NETWORKS, *close])} All of timm's work, too.")
    return _family(name)


def _family(name: str) -> str | None:
    if name in NETWORKS:
        return NETWORKS[name].family
    return _TIMM_FAMILIES.get(_timm().model_entrypoint(name.partition(".")[0]).__module__.rpartition(".")[2])


def _of_torchvision(plan: NetworkPlan, known: Known) -> nn.Module:
    import torchvision.models as models

    if isinstance(known.make, tuple):
        width, heads, hidden = known.make
        return models.VisionTransformer(
            image_size=plan.size,
            patch_size=plan.patch or 16,
            num_layers=12,
            num_heads=heads,
            hidden_dim=width,
            mlp_dim=hidden,
            num_classes=plan.num_classes,
        )
    make: Callable[..., Any] = getattr(models, known.make)
    network = make(weights=None, num_classes=plan.num_classes)
    if plan.stem == "standard":
        return network
    if known.family == "resnet":
        _unpooled(network)
    elif known.family == "mobilenet":
        network.features[0][0].stride = (1, 1)
    else:
        side = plan.patch or 2
        network.features[0][0] = first = nn.Conv2d(3, network.features[0][0].out_channels, side, stride=side)
        nn.init.trunc_normal_(first.weight, std=0.02)  # as torchvision does to all layers of a ConvNeXt
        first.bias = nn.Parameter(torch.zeros(first.out_channels))
    return network


def _of_timm(plan: NetworkPlan, fetch: bool) -> nn.Module:
    family, small = _family(plan.name), plan.stem == "small"
    options: dict[str, Any] = {"img_size": plan.size} if family == "vit" else {}
    if plan.patch is not None:
        options["patch_size"] = plan.patch
    try:
        network = _timm().create_model(
            plan.name, pretrained=plan.pretrained and fetch, num_classes=plan.num_classes, in_chans=3, **options
        )
    except (OSError, RuntimeError, TypeError, AssertionError, ValueError) as error:
        cause = " ".join(str(error).split())
        if plan.pretrained and fetch:
            raise ModelError(
                f"The weights of {plan.name!r} could not be had: {cause}. They come from the Hub."
            ) from error
        raise InputError(f"{plan.name!r} cannot be built for images of {plan.size} pixels: {cause}.") from error
    if small and family == "resnet":
        _unpooled(network)
    elif small and family == "mobilenet":
        network.conv_stem.stride = (1, 1)
    return network


def _unpooled(network: Any) -> None:  # noqa: ANN401
    """The stem of ResNets for CIFAR: a 3×3 convolution of stride 1, and no pooling."""
    if isinstance(network.conv1, nn.Conv2d):
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    else:  # ResNet-D and its like begin with three small convolutions.
        network.conv1[0].stride = (1, 1)
    network.maxpool = nn.Identity()
