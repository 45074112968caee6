"""Fitted heads on disk: a folder with ``head.safetensors`` and ``head.json``, from which no code is ever run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from diffsight.backbones.base import resolve_device
from diffsight.errors import InputError, ModelError
from diffsight.features.heads.columns import Shape
from diffsight.features.heads.fitted import FittedHead
from diffsight.features.heads.logistic import Logistic
from diffsight.features.heads.neighbours import Neighbours, NeighboursHead
from diffsight.features.heads.scaling import Scaling
from diffsight.features.heads.specs import HeadSpec, Linear, NetworkSpec, head_from_dict
from diffsight.store.disk import digest, put_model, to_json

FORMAT, VERSION = "diffsight-head", 1
_JSON, _WEIGHTS = "head.json", "head.safetensors"
_LARGEST_JSON = 2**26


def save_head(head: FittedHead, folder: Path) -> None:
    """Write a head to a folder: its weights as ``head.safetensors``, and all else as ``head.json``.

    Each file is whole or absent, and the second tells whether the first belongs to it.

    Raises:
        InputError: If a class is neither text nor a whole number.
        ModelError: If the folder cannot be written.
    """
    for label in head.classes:
        if type(label) not in (str, int):
            raise InputError(f"Classes are kept as text or whole numbers; {label!r} is {type(label).__name__}.")
    tensors = {f"network.{key}": value for key, value in head.network.state_dict().items()}
    for name, scaling in head.scaling.items():
        tensors |= {f"mean.{name}": scaling.mean, f"scale.{name}": scaling.scale}
    weights = safetensors.torch.save({key: value.cpu().contiguous() for key, value in tensors.items()})
    record = {
        "format": FORMAT,
        "version": VERSION,
        "head": head.spec.to_dict(),
        "columns": [[name, *shape] for name, shape in head.shapes.items()],
        "classes": list(head.classes),
        "standardized": bool(head.scaling),
        "weights": {"bytes": len(weights), "sha256": digest(weights)},
    }
    put_model(folder, {_WEIGHTS: weights, _JSON: to_json(record, "A head", indent=1).encode()})


def load_head(folder: Path, *, device: str | torch.device | None = None) -> FittedHead:
    """Read a head from a folder that `save_head` wrote. Nothing in it is executed.

    Args:
        folder: With ``head.json`` and ``head.safetensors``.
        device: Where to put it; by default CUDA where there is one.

    Raises:
        ModelError: If the folder has no head, or it is damaged or from a newer diffsight.
    """
    record = _record(folder)
    try:
        weights = _read(folder / _WEIGHTS, most=record["weights"]["bytes"])
        if record["weights"] != {"bytes": len(weights), "sha256": digest(weights)}:
            raise _damaged(folder, f"{_WEIGHTS} is not the one that {_JSON} was written with")
        tensors = safetensors.torch.load(weights)
        spec = head_from_dict(record["head"])
        shapes = {name: (c, h, w) for name, c, h, w in record["columns"]}
        classes = tuple(record["classes"])
        names = shapes if record["standardized"] else ()
        scaling = {name: Scaling(tensors.pop(f"mean.{name}"), tensors.pop(f"scale.{name}")) for name in names}
        state = {key.removeprefix("network."): value for key, value in tensors.items()}
        network = _empty(spec, shapes, len(classes), count=len(state.get("references", ())))
    except (InputError, KeyError, RuntimeError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise _damaged(folder, f"its parts do not fit together ({error})") from error
    expected = {key: (value.shape, value.dtype) for key, value in network.state_dict().items()}
    if expected != {key: (value.shape, value.dtype) for key, value in state.items()}:
        raise _damaged(folder, "the weights are not those of the head that it describes")
    network.load_state_dict(state, assign=True)
    device = resolve_device(device)
    return FittedHead(
        spec=spec,
        shapes=shapes,
        classes=classes,
        scaling={name: scale.to(device) for name, scale in scaling.items()},
        network=network.eval().requires_grad_(False).to(device),
    )


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads(_read(folder / _JSON, most=_LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise _damaged(folder, f"{_JSON} is not JSON") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ModelError(
            f"{folder / _JSON} is not the description of a head; give the folder that a head was saved to."
        )
    if record.get("version") != VERSION:
        raise ModelError(
            f"{folder} has version {record.get('version')} of the format of heads, and this diffsight reads version "
            f"{VERSION}. Use the diffsight that saved it, or a newer one."
        )
    return record


def _read(path: Path, *, most: int) -> bytes:
    try:
        size = path.stat().st_size
        if size <= most:
            return path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}. Give a folder that a head was saved to, with {_JSON} and "
            f"{_WEIGHTS}."
        ) from error
    raise _damaged(path.parent, f"{path.name} has {size} bytes, where at most {most} were expected")


def _damaged(folder: Path, reason: str) -> ModelError:
    return ModelError(f"The head in {folder} is damaged: {reason}. Restore it from a copy, or fit it again.")


def _empty(spec: HeadSpec, shapes: Mapping[str, Shape], num_classes: int, *, count: int) -> nn.Module:
    """A head's network on the meta device; ``count`` is the number of references of nearest neighbours."""
    if isinstance(spec, NetworkSpec):
        return spec.build(shapes, num_classes)
    if isinstance(spec, Logistic):
        return Linear(pool=spec.pool).build(shapes, num_classes)
    if isinstance(spec, Neighbours):
        with torch.device("meta"):
            return NeighboursHead(shapes, num_classes, settings=spec, count=count)
    raise InputError(f"{spec!r} is none of diffsight's heads.")
