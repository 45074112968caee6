"""`DiffusionClassifier`: a scikit-learn estimator whose X is images and whose classes are words."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin

from diffsight.backbones.base import Backbone
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.backbones.loading import load
from diffsight.backbones.models.classes import refuse_unconditional
from diffsight.data.images import images_from
from diffsight.data.prompts import PromptSet
from diffsight.errors import ImageError, InputError
from diffsight.scoring.elimination import Exhaustive, Policy
from diffsight.scoring.engine import Scored
from diffsight.zero_shot.calibration import fit_temperature
from diffsight.zero_shot.settings import Settings, Setup, prepare
from diffsight.zero_shot.verdict import Verdict, decide

DEFAULT_TEMPLATE = "a photo of a {}."


class TieWarning(UserWarning):
    """Two classes have exactly equal scores; the label returned is one of several."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Explanation:
    """Every class's error at every timestep for one image.

    Attributes:
        classes: Class names.
        timesteps: What the network was fed, ascending.
        errors: Mean error, shape (timesteps, classes).
    """

    classes: tuple[str, ...]
    timesteps: Float[np.ndarray, " t"]
    errors: Float[np.ndarray, "t k"]

    @property
    def votes(self) -> dict[str, int]:
        """At how many timesteps each class has the smallest error."""
        best = self.errors.argmin(axis=1)
        return {name: int((best == index).sum()) for index, name in enumerate(self.classes)}

    def __str__(self) -> str:
        width = max(len(name) for name in self.classes)
        gaps = self.errors - self.errors.mean(axis=1, keepdims=True)
        header = " " * width + "".join(f"{t:>9.0f}" for t in self.timesteps) + "     mean"
        rows = [
            f"{name:<{width}}" + "".join(f"{gap:>+9.4f}" for gap in gaps[:, index]) + f"{gaps[:, index].mean():>+9.4f}"
            for index, name in enumerate(self.classes)
        ]
        return "\n".join(["error − mean over classes, by timestep", header, *rows])


