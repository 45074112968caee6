"""Images as vectors, from a diffusion model, a baseline, or their pixels; those of baselines are kept on the disk."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from diffsight.backbones.encoders.loading import load_encoder
from diffsight.data.images import images_from
from diffsight.data.sources import Source
from diffsight.errors import ImageError, NumericsError
from diffsight.evaluation.baselines import TIMM_KIND
from diffsight.evaluation.comparing.measuring import PILOT, flops_of
from diffsight.evaluation.embedding import DiffusionEmbedder, Embedded, embed_in_batches
from diffsight.evaluation.supervised import load_timm
from diffsight.features.heads.columns import ArrayColumns
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run
from diffsight.synthesis.preprocessing import Preprocessing, to_unit

_COMMIT = 1024
_PIXELS = 32  # The most for the side of images that are learnt from as they are.
COLUMN = "vectors"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class VectorEmbedder:
    """An `Embedder` by two functions.

    Attributes:
        name: What it is called.
        prepare: From an image to bytes.
        vectors: From a batch of these to a vector each.
        known: What the vectors depend on.
    """

    name: str
    prepare: Callable[[Image.Image], UInt8[Tensor, "3 h w"]]
    vectors: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b d"]]
    known: Mapping[str, Any]

    @property
    def calls_per_image(self) -> int:
        """None."""
        return 0

    def identity(self) -> dict[str, Any]:
        """What its vectors depend on."""
        return {"name": self.name, **self.known}

    def embed(self, source: Source, progress: Callable[[int, int], None] | None = None) -> Embedded:
        """Vectors of all images.

        Raises:
            NumericsError: If a number is not finite.
        """
        found = embed_in_batches(source, self.prepare, self.vectors, progress)
        if not np.isfinite(found.values).all():
            raise NumericsError(f"{self.name} gives a number that is not finite. Try dtype fp32.")
        return found


def pixel_embedder(source: Source) -> VectorEmbedder:
    """Pixels as they are, in a square of the first image's shorter side, at most 32."""
    side = _PIXELS
    for sample in source:
        try:
            side = min(_PIXELS, *sample.load().size)
        except ImageError:
            continue
        break
    prepare = Preprocessing(size=side, scale=side)
    return VectorEmbedder(
        name=f"pixels {side}×{side}",
        prepare=prepare,
        vectors=lambda batch: to_unit(batch).flatten(1),
        known={"size": side},
    )


def baseline_embedder(name: str, kind: str, *, device: torch.device, dtype: str | None) -> VectorEmbedder:
    """The vectors of CLIP, SigLIP or DINOv2, or of a network of timm without its last layer.

    Raises:
        ModelError: If it cannot be had.
    """
    if kind == TIMM_KIND:
        found = load_timm(name, features=True, device=device)
        return VectorEmbedder(
            name=name,
            prepare=found.preprocessing,
            vectors=lambda batch: found.network(to_unit(batch.to(found.device))),
            known={"weights": found.weights(), "preprocessing": dict(found.settings)},
        )
    encoder = load_encoder(name, device=device, dtype=dtype)
    return VectorEmbedder(name=name, prepare=encoder.prepare, vectors=encoder.vectors, known=encoder.identity())


def kept(
    embedder: VectorEmbedder, source: Source, out: Path, progress: Callable[[int, int], None] | None = None
) -> Embedded:
    """Vectors of all images, in a directory that the same call continues.

    Raises:
        ImageError: If no image can be read.
        RunError: If the directory belongs to something else, is damaged or in use, or the disk refuses.
    """
    fields = {
        "kind": "vectors",
        "embedder": embedder.identity(),
        "data": {"source": source.name, "images": len(source), "ids": source.fingerprint()},
    }
    with Run.open(out, Manifest(fields, session(()))) as run:
        done = run.progress.get("finished", 0)
        while done < len(source):
            stop = min(done + _COMMIT, len(source))
            found = embedder.embed(source.select(range(done, stop)))
            values = pa.array(list(found.values.astype(np.float32)), pa.list_(pa.float32()))
            table = pa.table({"position": pa.array(found.positions + done, pa.int64()), "values": values})
            failures = [{"id": id, "reason": reason} for id, reason in found.failures]
            run.commit({COLUMN: table}, failures=failures, progress={"finished": stop})
            done = stop
            if progress is not None:
                progress(done, 0)
        table, failed = run.read(COLUMN), run.failures()
    if not table.num_rows:
        raise ImageError(
            f"None of {len(source)} images of {source.name} could be used. The first: {failed[0]['reason']}"
        )
    flat = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["values"].chunks])
    return Embedded(
        values=flat.reshape(table.num_rows, -1),
        positions=table["position"].to_numpy(),
        failures=tuple((each["id"], each["reason"]) for each in failed),
        calls=0,
    )


def columns_of(values: Float[np.ndarray, "n d"]) -> ArrayColumns:
    """Vectors as heads take them."""
    return ArrayColumns({COLUMN: values[:, None, :, None, None]})


def cost_of(embedder: VectorEmbedder | DiffusionEmbedder, source: Source) -> tuple[float | None, float | None]:
    """Seconds of an image with reading it, from the first ones, and its floating-point operations."""
    few = source.select(range(min(PILOT, len(source))))
    if isinstance(embedder, VectorEmbedder):
        embedder.embed(few.select([0]))  # the first is slow
        began = time.perf_counter()
        read = len(embedder.embed(few).positions)
        seconds = (time.perf_counter() - began) / max(read, 1)
        return seconds, flops_of(lambda: embedder.embed(few.select([0]))) if read else None

    def run(images: Source) -> int:
        chunks = embedder.extraction.run(images_from(images), batch_size=embedder.batch_size)
        return sum(len(chunk.positions) for chunk in chunks)

    run(few.select([0]))
    began = time.perf_counter()
    read = run(few)
    seconds = (time.perf_counter() - began) / max(read, 1)
    return seconds, flops_of(lambda: run(few.select([0]))) if read else None
