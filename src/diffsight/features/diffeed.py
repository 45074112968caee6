"""`DifFeedClassifier`: a scikit-learn classifier of images by a frozen UNet that is fed its own features (DifFeed)."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffsight.backbones.base import Backbone
from diffsight.backbones.loading import load as load_backbone
from diffsight.data.images import Images, images_from
from diffsight.errors import InputError, ModelError, NumericsError
from diffsight.features.extraction import GROUP
from diffsight.features.heads.columns import check_labels
from diffsight.features.heads.recipes import LEARNING_RATES, Recipe, find_recipe
from diffsight.features.heads.specs import DifFormer, head_from_dict, seeded
from diffsight.features.heads.training import make_optimizer
from diffsight.features.probe import check_model
from diffsight.features.two_passes import DifFeed, TwoPasses, backward, plan_passes
from diffsight.store.disk import digest, put_model, to_json

FORMAT, VERSION = "diffsight-diffeed", 1
_JSON, _WEIGHTS = "diffeed.json", "diffeed.safetensors"
_OWN = Recipe(epochs=28, batch_size=16, standardize=False)


def _build(passes: TwoPasses, num_classes: int, head: DifFormer, generator: torch.Generator | None = None) -> DifFeed:
    """Make what is to be trained; without a generator on the meta device, to be loaded."""
    pairs = {source.name: target.name for source, target in passes.pairs.items()}
    return seeded(lambda: DifFeed(pairs, passes.shapes, passes.output.name, num_classes, head), generator)


def _train(
    network: DifFeed,
    passes: TwoPasses,
    images: Images,
    labels: Int[np.ndarray, " n"],
    recipe: Recipe,
    *,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[float, ...]:
    """Train in place, and give the mean cross-entropy of each epoch.

    Epoch e sees the noise draw e of every image, and its view e modulo the number of views.
    """
    rate, weights = recipe.learning_rate or LEARNING_RATES[DifFormer.name], list(network.parameters())
    optimizer = make_optimizer(recipe, [{"params": weights, "lr": rate, "weight_decay": recipe.weight_decay}])
    steps = recipe.steps(len(labels))
    total = recipe.epochs * steps
    schedule = LambdaLR(optimizer, lambda step: recipe.factor(step // steps, step / total))
    targets, order = torch.from_numpy(labels).to(passes.backbone.device), np.random.default_rng(passes.seed)
    views, losses = passes.extraction.views, []
    network.train()
    ids, x0 = passes.encode(images)
    for epoch in range(recipe.epochs):
        if epoch and views > 1:
            ids, x0 = passes.encode(images, view=epoch % views)
        lost = torch.zeros((), device=targets.device)
        for step, rows in enumerate(np.array_split(order.permutation(len(labels)), steps)):
            x_t = passes.noised([ids[row] for row in rows], x0[rows], draw=epoch)
            lost += backward(network, passes, x_t, targets[rows], batch_size=batch_size) * len(rows)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if progress is not None:
                progress(epoch * steps + step + 1, total)
        losses.append(float(lost) / len(labels))
        if not (np.isfinite(losses[-1]) and all(bool(weight.isfinite().all()) for weight in weights)):
            raise NumericsError(f"DifFeed diverged in epoch {epoch + 1}. Lower the learning rate of {rate:g}.")
    return tuple(losses)


def _logits(network: DifFeed, passes: TwoPasses, x_t: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
    """Logits on the CPU. If the device runs out of memory, in halves: rows do not meet when nothing is learnt."""
    try:
        return network(passes, x_t).cpu()
    except ModelError as error:
        if len(x_t) == 1 or not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
    torch.cuda.empty_cache()
    return torch.cat([_logits(network, passes, half) for half in x_t.chunk(2)])


@torch.no_grad()
def _score(network: DifFeed, passes: TwoPasses, images: Images, *, batch_size: int) -> Float[Tensor, "n k"]:
    """Logits of images as they are, with the draw 0 of each, on the CPU."""
    logits, stretch = [], GROUP * ceil(batch_size / GROUP)
    with _evaluating(network):
        for start in range(0, len(images), stretch):
            ids, x0 = passes.encode(images, range(start, min(start + stretch, len(images))))
            x_t = passes.noised(ids, x0, draw=0)
            logits += [_logits(network, passes, part) for part in x_t.split(batch_size)]
    result = torch.cat(logits)
    if strange := (~result.isfinite().all(dim=1)).nonzero().flatten().tolist():
        dtype = str(passes.backbone.dtype).removeprefix("torch.")
        raise NumericsError(f"X[{strange[0]}] has a logit that is not finite (computing in {dtype}). Use dtype fp32.")
    return result


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then the mode that was before: in the authors' program BatchNorm never trains again."""
    mode = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(mode)


