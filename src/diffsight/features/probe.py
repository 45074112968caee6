"""`FeatureProbe`: a scikit-learn classifier of images, by a head on frozen features of a diffusion model."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from diffsight.backbones.base import Backbone
from diffsight.data.images import images_from
from diffsight.errors import ImageError, InputError, ModelError
from diffsight.features.cache import extract
from diffsight.features.extraction import Extraction, unaugmented
from diffsight.features.extractor import FeatureExtractor
from diffsight.features.heads.columns import ArrayColumns, Columns
from diffsight.features.heads.fitted import FittedHead
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.saving import load_head, save_head
from diffsight.features.heads.specs import HeadSpec
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool
from diffsight.store.disk import put, to_json, writing

log = logging.getLogger(__name__)

_JSON = "probe.json"
_LARGEST = 1_000_000  # bytes


class FeatureProbe(ClassifierMixin, BaseEstimator):
    """Learn classes from a few labelled images on top of a frozen diffusion model.

    Training sees all views and noise draws that the extractor makes. Recognition sees each image as it is, and takes
    the mean of the logits over its noise draws.

    Args:
        extractor: Which features; by default those of `FeatureExtractor`.
        head: ``"logistic"``, ``"knn"``, ``"linear"``, ``"mlp"``, ``"cnn"``, ``"attention"``, ``"difformer"``, or the
            settings of one (`diffsight.features.heads`).
        recipe: How a network is trained: a `Recipe`, a name in `recipes.RECIPES`, or None for the default.
        seed: Of the head.
        root: A directory of caches in which features are kept; by default they stay in memory.

    Attributes:
        classes_: The labels, sorted.
        head_: The `FittedHead`.
        extractor_: The extractor, with its model loaded.

    References:
        Mukhopadhyay et al., Diffusion Models Beat GANs on Image Classification, https://arxiv.org/abs/2307.08702
    """

    def __init__(
        self,
        extractor: FeatureExtractor | None = None,
        head: str | HeadSpec = "logistic",
        *,
        recipe: str | Recipe | None = None,
        seed: int = 0,
        root: Path | str | None = None,
    ) -> None:
        self.extractor = extractor
        self.head = head
        self.recipe = recipe
        self.seed = seed
        self.root = root

    def fit(
        self,
        X: Any,  # noqa: ANN401
        y: Any,  # noqa: ANN401
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> "FeatureProbe":
        """Extract features of the images and train the head on them.

        Args:
            X: Images in any form that `diffsight.data.images.images_from` takes.
            y: The label of each, text or whole numbers.
            progress: Called with (images whose features are there, denoiser calls so far).

        Raises:
            InputError: If the labels do not fit the images, there are fewer than two classes, or the head cannot use
                the features.
            ImageError: If an image cannot be read.
            NumericsError: If the training diverged.
        """
        images = images_from(X)
        labels = np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(images):
            raise InputError(f"There are {len(images)} images and labels of shape {labels.shape}; give one for each.")
        self.extractor_: FeatureExtractor = (self.extractor or FeatureExtractor()).fit()
        classes, indices = np.unique(labels, return_inverse=True)
        columns = self._columns(self.extractor_.plan_, X, progress)
        self.head_: FittedHead = fit_head(
            columns,
            indices,
            self.head,
            classes=classes.tolist(),
            recipe=self.recipe,
            seed=self.seed,
            device=self.extractor_.plan_.backbone.device,
        )
        self.classes_ = classes
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """The most likely label of each image; of exactly equal ones the first.

        Raises:
            ImageError: If an image cannot be read.
        """
        best = self.logits(X).argmax(dim=1).numpy()
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Probability of each class; rows sum to 1."""
        return self.logits(X).softmax(dim=1).numpy()

    def decision_function(self, X: Any) -> Float[np.ndarray, "n k"] | Float[np.ndarray, " n"]:  # noqa: ANN401
        """Logits; for two classes the second minus the first."""
        logits = self.logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def logits(self, X: Any, *, progress: Callable[[int, int], None] | None = None) -> Float[Tensor, "n k"]:  # noqa: ANN401
        """Logits of each image, one for each class."""
        check_is_fitted(self, "head_")
        return self.head_.logits(self._columns(unaugmented(self.extractor_.plan_), X, progress))

    def save(self, folder: Path | str) -> None:
        """Write the head and what it expects of the model to a folder; not the model.

        Raises:
            InputError: If a label is neither text nor a whole number.
            ModelError: If the folder cannot be written.
        """
        check_is_fitted(self, "head_")
        save_probe(self.head_, self.extractor_.plan_, Path(folder))

    @classmethod
    def load(cls, folder: Path | str, backbone: Backbone | None = None) -> "FeatureProbe":
        """Read a probe that `save` wrote; it can predict at once.

        Args:
            folder: Where it is.
            backbone: The model, if it is no longer to be found under the name that it had.

        Raises:
            ModelError: If there is no probe, it is damaged, or the model is not the one that it was trained on.
        """
        folder = Path(folder)
        record = _read(folder)
        try:
            extractor = FeatureExtractor(
                backbone if backbone is not None else record["model"],
                record["layers"],
                record["timesteps"],
                noise=Noise(**record["noise"]),
                pool=Pool(**record["pool"]),
                prompt=record["prompt"],
            )
            expected: Mapping[str, str] = dict(record["identity"])
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"{folder / _JSON} is damaged ({error!r}). Restore it, or fit the probe again.") from error
        probe = cls(extractor)
        probe.extractor_ = extractor.fit()
        check_model(expected, extractor.plan_.backbone, what=f"The probe in {folder}")
        probe.head_ = load_head(folder, device=extractor.plan_.backbone.device)
        probe.head, probe.classes_ = probe.head_.spec, np.array(probe.head_.classes)
        return probe

    def _columns(
        self,
        extraction: Extraction,
        X: Any,  # noqa: ANN401
        progress: Callable[[int, int], None] | None,
    ) -> Columns:
        size = self.extractor_.batch_size
        if self.root is not None:
            cache = extract(extraction, X, root=self.root, batch_size=size, progress=progress)
            if cache.failures:
                raise ImageError(cache.failures[0].reason)
            return cache
        chunks = []
        for chunk in extraction.run(images_from(X), batch_size=size):
            if chunk.failures:
                raise ImageError(chunk.failures[0].reason)
            chunks.append(chunk.features)
            if progress is not None:
                progress(chunk.stop, chunk.stop * extraction.calls_per_image)
        return ArrayColumns({name: torch.cat([chunk[name] for chunk in chunks]) for name in extraction.columns})


