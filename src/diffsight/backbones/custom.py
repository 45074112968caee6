"""A denoiser of the user's own, in plain torch, as a backbone that everything else works with."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffsight.backbones.base import Condition, Layer
from diffsight.backbones.folders import one_line
from diffsight.backbones.layers import as_map
from diffsight.backbones.models.classes import class_id, classes_hash
from diffsight.backbones.opened import frozen
from diffsight.data.images import ImageTransform
from diffsight.diffusion.prediction import Prediction, Space
from diffsight.diffusion.schedule import Schedule
from diffsight.diffusion.transfer import send
from diffsight.errors import InputError, ModelError

_TOGETHER = 64  # Names that are encoded at once.
Change = Callable[[Tensor], Tensor]
Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Custom:
    """The backbone of a network of one's own; made by `wrap`, which says what its parts are."""

    name: str
    network: nn.Module
    schedule: Schedule
    prediction: Space
    transform: ImageTransform
    class_names: tuple[str, ...] | None
    latent_shape: tuple[int, int, int]
    layers: tuple[Layer, ...]
    tensors_of: Encode
    null: Mapping[str, Tensor] | None
    to_latent: Change
    to_image: Change
    provenance: dict[str, str]
    device: torch.device
    dtype: torch.dtype

    @property
    def learned_variance(self) -> bool:
        """False: the network gives the mean alone."""
        return False

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c lh lw"]:
        """Map images in [-1, 1] to ``x0``, fp32: to what ``encode`` makes of them, or themselves.

        Raises:
            ModelError: If it makes no tensor of them.
        """
        latent = self.to_latent(images.to(self.device, torch.float32))
        if not isinstance(latent, Tensor):
            raise ModelError(f"encode must give a tensor, such as the mean of an autoencoder; got {_kind(latent)}.")
        return latent.float()

    @torch.no_grad()
    def decode(self, x0: Float[Tensor, "b c lh lw"]) -> Float[Tensor, "b 3 h w"]:
        """Map ``x0`` back to images in [-1, 1], fp32."""
        return self.to_image(x0.to(self.device, torch.float32)).float().clamp(-1, 1)

    @torch.no_grad()
    def condition(self, names: Sequence[str]) -> Condition:
        """Look classes up by name or by id written as text, or have texts encoded.

        Raises:
            PromptError: If the model does not know a class.
            ModelError: If the user's function gives something else than one row for each name.
        """
        known = self.class_names
        said = list(names) if known is None else [known[class_id(name, known, self.name)] for name in names]
        groups = [self._encoded(said[i : i + _TOGETHER]) for i in range(0, len(said), _TOGETHER)]
        if not groups:
            like = self.null or (self._encoded(known[:1]) if known else {})
            groups = [{key: value[:0] for key, value in like.items()}]
        tensors = {key: torch.cat([group[key] for group in groups]) for key in groups[0]}
        return Condition(names=tuple(names), tensors=tensors, null=self.null or {})

    def predict(self, x_t: Float[Tensor, "b c lh lw"], index: Int[Tensor, " b"], condition: Condition) -> Prediction:
        """Run the network on ``x_t`` in its own dtype; the prediction's views are in fp32.

        Raises:
            ModelError: If it gives no tensor of the input's shape, or a null condition is needed that nobody gave.
        """
        if self.class_names and not condition.tensors:
            raise ModelError(f"{self.name} has no null condition, which this needs. Give one: wrap(…, null=…).")
        times = self.schedule.timesteps[index.cpu()]
        timestep = send(times.long() if self.schedule.kind == "ddpm" else times.float(), x_t.device)
        output = self.network(x_t.to(self.dtype), timestep, **condition.tensors)
        output = getattr(output, "sample", output)
        if not isinstance(output, Tensor) or output.shape != x_t.shape:
            found = tuple(output.shape) if isinstance(output, Tensor) else _kind(output)
            raise ModelError(
                f"{self.name} gave {found} for an input of {tuple(x_t.shape)}; it must return one tensor of that "
                "shape, or an object that has it as .sample. A variance beside it has to be cut off."
            )
        alpha, sigma = self.schedule.at(index, like=x_t)
        return Prediction(output=output.float(), kind=self.prediction, x_t=x_t, alpha=alpha, sigma=sigma)

    def __sklearn_clone__(self) -> Self:
        # A cloned estimator shares the frozen model instead of copying gigabytes.
        return self

    def identity(self) -> dict[str, str]:
        """Hashes of weights, classes and null condition, dtype, schedule and transform; of code its name."""
        return {
            **self.provenance,
            "classes": "any text" if self.class_names is None else classes_hash(self.class_names),
            "null": "none" if self.null is None else _hash(self.null),
            "dtype": str(self.dtype).removeprefix("torch."),
            "prediction": self.prediction,
            "schedule": self.schedule.fingerprint(),
            "transform": str(self.transform.to_dict()),
        }

    def _encoded(self, names: Sequence[str]) -> dict[str, Tensor]:
        tensors: object = self.tensors_of(names)
        if not isinstance(tensors, Mapping):
            raise ModelError(f"condition must give a dictionary of tensors by argument name; got {_kind(tensors)}.")
        return _on(tensors, self.device, self.dtype, rows=len(names))