class DifFeedClassifier(ClassifierMixin, BaseEstimator):
    """Learn classes from labelled images by feeding a frozen UNet its own features (DifFeed).

    Training sees an image with another noise in each epoch, recognition always with the same. Each costs two passes, to
    the last layer needed and no further. Training keeps the latents of all images in memory.

    Args:
        backbone: A loaded UNet, or what `diffsight.load` takes.
        timestep: Level of the schedule, from 0 (clean); None takes one with as much noise as t = 90 of ADM.
        layer: The layer of the second pass that the head reads; None takes the paper's b24 of 37, by its depth.
        sources: Blocks of the decoder that are fed back to the mirrored blocks of the encoder; None takes those at the
            places of the paper's b21, b24, b27, b30, b33 and b36.
        head: Settings of the head; None takes the paper's.
        recipe: How to train: a `Recipe`, a name in `recipes.RECIPES`, or None for ours: AdamW, 28 epochs, 16 images a
            step.
        views: Augmented views of each training image, the first of which is the image itself; epochs take turns.
        flip: Whether augmented views may be mirrored: not for digits and text.
        seed: Of the initial weights, the order of images, the noise and the views.
        batch_size: Images in the denoiser at once. It bounds the memory and does not change results; but training with
            a head of norm ``"batch"`` takes all images of a step at once.

    Attributes:
        classes_: The labels, sorted.
        losses_: Mean cross-entropy of each epoch, while it trained; a classifier from a file has none.
        network_: What was trained.
        passes_: The model, and what is fed back where.

    References:
        Mukhopadhyay et al., Do text-free diffusion models learn discriminative visual representations?, ECCV 2024,
        https://arxiv.org/abs/2311.17921
    """

    def __init__(
        self,
        backbone: Backbone | str | Path = "tiny-fashion",
        timestep: int | None = None,
        layer: str | None = None,
        sources: Sequence[str] | None = None,
        *,
        head: DifFormer | None = None,
        recipe: str | Recipe | None = None,
        views: int = 1,
        flip: bool = True,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        self.backbone = backbone
        self.timestep = timestep
        self.layer = layer
        self.sources = sources
        self.head = head
        self.recipe = recipe
        self.views = views
        self.flip = flip
        self.seed = seed
        self.batch_size = batch_size

    def fit(self, X: Any, y: Any, *, progress: Callable[[int, int], None] | None = None) -> "DifFeedClassifier":  # noqa: ANN401
        """Train the feedback and the head.

        Args:
            X: Images in any form that `diffsight.data.images.images_from` takes.
            y: The label of each, text or whole numbers.
            progress: Called with the steps that are done and all steps; the classifier can predict in it.

        Raises:
            InputError: If labels and images do not fit together, the model is no UNet with as many encoder as decoder
                blocks, or an argument of the classifier makes no sense.
            ImageError: If an image cannot be read.
            NumericsError: If the training diverged.
        """
        images, labels = images_from(X), np.asarray(y)
        if labels.ndim != 1 or len(labels) != len(images):
            raise InputError(f"There are {len(images)} images and labels of shape {labels.shape}; give one for each.")
        classes, indices = np.unique(labels, return_inverse=True)
        check_labels(indices, len(images), classes.tolist())
        head, recipe = self._checked()
        passes = self._planned()
        network = _build(passes, len(classes), head, torch.Generator().manual_seed(self.seed))
        self.classes_, self.passes_, self.network_ = classes, passes, network.to(passes.backbone.device)
        size = recipe.batch_size if head.norm == "batch" else self.batch_size
        try:
            self.losses_ = _train(network, passes, images, indices, recipe, batch_size=size, progress=progress)
        except Exception:
            del self.network_  # It is trained in part.
            raise
        network.eval().requires_grad_(False)
        return self

    def predict(self, X: Any) -> np.ndarray:  # noqa: ANN401
        """The most likely label of each image; of exactly equal ones the first.

        Raises:
            ImageError: If an image cannot be read.
            NumericsError: If the network gives something that is not finite.
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

    def logits(self, X: Any) -> Float[Tensor, "n k"]:  # noqa: ANN401
        """Logits of each image, one for each class."""
        check_is_fitted(self, "network_")
        return _score(self.network_, self.passes_, images_from(X), batch_size=self.batch_size)

    def save(self, folder: Path | str) -> None:
        """Write what was trained and what it expects of the model to a folder; not the model.

        Raises:
            InputError: If a label is neither text nor a whole number.
            ModelError: If the folder cannot be written.
        """
        check_is_fitted(self, "network_")
        folder, passes = Path(folder), self.passes_
        if strange := [label for label in self.classes_.tolist() if type(label) not in (str, int)]:
            raise InputError(f"Labels are kept as text or whole numbers; {strange[0]!r} is neither.")
        state = {key: value.cpu().contiguous() for key, value in self.network_.state_dict().items()}
        weights = safetensors.torch.save(state)
        record = {
            "format": FORMAT,
            "version": VERSION,
            "model": passes.backbone.name,
            "identity": passes.backbone.identity(),
            "timestep": passes.extraction.levels[0],
            "layer": passes.output.name,
            "sources": [layer.name for layer in passes.pairs],
            "seed": passes.seed,
            "head": self.network_.spec.to_dict(),
            "classes": self.classes_.tolist(),
            "weights": digest(weights),
        }
        put_model(folder, {_WEIGHTS: weights, _JSON: to_json(record, "DifFeed", indent=1).encode()})

    @classmethod
    def load(cls, folder: Path | str, backbone: Backbone | None = None) -> "DifFeedClassifier":
        """Read what `save` wrote; it can predict at once. Nothing in the folder is executed.

        Args:
            folder: Where it is.
            backbone: The model, if it is no longer to be found under the name that it had.

        Raises:
            ModelError: If nothing is there, it is damaged or of another version, or the model is another than the one
                that it was trained on.
        """
        folder = Path(folder)
        try:
            record, weights = json.loads((folder / _JSON).read_bytes()), (folder / _WEIGHTS).read_bytes()
            if (record["format"], record["version"], record["weights"]) != (FORMAT, VERSION, digest(weights)):
                raise ValueError(f"format, version or weights are not those of a {FORMAT} {VERSION}")
            backbone = load_backbone(record["model"]) if backbone is None else backbone
            check_model(dict(record["identity"]), backbone, what=f"The classifier in {folder}")
            options = {key: record[key] for key in ("timestep", "layer", "sources", "seed")}
            head: Any = head_from_dict(record["head"])
            model = cls(backbone, head=head, **options)
            model.passes_, model.classes_ = model._planned(), np.array(record["classes"])
            network = _build(model.passes_, len(model.classes_), model._checked()[0])
            network.load_state_dict(safetensors.torch.load(weights), assign=True)
        except (OSError, LookupError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"{folder} holds no DifFeed that can be read ({error}). Restore it from a copy, or fit it again."
            ) from error
        model.network_ = network.to(model.passes_.backbone.device).eval().requires_grad_(False)
        return model

    def _planned(self) -> TwoPasses:
        return plan_passes(
            load_backbone(self.backbone) if isinstance(self.backbone, str | Path) else self.backbone,
            timestep=self.timestep,
            layer=self.layer,
            sources=self.sources,
            views=self.views,
            flip=self.flip,
            seed=self.seed,
        )

    def _checked(self) -> tuple[DifFormer, Recipe]:
        head, recipe = self.head or DifFormer(), _OWN if self.recipe is None else find_recipe(self.recipe)
        if not isinstance(head, DifFormer):
            raise InputError(f"The head of DifFeed is a DifFormer; got {head!r}.")
        if recipe.standardize:
            raise InputError(
                "What DifFeed's head reads changes in training and cannot be standardised once: give a recipe with "
                "standardize=False. A head with norm='batch' does it in every step."
            )
        if type(self.batch_size) is not int or self.batch_size < 1:
            raise InputError(f"batch_size must be a whole number of at least 1; got {self.batch_size!r}.")
        return head, recipe
