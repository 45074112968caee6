"""A trained network as one ONNX file that runs without diffsight, checked before it is written.

The file takes images as ``images``, float32 (batch, 3, size, size) from 0 to 1, and normalises them itself; it gives
``logits`` and ``probabilities``. Its metadata hold the class names, how an image is brought to that size, and what the
network learnt from, under ``diffsight.*``, as JSON.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from diffsight.errors import InputError, ModelError
from diffsight.store.disk import digest, put_model, to_json
from diffsight.synthesis.preprocessing import Preprocessing, to_unit
from diffsight.synthesis.trained import BATCH, TrainedClassifier, in_batches

OPSET = 18
SUFFIX = ".onnx"
TOLERANCE = 1e-4
_FORMAT = "diffsight-onnx"
_BATCHES = (1, 3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
        path: The file.
        bytes: Its size.
        opset: Of the operators.
        difference: The largest difference of a logit between onnxruntime and torch, relative to the largest logit (or
            to 1 if that is less), over all images that were tried.
    """

    path: Path
    bytes: int
    opset: int
    difference: float


class _Deployed(nn.Module):
    """Logits and probabilities of images from 0 to 1."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(images)
        return logits, logits.softmax(dim=1)


def export_onnx(model: TrainedClassifier, path: Path | str, *, seed: int = 0) -> Exported:
    """Write a network as ONNX, if onnxruntime computes from it what torch does.

    Args:
        model: The network.
        path: The file, ending in ``.onnx``.
        seed: Of the random images that are tried, in batches of 1 and 3.

    Raises:
        InputError: If the path does not end in ``.onnx``.
        ModelError: If a package is missing, the network cannot be exported, the results differ, or the disk refuses.
            Nothing is written then.
    """
    path = Path(path)
    onnx = check_export(path)
    network = _Deployed(model._rebuilt(torch.device("cpu"))).eval()
    size = model.preprocessing.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's exporter warns of what it does itself
            program: Any = torch.onnx.export(
                network,
                (torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                input_names=["images"],
                output_names=["logits", "probabilities"],
                opset_version=OPSET,
                verbose=False,
            )
        proto = program.model_proto
    except Exception as error:  # the exporter lets through whatever a network makes it raise
        cause = " ".join(str(error).split())[:300]
        raise ModelError(f"{model.plan.name} cannot be exported to ONNX: {cause}.") from error
    record = {
        "format": _FORMAT,
        "version": 1,
        "classes": list(model.class_names),
        "preprocessing": model.preprocessing.to_dict(),
        "network": model.plan.name,
        "protocol": model.protocol,
        "label": model.label,
    }
    onnx.helper.set_model_props(
        proto, {f"diffsight.{key}": to_json(value, "A model's metadata") for key, value in record.items()}
    )
    onnx.checker.check_model(proto)
    data = proto.SerializeToString()
    difference = _compare(data, network, size, seed)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"onnxruntime computes other logits than torch from {model.plan.name}: they differ by {difference:.2g} of "
            f"the largest, where {TOLERANCE:g} is allowed. Nothing was written. Use another network, or other versions "
            "of torch and onnxruntime."
        )
    put_model(path.parent, {path.name: data})
    return Exported(path=path, bytes=len(data), opset=OPSET, difference=difference)


def check_export(path: Path) -> Any:  # noqa: ANN401
    """Whether a network could be written there, before it is trained.

    Returns:
        The module ``onnx``.

    Raises:
        InputError: If the path does not end in ``.onnx``.
        ModelError: If a package is missing.
    """
    if path.suffix.lower() != SUFFIX:
        raise InputError(f"An ONNX file ends in {SUFFIX}; got {path.name!r}.")
    try:
        import onnx
        import onnxruntime  # noqa: F401 - used by `_session`
        import onnxscript  # noqa: F401 - used by torch's exporter
    except ImportError as error:
        raise ModelError(f"ONNX needs {error.name}. Install it: pip install 'diffsight[train]'.") from error
    return onnx


@torch.inference_mode()
def _compare(data: bytes, network: nn.Module, size: int, seed: int) -> float:
    session, generator = _session(data), torch.Generator().manual_seed(seed + 1)
    worst = 0.0
    for count in _BATCHES:
        images = torch.rand(count, 3, size, size, generator=generator)
        expected = network(images)[0].numpy()
        found = session.run(["logits"], {"images": images.numpy()})[0]
        if found.shape != expected.shape or not np.isfinite(found).all():
            return float("inf")
        worst = max(worst, float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max())))
    return worst


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OnnxClassifier:
    """An exported network, run by onnxruntime on the CPU; made by `load_onnx`.

    Attributes:
        session: Of onnxruntime.
        preprocessing: From an image to what it takes.
        class_names: What each logit stands for.
        network: What it is.
        label: What has to be said beside its numbers.
        sha256: Of the file.
    """

    session: Any
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    network: str
    label: str
    sha256: str

    @property
    def classes_(self) -> np.ndarray:
        """The class names, as scikit-learn's classifiers have them."""
        return np.array(self.class_names)

    def predict(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """The name of the most likely class of each image; raises ImageError if one cannot be read."""
        return self.classes_[self.logits(X).argmax(dim=1).numpy()]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Probability of each class; raises ImageError if an image cannot be read."""
        return self.logits(X).softmax(dim=1).numpy()

    def logits(self, X: Any, *, batch_size: int = BATCH) -> Float[Tensor, "n k"]:  # noqa: ANN401
        """Logits of each image; raises ImageError if one cannot be read."""
        return in_batches(self.run, self.preprocessing, X, batch_size)

    def run(self, batch: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b k"]:
        """Logits of images that went through ``preprocessing``."""
        return torch.from_numpy(self.session.run(["logits"], {"images": to_unit(batch).numpy()})[0])

    def identity(self) -> dict[str, Any]:
        """What its answers depend on."""
        return {"network": self.network, "classes": list(self.class_names), "file": self.sha256}


def load_onnx(path: Path | str) -> OnnxClassifier:
    """Read an ONNX file that `export_onnx` wrote.

    Raises:
        ModelError: If a package is missing, or the file is not there, damaged, or not from diffsight.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror}. Give a file that 'diffsight export' wrote."
        ) from error
    session = _session(data, name=str(path))
    stored = session.get_modelmeta().custom_metadata_map
    try:
        record = {key: json.loads(stored[f"diffsight.{key}"]) for key in ("format", "classes", "preprocessing")}
        if record["format"] != _FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        return OnnxClassifier(
            session=session,
            preprocessing=Preprocessing.from_dict(record["preprocessing"]),
            class_names=tuple(record["classes"]),
            network=json.loads(stored["diffsight.network"]),
            label=json.loads(stored["diffsight.label"]),
            sha256=digest(data),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} has no class names and preprocessing of diffsight in it ({error!r}). Give a file that 'diffsight "
            "export' wrote."
        ) from error


def _session(data: bytes, *, name: str = "The exported network") -> Any:  # noqa: ANN401
    try:
        import onnxruntime
    except ImportError as error:
        raise ModelError("ONNX needs onnxruntime. Install it: pip install 'diffsight[train]'.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers: Sequence[str] = ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(data, sess_options=options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no common class
        cause = " ".join(str(error).split())[:300]
        raise ModelError(f"{name} is no ONNX file that onnxruntime can run: {cause}") from error