@torch.no_grad()
def wrap(
    network: nn.Module,
    *,
    schedule: Schedule,
    prediction: Space,
    transform: ImageTransform,
    class_names: Sequence[str] | None = None,
    condition: Encode | None = None,
    null: int | Mapping[str, Tensor] | None = None,
    encode: Change | None = None,
    decode: Change | None = None,
    name: str = "custom",
    others: Sequence[nn.Module] = (),
) -> Custom:
    """Make a backbone of a network of one's own.

    The network is called as ``network(x_t, timestep, **tensors)``: ``x_t`` (b, c, h, w) in its dtype, the schedule's
    timestep of each row (b,), whole numbers for DDPM's levels and fp32 for others. It gives a tensor of the shape of
    ``x_t``, or an object that has it as ``.sample``. It and ``others`` are frozen where they are and not copied.

    Args:
        network: The denoiser.
        schedule: Its noise levels, from `diffsight.diffusion.schedule`.
        prediction: What it predicts: ``"eps"``, ``"x0"``, ``"v"`` or ``"flow"``.
        transform: From a picture to its input.
        class_names: Of a class-conditional network, in the order of their ids, without the null class.
        condition: From names to the tensors that the network is fed, by argument name, one row for each name. Without
            it classes are fed as ``class_labels=ids``, and a network without classes is fed nothing.
        null: The id of the null class, or tensors of one row. By default what ``condition`` makes of the empty text,
            and none for classes; scoring works without, guidance and features do not.
        encode: From images in [-1, 1] (b, 3, h, w) to what is denoised; without it the images themselves.
        decode: The way back; needed with ``encode``.
        name: What to call it.
        others: Networks that ``encode``, ``decode`` and ``condition`` use: their weights change numbers, too.

    Returns:
        A backbone for all estimators. Its layers are children of the network and items of its lists that give a map or
        tokens; every other module is found by its path.

    Raises:
        InputError: If the arguments contradict each other.
        ModelError: If the network cannot be run as said here, which is tried with one image, under the last class and
            under no class; or if ``encode`` is random.
    """
    if isinstance(class_names, str):
        raise InputError(f"class_names is a list of names; got the text {class_names!r}.")
    if (encode is None) != (decode is None):
        raise InputError("encode and decode belong together: give both, or none for a network on pixels.")
    if isinstance(null, int) and (condition is not None or not class_names):
        raise InputError("A null class by its id is for class_names alone. With condition, give tensors of one row.")
    if null is not None and condition is None and not isinstance(null, int):
        raise InputError("Tensors as the null condition need 'condition', which says what the network is fed.")
    state = (*network.parameters(), *network.buffers())
    first = next((each for each in state if each.is_floating_point()), torch.zeros(()))
    for other in others:
        other.eval().requires_grad_(False)
    names = () if class_names is None and condition is None else None if class_names is None else tuple(class_names)
    ids = {each: id for id, each in enumerate(names or ())}
    if names and len(ids) != len(names):
        raise InputError("Two classes have the same name.")
    weights = {f"{i}.{k}": v for i, each in enumerate((network, *others)) for k, v in each.state_dict().items()}
    backbone = Custom(
        name=name,
        network=frozen(network, first.device),
        schedule=schedule,
        prediction=prediction,
        transform=transform,
        class_names=names,
        latent_shape=(0, 0, 0),
        layers=(),
        tensors_of=condition or (lambda said: {"class_labels": torch.tensor([ids[each] for each in said])}),
        null=None,
        to_latent=encode or (lambda images: images),
        to_image=decode or (lambda x0: x0),
        provenance={"revision": "local", "network": type(network).__qualname__, "weights": _hash(weights)},
        device=first.device,
        dtype=first.dtype,
    )
    if isinstance(null, int):
        null = {"class_labels": torch.tensor([null])}
    if null is None and names is None:
        null = backbone._encoded([""])
    if null is not None:
        backbone = replace(backbone, null=_on(null, first.device, first.dtype, rows=1))
    latent, again = (backbone.encode(torch.zeros(1, 3, *[transform.output_size] * 2)) for _ in range(2))
    if not torch.equal(latent, again):
        raise ModelError("encode gives something else each time; of an autoencoder's distribution take the mean.")
    shape = tuple(latent.shape[1:])
    if len(shape) != 3:
        raise ModelError(f"encode gave something of shape {shape} for one image; it must be (channels, height, width).")
    return replace(backbone, latent_shape=shape, layers=_layers(replace(backbone, latent_shape=shape)))