def save_probe(head: FittedHead, extraction: Extraction, folder: Path) -> None:
    """Write a head with the extraction that it was trained on, as `FeatureProbe.load` reads it.

    Raises:
        InputError: If a label is neither text nor a whole number.
        ModelError: If the folder cannot be written.
        RunError: If it fills up while it is written.
    """
    record = {
        "model": extraction.backbone.name,
        "identity": extraction.backbone.identity(),
        "layers": [layer.name for layer in extraction.layers],
        "timesteps": list(extraction.levels),
        "noise": asdict(extraction.noise),
        "pool": asdict(extraction.pool),
        "prompt": extraction.prompt,
    }
    save_head(head, folder)
    with writing(folder):
        put(folder / _JSON, to_json(record, "A probe", indent=1).encode())


def recorded_model(folder: Path) -> str:
    """The name of the model that a probe was trained on.

    Raises:
        ModelError: If there is no probe.
    """
    return str(_read(folder).get("model"))


def check_model(expected: Mapping[str, str], backbone: Backbone, *, what: str) -> None:
    """Refuse another model than the one that something was trained on; another dtype is only told.

    Args:
        expected: The ``identity()`` of the model it was trained on.
        backbone: The model at hand.
        what: What was trained, for the error.

    Raises:
        ModelError: If the models differ in more than dtype or revision.
    """
    found = backbone.identity()
    differences = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if strange := [key for key in differences if key not in ("dtype", "revision")]:
        key = strange[0]
        raise ModelError(
            f"{what} was trained on another model than {backbone.name}: its {key} is {expected.get(key)!r}, and here "
            f"it is {found.get(key)!r}. Load that model, or train again."
        )
    if "dtype" in differences:
        log.warning("%s was trained in %s, and the model is now in %s.", what, expected.get("dtype"), found["dtype"])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / _JSON
    try:
        if path.stat().st_size > _LARGEST:
            raise ModelError(f"{path} is too large to be the description of a probe.")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{folder} holds no probe: {path.name} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON. Restore it, or fit the probe again.") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path} is not the description of a probe.")
    return record
