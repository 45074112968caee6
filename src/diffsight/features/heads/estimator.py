"""`HeadClassifier`: the heads as a scikit-learn classifier on arrays of features."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, no_type_check

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from diffsight.errors import InputError
from diffsight.features.heads.columns import ArrayColumns
from diffsight.features.heads.fitted import FittedHead
from diffsight.features.heads.fitting import fit_head
from diffsight.features.heads.recipes import Recipe
from diffsight.features.heads.saving import load_head, save_head
from diffsight.features.heads.specs import HeadSpec

COLUMN = "features"


class HeadClassifier(ClassifierMixin, BaseEstimator):
    """Classify features by a head that is trained on them.

    Features are vectors, shape (n, d), or maps, shape (n, channels, height, width). Networks and logistic regression
    standardise each channel (of vectors: each feature) with the training set's mean and deviation.

    Args:
        head: ``"linear"``, ``"mlp"``, ``"cnn"``, ``"attention"``, ``"difformer"``, ``"logistic"``, ``"knn"``, or the
            settings of one (`diffsight.features.heads`).
        recipe: How a network is trained: a `Recipe`, a name in `recipes.RECIPES`, or None for the default.
        seed: Of all that is random.
        device: Where to compute; by default CUDA where there is one.

    Attributes:
        classes_: The labels, sorted.
        n_features_in_: Features, or channels of maps.
        head_: The `FittedHead`.

    References:
        Mukhopadhyay et al., Diffusion Models Beat GANs on Image Classification, https://arxiv.org/abs/2307.08702
    """

    @no_type_check  # as in all of scikit-learn nothing is checked before `fit`, and so not by the tests' beartype
    def __init__(
        self,
        head: str | HeadSpec = "linear",
        *,
        recipe: str | Recipe | None = None,
        seed: int = 0,
        device: str | torch.device | None = None,
    ) -> None:
        self.head = head
        self.recipe = recipe
        self.seed = seed
        self.device = device

    def fit(self, X: Any, y: Any, *, progress: Callable[[int, int], None] | None = None) -> "HeadClassifier":  # noqa: ANN401
        """Train the head.

        Args:
            X: Features, shape (n, d) or (n, channels, height, width).
            y: Labels of any kind.
            progress: Called with the steps that are done and all steps.

        Raises:
            InputError: If a feature is not finite, there are fewer than two classes, or the head cannot use the maps.
            NumericsError: If the training diverged.
        """
        X, y = validate_data(self, X, y, allow_nd=True, ensure_all_finite=False)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        self.head_: FittedHead = fit_head(
            _columns(X),
            labels,
            self.head,
            classes=self.classes_.tolist(),
            recipe=self.recipe,
            seed=self.seed,
            device=self.device,
            progress=progress,
        )
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """The most likely label of each row; of exactly equal ones the first."""
        best = self._logits(X).argmax(dim=1).numpy()
        return self.classes_[best]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Probability of each class."""
        return self._logits(X).softmax(dim=1).numpy()

    def decision_function(self, X: Any) -> Float[np.ndarray, "n k"] | Float[np.ndarray, " n"]:  # noqa: ANN401
        """Logits; for two classes the second minus the first. Of nearest neighbours, logarithms of probabilities."""
        logits = self._logits(X).numpy()
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def save(self, path: Path | str) -> None:
        """Write the fitted head to a folder, as safetensors and JSON.

        Raises:
            InputError: If a label is neither text nor a whole number.
            ModelError: If the folder cannot be written.
        """
        check_is_fitted(self)
        save_head(self.head_, Path(path))

    @classmethod
    def load(cls, path: Path | str, *, device: str | torch.device | None = None) -> "HeadClassifier":
        """Read a head from a folder that `save` wrote; it can predict at once.

        Raises:
            InputError: If the head takes several columns, and so no array.
            ModelError: If the folder has no head, or it is damaged or of another version.
        """
        fitted = load_head(Path(path), device=device)
        if list(fitted.shapes) != [COLUMN]:
            raise InputError(f"The head in {path} takes the columns {', '.join(fitted.shapes)}; use `load_head`.")
        model = cls(fitted.spec, device=device)
        model.head_, model.classes_ = fitted, np.array(fitted.classes)
        model.n_features_in_ = fitted.shapes[COLUMN][0]  # pyright: ignore[reportAttributeAccessIssue]
        return model

    def _logits(self, X: Any) -> torch.Tensor:  # noqa: ANN401
        check_is_fitted(self)
        return self.head_.logits(_columns(validate_data(self, X, reset=False, allow_nd=True, ensure_all_finite=False)))


def _columns(X: Any) -> ArrayColumns:  # noqa: ANN401
    """Features as one column with one view; vectors are maps of 1×1.

    Raises:
        InputError: If they are neither vectors nor maps.
    """
    if X.ndim not in (2, 4):
        raise InputError(f"Features are vectors (n, d) or maps (n, channels, height, width); got shape {X.shape}.")
    return ArrayColumns({COLUMN: X.reshape(len(X), 1, X.shape[1], *(X.shape[2:] or (1, 1)))})