class DiffusionClassifier(ClassifierMixin, BaseEstimator):
    """Classify images by the prompt under which a diffusion model denoises them best.

    ŷ = argmin_c E_{t,ε} w_t ‖ε − ε_θ(α_t x + σ_t ε, t, c)‖², with the same draws (t, ε) for all classes of an image.

    Args:
        backbone: A loaded model, or what `diffsight.load` takes.
        classes: Class names, or a `PromptSet` (for several prompts per class). None takes the classes of a
            class-conditional model.
        templates: One template or several with a ``{}`` for the class name; not used for class-conditional models.
        policy: Which draws to make and when to drop a class; by default the best that we can show.
        loss: ``"l2"``, ``"l1"``, ``"huber"`` or ``"kl"``.
        weighting: ``"uniform"``, ``"snr"``, ``"vdm"``, ``"exp"`` or ``"vlb"``.
        ensemble: ``"mean"``, ``"min"``, ``"mixture"`` or ``"embedding"`` of a class's prompts.
        seed: Of the noise.
        batch_size: Denoiser rows per call; does not change results.
        scale: Of the probabilities: p ∝ exp(−scale · error). None infers it from the draws (see `Verdict`).

    Attributes:
        classes_: Class names in the order given.
        setup_: The model, prompts and settings after `fit`.
        scale_: Scale of the probabilities after `calibrate`.

    References:
        Li et al., Your Diffusion Model is Secretly a Zero-Shot Classifier, ICCV 2023, https://arxiv.org/abs/2303.16203
        Clark & Jaini, Text-to-Image Diffusion Models are Zero-Shot Classifiers, NeurIPS 2023,
        https://arxiv.org/abs/2303.15233
    """

    def __init__(
        self,
        backbone: Backbone | str | Path = "tiny-fashion",
        classes: Sequence[str] | PromptSet | None = None,
        *,
        templates: str | Sequence[str] = DEFAULT_TEMPLATE,
        policy: Policy | None = None,
        loss: str = "l2",
        weighting: str = "uniform",
        ensemble: str = "mean",
        seed: int = 0,
        batch_size: int = 256,
        scale: float | None = None,
    ) -> None:
        self.backbone = backbone
        self.classes = classes
        self.templates = templates
        self.policy = policy
        self.loss = loss
        self.weighting = weighting
        self.ensemble = ensemble
        self.seed = seed
        self.batch_size = batch_size
        self.scale = scale

    def fit(self, X: object = None, y: object = None) -> "DiffusionClassifier":
        """Load the model and encode the prompts. Images and labels, if given, are not looked at.

        Raises:
            PromptError: If the class names or templates cannot give a right answer, or the model is unconditional.
            ModelError: If the model cannot be loaded.
        """
        backbone = self._loaded()
        settings = Settings(
            policy=self.policy or Settings().policy,
            loss=self.loss,
            weighting=self.weighting,
            ensemble=self.ensemble,
            seed=self.seed,
        )
        self.setup_: Setup = prepare(backbone, self._prompts(backbone), settings)
        self.classes_ = np.array(self.setup_.prompts.class_names)
        return self

    def classify(
        self,
        X: Any,  # noqa: ANN401
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Verdict]:
        """Everything that is known about each image: label, runner-up, probabilities, cost, ties.

        Args:
            X: Images in any form that `diffsight.data.images.images_from` takes.
            progress: Called with (images finished, denoiser calls so far) after each batch.

        Returns:
            One verdict per image, in order. An image that cannot be read has ``failure`` set and no label.
        """
        scale = self.scale if self.scale is not None else getattr(self, "scale_", None)
        return [decide(one, self._fitted().contest, scale=scale) for one in self._score(X, progress)]

    def _score(self, X: Any, progress: Callable[[int, int], None] | None = None) -> list[Scored]:  # noqa: ANN401
        setup = self._fitted()
        images = images_from(X)
        ids: list[str] = []
        engine = setup.engine(self.batch_size)
        done: dict[str, Scored] = {}
        for finished in engine.run(encode_images(setup.backbone, by_content(images, ids))):
            done.update({scored.id: scored for scored in finished})
            if progress is not None:
                progress(len(done), engine.calls)
        return [done[id] for id in ids]

    def calibrate(self, X: Any, y: Sequence[str]) -> "DiffusionClassifier":  # noqa: ANN401
        """Fit the scale of the probabilities to labelled images; labels stay as they are, and nothing else changes.

        The probabilities are then no longer zero-shot: real labelled images have chosen something.

        Args:
            X: Held-out images.
            y: The class name of each.

        Returns:
            Itself, with ``scale_`` set, which is used unless ``scale`` was given.

        Raises:
            InputError: If a label is no class, numbers differ, or single prompts compete (ensembles min and mixture).
            ImageError: If an image cannot be read.
        """
        contest = self._fitted().contest
        if contest.units.count != len(contest.class_names):
            raise InputError(
                f"The ensemble {contest.ensemble!r} lets single prompts compete: calibrate 'mean' instead."
            )
        names = list(contest.class_names)
        if unknown := sorted({str(label) for label in y} - set(names)):
            raise InputError(f"The labels {unknown[:5]} are none of the classes {names}.")
        scored = self._score(X)
        for position, one in enumerate(scored):
            if one.failure:
                raise ImageError(f"Image {position}: {one.failure}")
        labels = np.array([names.index(str(label)) for label in y])
        self.scale_ = fit_temperature([contest.units.reduce(one.errors) for one in scored], labels).scale
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """Class name of each image.

        Raises:
            ImageError: If an image cannot be read; `classify` goes on instead.
        """
        verdicts = self._all(X)
        if tied := [i for i, verdict in enumerate(verdicts) if verdict.tie]:
            warnings.warn(f"Exact ties for the first place at images {tied[:10]}.", TieWarning, stacklevel=2)
        return self.classes_[np.array([verdict.label for verdict in verdicts], dtype=np.int64)]

    def predict_proba(self, X: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Probability of each class; rows sum to 1."""
        return np.stack([verdict.probabilities for verdict in self._all(X)])

    def decision_function(self, X: Any) -> Float[np.ndarray, "n k"]:  # noqa: ANN401
        """Negative error of each class relative to the winner on the draws that both have: 0 for the winner."""
        return np.stack([verdict.scores for verdict in self._all(X)])

    def explain(self, image: Any, *, num_draws: int = 50) -> Explanation:  # noqa: ANN401
        """Score every class on an even grid without elimination.

        Args:
            image: One image.
            num_draws: Timesteps; calls are ``num_draws`` × prompts.
        """
        setup = self._fitted()
        settings = replace(setup.settings, policy=Exhaustive(num_draws=num_draws))
        full = prepare(setup.backbone, setup.prompts, settings)
        engine = full.engine(self.batch_size)
        images = encode_images(setup.backbone, by_content(images_from(image), []))
        (scored,) = (scored for finished in engine.run(images) for scored in finished)
        if scored.failure:
            raise ImageError(scored.failure)
        timesteps = setup.backbone.schedule.timesteps[full.scorer.levels].numpy()
        order = np.argsort(timesteps, kind="stable")
        errors = full.contest.class_errors(scored.errors)
        return Explanation(classes=tuple(self.classes_), timesteps=timesteps[order], errors=errors[order])

    def __call__(
        self,
        images: Any,  # noqa: ANN401
        candidate_labels: Sequence[str] | str | None = None,
        hypothesis_template: str = "This is a photo of {}.",
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Classify as transformers' ``zero-shot-image-classification`` pipeline does.

        Args:
            images: One image (path, PIL image, array) or a list.
            candidate_labels: Class names, or one string with commas; None keeps the fitted classes.
            hypothesis_template: With ``{}`` for the label.

        Returns:
            ``[{"score": …, "label": …}, …]`` with the best first; a list of these for a list of images.
        """
        model = self
        if candidate_labels is not None:
            labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
            model = DiffusionClassifier(**{**self.get_params(deep=False), "backbone": self._loaded()})
            model.set_params(classes=[label.strip() for label in labels], templates=hypothesis_template).fit()
        single = not isinstance(images, list | tuple)
        ranked = [
            [
                {"score": float(verdict.probabilities[index]), "label": str(model.classes_[index])}
                for index in np.argsort(-verdict.probabilities, kind="stable")
            ]
            for verdict in model._all([images] if single else list(images))
        ]
        return ranked[0] if single else ranked

    def _loaded(self) -> Backbone:
        """The model, loaded once however often the estimator is fitted or called."""
        if not isinstance(self.backbone, str | Path):
            return self.backbone
        name, backbone = getattr(self, "_kept", (None, None))
        if backbone is None or name != self.backbone:
            backbone = load(self.backbone)
            self._kept = (self.backbone, backbone)
        return backbone

    def _fitted(self) -> Setup:
        if not hasattr(self, "setup_"):
            self.fit()
        return self.setup_

    def _all(self, X: Any) -> list[Verdict]:  # noqa: ANN401
        verdicts = self.classify(X)
        for index, verdict in enumerate(verdicts):
            if verdict.failure:
                raise ImageError(f"Image {index}: {verdict.failure}")
        return verdicts

    def _prompts(self, backbone: Backbone) -> PromptSet:
        refuse_unconditional(backbone)
        if isinstance(self.classes, PromptSet):
            return self.classes
        if backbone.class_names is not None:
            return PromptSet.from_templates(self.classes or backbone.class_names, "{}")
        if self.classes is None:
            raise InputError(f"{backbone.name} reads text: give it classes=['cat', 'dog', …].")
        return PromptSet.from_templates(self.classes, self.templates)