def _layers(backbone: Custom) -> tuple[Layer, ...]:
    paths = dict(_places(backbone.network))
    found: dict[str, None] = {}

    def keep(module: nn.Module, args: object, output: object) -> None:
        one = output[0] if isinstance(output, tuple) and output else output
        if isinstance(one, Tensor) and one.ndim in (3, 4):
            with suppress(InputError):
                as_map(one, backbone.latent_shape[1:])
                found.setdefault(paths[module])

    handles = [module.register_forward_hook(keep) for module in paths]
    # Ids go up to the last class, and the null class is mostly beyond.
    some = [backbone.condition(backbone.class_names[-1:])] if backbone.class_names else []
    if backbone.null is not None or not some:
        some.append(backbone.condition(()).nulls(1))
    x_t = torch.linspace(-1, 1, math.prod(backbone.latent_shape), device=backbone.device)
    given = x_t.clone().view(1, *backbone.latent_shape)
    try:
        for condition in some:
            backbone.predict(given, torch.tensor([0]), condition)
    except ModelError:
        raise
    except Exception as error:  # Whatever a network of anybody's raises.
        raise ModelError(
            f"{backbone.name} could not be run on one image of {backbone.latent_shape}: {one_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not torch.equal(given.flatten(), x_t):
        raise ModelError(f"{backbone.name} changes its input in place, which is needed afterwards. Let it copy it.")
    return tuple(Layer(name=path, path=path, number=number) for number, path in enumerate(found, start=1))


def _places(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for path, child in network.named_children():
        lists = isinstance(child, nn.ModuleList | nn.ModuleDict)
        yield from ((item, f"{path}.{key}") for key, item in child.named_children()) if lists else ((child, path),)


def _on(tensors: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype, *, rows: int) -> dict[str, Tensor]:
    for key, value in tensors.items():
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if not isinstance(found, tuple) or found[:1] != (rows,):
            raise ModelError(f"The condition {key!r} must be a tensor of {rows} rows, one for each name; got {found}.")
    return {k: v.to(device, dtype if v.is_floating_point() else v.dtype) for k, v in tensors.items()}


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and content, whatever the order."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
