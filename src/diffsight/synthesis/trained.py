"""`TrainedClassifier`: an ordinary network that was trained, with all that is needed to use it and to judge it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffsight.backbones.base import resolve_device
from diffsight.backbones.cards import honesty
from diffsight.data.images import images_from
from diffsight.errors import InputError, ModelError, NumericsError
from diffsight.store.disk import digest, put_model, to_json
from diffsight.synthesis.networks import NetworkPlan, build_network
from diffsight.synthesis.preprocessing import BATCH_NORMS, Normalised, Preprocessing, to_unit
from diffsight.synthesis.protocol import PROTOCOLS, generators, user_word

FORMAT, VERSION = "diffsight-classifier", 1
CARD, WEIGHTS = "model.json", "model.safetensors"
_LARGEST_CARD = 2**26
BATCH = 256


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TrainedClassifier:
    """A network that says which class an image shows; always in evaluation mode.

    Attributes:
        plan: Which network.
        network: The same, built: images from 0 to 1 → logits.
        preprocessing: From an image to what it takes.
        class_names: What each logit stands for.
        protocol: What it learnt from; a name in `PROTOCOLS`.
        adapted: To how many unlabelled images its BatchNorm was adapted; 0 for none.
        notes: Data, settings and results of the training.

    References:
        Shipard et al., Diversity is Definitely Needed, https://arxiv.org/abs/2302.03298
    """

    plan: NetworkPlan
    network: Normalised
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    protocol: str
    adapted: int = 0
    notes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)

    @property
    def classes_(self) -> np.ndarray:
        """The class names, as scikit-learn's classifiers have them."""
        return np.array(self.class_names)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.network.parameters()).device

    @property
    def label(self) -> str:
        """What has to be said beside its numbers."""
        parts = [f"{self.protocol}: {PROTOCOLS.get(self.protocol, 'an unknown protocol')}"]
        if word := user_word(self.notes.get("data", {})):
            parts.append(word)
        drawn_by = generators(self.notes.get("data", {}))
        parts += [note.rstrip(".") for name in drawn_by if (note := honesty(name)) is not None]
        if self.plan.pretrained:
            parts.append("the network was pre-trained on real images")
        if self.adapted:
            parts.append(f"transductive: BatchNorm has seen {self.adapted:,} unlabelled images")
        return "; ".join(parts)

    def predict(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """The name of the most likely class of each image; of exactly equal ones the first.

        Args:
            X: Images in any form that `diffsight.data.images.images_from` takes.

        Raises:
            ImageError: If one cannot be read.
        """
        return self.classes_[self.logits(X).argmax(dim=1).numpy()]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Probability of each class; rows sum to 1. Raises as `predict`."""
        return self.logits(X).softmax(dim=1).numpy()

    def logits(self, X: Any, *, batch_size: int = BATCH) -> Float[Tensor, "n k"]:  # noqa: ANN401
        """Logits of each image, on the CPU. Raises as `predict`."""
        return in_batches(self.run, self.preprocessing, X, batch_size)

    @torch.inference_mode()
    def run(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images that went through ``preprocessing``, on the CPU.

        Raises:
            NumericsError: If one is not finite.
        """
        self.network.eval()  # whatever the caller did to it
        logits = self.network(to_unit(batch.to(self.device))).float().cpu()
        if not logits.isfinite().all():
            raise NumericsError(f"{self.plan.name} gives a logit that is not finite. Its weights are damaged.")
        return logits

    def adapt_batch_norm(self, X: Any, *, batch_size: int = BATCH) -> "TrainedClassifier":  # noqa: ANN401
        """A copy whose BatchNorm has the statistics of other images, without their labels (AdaBN, arXiv:1603.04779).

        The paper's code tests without ``eval()``, and so with the statistics of the test images in each batch. This is
        the sound form: all images count, and the result is labelled transductive, for it has seen them.

        Args:
            X: Images as they are met in use.
            batch_size: Images whose statistics are taken at once and then averaged; part of the method. A rest of
                fewer than half as many is left out, unless it is all there is.

        Raises:
            InputError: If the network has no BatchNorm, or there are fewer than two images.
            ImageError: If an image cannot be read.
        """
        layers = {name for name, module in self.network.named_modules() if isinstance(module, BATCH_NORMS)}
        if not layers:
            raise InputError(f"{self.plan.name} has no BatchNorm that could be adapted.")
        images = images_from(X)
        if len(images) < 2:
            raise InputError(f"BatchNorm is adapted to many images; got {len(images)}.")
        copy = self._rebuilt(self.device)
        modules = dict(copy.named_modules())
        for name in layers:
            norm: Any = modules[name]
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
            norm.train()
        seen = 0
        for start in range(0, len(images), batch_size):
            batch = range(start, min(start + batch_size, len(images)))
            if start and len(batch) < max(2, batch_size // 2):
                break
            with torch.inference_mode():
                copy(to_unit(torch.stack([self.preprocessing(images[i]) for i in batch]).to(self.device)))
            seen += len(batch)
        return replace(self, network=copy, adapted=seen)

    def _rebuilt(self, device: torch.device) -> Normalised:
        network = Normalised(build_network(self.plan, fetch=False), self.preprocessing.mean, self.preprocessing.std)
        network.load_state_dict({key: value.clone() for key, value in self.network.state_dict().items()}, assign=True)
        return network.to(device).eval().requires_grad_(False)

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return {
            "network": self.plan.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "classes": list(self.class_names),
            "protocol": self.protocol,
            "adapted": self.adapted,
            "weights": digest(self._weights()),
        }

    def save(self, folder: Path | str) -> None:
        """Write it to a folder: ``model.safetensors``, and all else as ``model.json``; the second tells if both fit.

        Raises:
            ModelError: If the folder cannot be written.
        """
        folder, weights = Path(folder), self._weights()
        record = {
            "format": FORMAT,
            "version": VERSION,
            **self.identity(),
            "label": self.label,
            "weights": {"bytes": len(weights), "sha256": digest(weights)},
            "notes": dict(self.notes),
            "versions": {name: version(name) for name in ("diffsight", "torch", "torchvision")},
        }
        put_model(folder, {WEIGHTS: weights, CARD: to_json(record, "A classifier", indent=1).encode()})

    @classmethod
    def load(cls, folder: Path | str, *, device: str | torch.device | None = None) -> "TrainedClassifier":
        """Read what `save` wrote. Nothing in the folder is executed, and nothing is downloaded.

        Args:
            folder: With ``model.json`` and ``model.safetensors``.
            device: Where to put it; by default CUDA where there is one.

        Raises:
            InputError: If the device does not exist here.
            ModelError: If nothing is there, it is damaged, or from a newer diffsight.
        """
        folder, place = Path(folder), resolve_device(device)
        record = _record(folder)
        try:
            weights = (folder / WEIGHTS).read_bytes()
            if record["weights"] != {"bytes": len(weights), "sha256": digest(weights)}:
                raise ValueError(f"{WEIGHTS} is not the file that {CARD} was written with")
            plan = NetworkPlan.from_dict(record["network"])
            preprocessing = Preprocessing.from_dict(record["preprocessing"])
            network = Normalised(build_network(plan, fetch=False), preprocessing.mean, preprocessing.std)
            network.load_state_dict(safetensors.torch.load(weights), assign=True)
            return cls(
                plan=plan,
                network=network.to(place),
                preprocessing=preprocessing,
                class_names=tuple(record["classes"]),
                protocol=record["protocol"],
                adapted=record["adapted"],
                notes=record["notes"],
            )
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"The classifier in {folder} is damaged ({error}). Restore it from a copy, or train it again."
            ) from error

    def _weights(self) -> bytes:
        state = self.network.state_dict()
        return safetensors.torch.save({key: value.cpu().contiguous().clone() for key, value in state.items()})


def in_batches(
    run: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b k"]],
    preprocessing: Preprocessing,
    X: Any,  # noqa: ANN401
    batch_size: int,
) -> Float[Tensor, "n k"]:
    """Prepare images of any form and run them, some at a time.

    Args:
        run: From prepared images to logits.
        preprocessing: What prepares them.
        X: Images in any form that `images_from` takes.
        batch_size: How many at a time.

    Raises:
        ImageError: If one cannot be read.
    """
    images = images_from(X)
    starts = range(0, len(images), batch_size)
    spans = (range(start, min(start + batch_size, len(images))) for start in starts)
    return torch.cat([run(torch.stack([preprocessing(images[i]) for i in span])) for span in spans])


def _record(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    try:
        if path.stat().st_size > _LARGEST_CARD:
            raise ValueError("it is too large")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}. Give the folder of a trained network.") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged ({error}). Restore it from a copy, or train the network again.") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ModelError(f"{path} does not describe a trained network. Give a folder that 'diffsight train' wrote.")
    if record.get("version") != VERSION:
        raise ModelError(
            f"{folder} has version {record.get('version')} of the format of networks, and this diffsight reads version "
            f"{VERSION}. Use the diffsight that saved it, or a newer one."
        )
    return record
