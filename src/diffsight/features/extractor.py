"""`FeatureExtractor`: a scikit-learn transformer from images to activations of a frozen diffusion model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor

from diffsight.backbones.base import Backbone
from diffsight.backbones.loading import load
from diffsight.data.images import images_from
from diffsight.errors import ImageError, InputError
from diffsight.features.cache import FeatureCache, extract
from diffsight.features.extraction import Extraction, plan
from diffsight.features.noise import Noise
from diffsight.features.pooling import Pool


class FeatureExtractor(TransformerMixin, BaseEstimator):
    """Activations of chosen layers of a diffusion model at chosen noise levels.

    An image is noised to a timestep and shown to the model once, up to the last layer asked for and no further; the
    outputs of the layers are pooled and returned. The model reads no text and no class, so that nothing gives an answer
    away. The same image gives the same features whatever stands beside it.

    Args:
        backbone: A loaded model, or what `diffsight.load` takes.
        layers: Names of layers (``"dec.4"``, ``"b24"``, ``"block.12"``, the path of a module); `diffsight layers MODEL`
            lists them. None takes the one where the papers found the best features, by its depth.
        timesteps: Levels of the schedule, from 0 (clean); None takes one with as much noise as t = 90 of ADM.
        noise: ``"fixed"`` (one draw for each image), ``"none"``, or a `Noise` with several draws.
        pool: Side of the grid to which maps are averaged (1: over all places), a `Pool`, or None for whole maps.
        prompt: A text for all images.
        views: Augmented views of each image, the first of which is the image itself; for training heads.
        flip: Whether augmented views may be mirrored: not for digits and text.
        batch_size: Rows of the denoiser in one call; does not change results.

    Attributes:
        plan_: All that the features depend on, after `fit`.
        columns_: Names of what is extracted, ``LAYER@TIMESTEP``: timestep by timestep, layers in the order asked for.

    References:
        Mukhopadhyay et al., Diffusion Models Beat GANs on Image Classification, https://arxiv.org/abs/2307.08702
        Mukhopadhyay et al., Do text-free diffusion models learn discriminative visual representations?, ECCV 2024,
        https://arxiv.org/abs/2311.17921
    """

    def __init__(
        self,
        backbone: Backbone | str | Path = "tiny-fashion",
        layers: Sequence[str] | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        noise: Noise | str = "fixed",
        pool: Pool | int | None = 1,
        prompt: str = "",
        views: int = 1,
        flip: bool = True,
        batch_size: int = 64,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.timesteps = timesteps
        self.noise = noise
        self.pool = pool
        self.prompt = prompt
        self.views = views
        self.flip = flip
        self.batch_size = batch_size

    def fit(self, X: object = None, y: object = None) -> "FeatureExtractor":
        """Load the model. Images and labels, if given, are not looked at.

        Raises:
            InputError: If a layer is unknown, a timestep out of range, or a number makes no sense.
            ModelError: If the model cannot be loaded.
        """
        self.plan_: Extraction = plan(
            self._loaded(),
            layers=self.layers,
            timesteps=self.timesteps,
            noise=Noise(kind=self.noise) if isinstance(self.noise, str) else self.noise,
            pool=self.pool if isinstance(self.pool, Pool) else Pool(size=self.pool),
            prompt=self.prompt,
            views=self.views,
            flip=self.flip,
        )
        self.columns_ = self.plan_.columns
        return self

    def maps(self, X: Any) -> dict[str, Float[Tensor, "n v c h w"]]:  # noqa: ANN401
        """Extract features of images, in memory.

        Args:
            X: Images in any form that `diffsight.data.images.images_from` takes.

        Returns:
            For each column the pooled maps: images, views (and draws that are kept apart), channels, height, width.

        Raises:
            ImageError: If an image cannot be read; `extract` goes on instead.
        """
        extraction = self._fitted()
        chunks = []
        for chunk in extraction.run(images_from(X), batch_size=self.batch_size):
            for failure in chunk.failures:
                raise ImageError(failure.reason)
            chunks.append(chunk)
        return {name: torch.cat([chunk.features[name] for chunk in chunks]) for name in extraction.columns}

    def extract(
        self,
        X: Any,  # noqa: ANN401
        *,
        out: Path | str | None = None,
        root: Path | str | None = None,
        storage: str = "fp32",
        progress: Callable[[int, int], None] | None = None,
    ) -> FeatureCache:
        """Extract features of images into a cache on disk, which may be larger than memory and can be continued.

        See `diffsight.features.cache.extract`; an image that cannot be read is a recorded failure.
        """
        return extract(
            self._fitted(),
            X,
            out=out,
            root=root,
            batch_size=self.batch_size,
            storage=storage,
            progress=progress,
        )

    def transform(self, X: Any) -> Float[np.ndarray, "n f"]:  # noqa: ANN401
        """One vector for each image: its columns one after another, each flattened channel by channel.

        Raises:
            InputError: If an image would have several vectors.
            ImageError: If an image cannot be read.
        """
        extraction = self._fitted()
        if extraction.stored_views > 1:
            raise InputError(
                f"These settings give {extraction.stored_views} vectors for each image: use noise 'fixed' or 'mean' "
                "and views=1 here, or `maps` and `extract`, which keep them apart."
            )
        return torch.cat([column.flatten(1) for column in self.maps(X).values()], dim=1).numpy()

    def _loaded(self) -> Backbone:
        """The model, loaded once however often the extractor is fitted."""
        if not isinstance(self.backbone, str | Path):
            return self.backbone
        name, backbone = getattr(self, "_kept", (None, None))
        if backbone is None or name != self.backbone:
            backbone = load(self.backbone)
            self._kept = (self.backbone, backbone)
        return backbone

    def _fitted(self) -> Extraction:
        if not hasattr(self, "plan_"):
            self.fit()
        return self.plan_

    def __sklearn_is_fitted__(self) -> bool:
        # Nothing is learnt from X: in a pipeline it can be used as it is.
        return True
