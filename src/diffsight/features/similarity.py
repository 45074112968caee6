"""CKA between the layers and noise levels of one model or two, from images."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffsight.data.images import Images, images_from
from diffsight.errors import InputError
from diffsight.features.cka import CKAAccumulator, CKAMatrix
from diffsight.features.extraction import Chunk, Extraction
from diffsight.features.hsic import ROWS_NEEDED


def compare(
    extraction: Extraction,
    images: Any,  # noqa: ANN401
    other: Extraction | None = None,
    *,
    estimator: str = "unbiased",
    kernel: str = "linear",
    bandwidth: float = 0.5,
    images_per_batch: int = 256,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CKAMatrix:
    """Compare all columns of one extraction with one another, or with those of another one, over a stream of images.

    Whether timesteps share their noise is said by the extractions' ``noise.shared``: with shared noise two timesteps
    look more alike than with independent noise, because both see the same disturbance. Two models with latents of one
    size see the same noise.

    Args:
        extraction: What to compare.
        images: In any form that `images_from` takes; shuffled, because batches of one class would hide what separates
            the classes. Those that cannot be read are left out.
        other: What to compare it with.
        estimator: ``"unbiased"`` or ``"biased"``.
        kernel: ``"linear"`` or ``"rbf"``.
        bandwidth: Of the RBF kernel, as a fraction of the median distance in the first batch.
        images_per_batch: Over how many images HSIC is taken before it is averaged.
        batch_size: Rows of the denoiser in one call; does not change results.
        seed: Of the shuffling.
        progress: Called with (images finished, denoiser calls so far).

    Raises:
        InputError: If there are too few images for the estimator, an image has several vectors, or an option makes no
            sense.
    """
    for each in (extraction, other):
        if each is not None and each.stored_views > 1:
            raise InputError(
                f"CKA needs one vector for each image, and there are {each.stored_views}: use noise 'mean'."
            )
    items = images_from(images)
    if len(items) < (needed := ROWS_NEEDED.get(estimator, 0)):
        raise InputError(f"The {estimator} estimator needs at least {needed} images; got {len(items)}.")
    order = np.random.default_rng(seed).permutation(len(items))
    shuffled = Images([items.items[i] for i in order], items.limits)
    names = (extraction.columns, None if other is None else other.columns)
    sums = CKAAccumulator(*names, estimator=estimator, kernel=kernel, bandwidth=bandwidth)
    calls = extraction.calls_per_image + (0 if other is None else other.calls_per_image)
    for start in range(0, len(shuffled), images_per_batch):
        stop = min(start + images_per_batch, len(shuffled))
        sides = [
            _joined(each.run(shuffled, batch_size=batch_size, start=start, stop=stop))
            for each in (extraction, other)
            if each is not None
        ]
        # An image that one of two models could not take is left out for both.
        common = sorted(set.intersection(*(set(positions) for positions, _ in sides)))
        if common:
            rows = [{name: m[np.searchsorted(at, common)] for name, m in columns.items()} for at, columns in sides]
            sums.update(*rows)
        if progress is not None:
            progress(stop, stop * calls)
    return sums.result()


def _joined(chunks: Iterator[Chunk]) -> tuple[list[int], dict[str, Tensor]]:
    filled = [chunk for chunk in chunks if chunk.positions]
    positions = [position for chunk in filled for position in chunk.positions]
    names = filled[0].features if filled else ()
    return positions, {name: torch.cat([chunk.features[name] for chunk in filled]) for name in names}
