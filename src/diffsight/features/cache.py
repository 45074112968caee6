"""Features on disk: written in shards that are whole or absent, continued after any interruption, read as memory maps.

::

    manifest.json                  what the numbers depend on: the model, the layers, the noise, the images, …
    shard-00003.safetensors        some hundred images: for each column (images, views, channels, height, width)
    seconds.json                   how long that took

A shard says in its header which images it holds, which failed and why, and to which manifest it belongs. A cache is
complete when its shards reach the last image. In a directory of caches each has the name of its fingerprint, so that
another model, layer, dtype or photograph finds another cache, and never a stale one.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffsight.backbones.encoding import by_content
from diffsight.backbones.layers import profile
from diffsight.data.images import Images, images_from
from diffsight.data.sources import Source
from diffsight.errors import ImageError, InputError, NumericsError, RunError
from diffsight.features.extraction import GROUP, Chunk, Extraction, Failure
from diffsight.store.disk import damaged, digest, lock, make, put, to_json, writing
from diffsight.store.manifest import Manifest, check_same, read_manifest, write_manifest
from diffsight.store.stopwatch import FILE, Stopwatch

VERSION = 1  # Raised with every change that changes numbers.
STORAGES = {"fp32": torch.float32, "fp16": torch.float16}
_SHARD_BYTES = 64 * 2**20
_SHARD_IMAGES = 4096
_TIMED = "extraction"


@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureCache:
    """Features of images, larger than memory if need be: only what is asked for is read.

    Attributes:
        path: Its directory.
        shapes: For each column (views, channels, height, width).
        positions: The place of each row's image among the images that were asked for: those that failed have no row.
        failures: The images without features.
    """

    path: Path
    shapes: Mapping[str, tuple[int, int, int, int]]
    positions: Int[np.ndarray, " n"]
    failures: tuple[Failure, ...]
    shards: tuple[Path, ...]
    ends: Int[np.ndarray, " shards"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, such as ``dec.4@90``, in the order asked for."""
        return tuple(self.shapes)

    @property
    def views(self) -> int:
        """Feature vectors of each image in a column."""
        return next(iter(self.shapes.values()))[0]

    @property
    def seconds(self) -> float | None:
        """Wall time that they took, with reading the images; None where it was not recorded."""
        return Stopwatch(self.path / FILE).spent(_TIMED) or None

    def __len__(self) -> int:
        return len(self.positions)

    def shape(self, column: str) -> tuple[int, int, int]:
        """Channels, height and width of a column.

        Raises:
            InputError: If there is no such column.
        """
        if column not in self.shapes:
            raise InputError(f"These features have no column {column!r}. They have {', '.join(self.shapes)}.")
        return self.shapes[column][1:]

    def rows(self, column: str, indices: Int[np.ndarray, " b"], view: int = 0) -> Float[Tensor, "b c h w"]:
        """Read some rows of a column.

        Args:
            column: Its name.
            indices: Rows from 0 to ``len(self) - 1``, in any order.
            view: Which view of each image.

        Returns:
            fp32, on the CPU.
        """
        shape = self.shape(column)
        result = torch.empty(len(indices), *shape)
        shard = np.searchsorted(self.ends, indices, side="right")
        for number in np.unique(shard).tolist():
            here = np.flatnonzero(shard == number)
            first = int(self.ends[number - 1]) if number else 0
            result[here] = self._maps[number][column][indices[here] - first, view].float()
        return result

    @cached_property
    def _maps(self) -> list[dict[str, Tensor]]:
        maps = []
        for path in self.shards:
            with _opened(path) as file:
                maps.append({name: file.get_tensor(name) for name in self.shapes})
        return maps


def extract(
    extraction: Extraction,
    images: Any,  # noqa: ANN401
    *,
    out: Path | str | None = None,
    root: Path | str | None = None,
    batch_size: int = 64,
    storage: str = "fp32",
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Extract features into a cache, continuing what is there; nothing is computed if it is complete.

    Args:
        extraction: What to take, from `plan`.
        images: A `Source`, or whatever `images_from` takes.
        out: The cache's directory.
        root: Instead, a directory of caches, in which this one gets the name of its fingerprint. Without either it is
            ``$DIFFSIGHT_CACHE`` or ``~/.cache/diffsight/features``.
        batch_size: Rows of the denoiser in one call; does not change results.
        storage: ``"fp32"``, or ``"fp16"`` for half the disk.
        progress: Called with (images finished, denoiser calls so far).

    Raises:
        RunError: If ``out`` holds something else or features of other settings (the differences are listed), is damaged
            or in use, or the disk refuses. What was finished is safe.
        ImageError: If no image has features.
        NumericsError: If a feature is too large for fp16.
        InputError: If the storage is unknown, or both ``out`` and ``root`` are given.
    """
    kept_as = find_storage(storage)
    if out is not None and root is not None:
        raise InputError("Give out, the cache's directory, or root, the directory of caches, and not both.")
    items = images_from(images)
    fields = {"version": VERSION, **extraction.fingerprint(), "storage": storage}
    fields["images"] = {"count": len(items), "content": content(images, items)}
    manifest = Manifest(fields, {"model": extraction.backbone.name, "columns": list(extraction.columns)})
    path = Path(out) if out is not None else cache_root(root) / manifest.fingerprint[:32]
    with writing(path):
        strangers = set(os.listdir(path)) - {".lock", "manifest.json"} if path.is_dir() else set()
        if strangers and not (path / "manifest.json").exists():
            raise RunError(f"{path} holds {min(strangers)!r} but no manifest.json, so it is no cache. Give another.")
        make(path)
        held = lock(path)
    try:
        if (path / "manifest.json").exists():
            check_same(path, read_manifest(path / "manifest.json")[0], manifest, what="cache")
        else:
            with writing(path):
                write_manifest(path / "manifest.json", manifest, [manifest.recorded])
        done = _finished(path, manifest.fingerprint)
        number, start = len(done), done[-1]["stop"] if done else 0
        begun, size = start, shard_images(extraction, kept_as) if start < len(items) else 0
        while start < len(items):
            chunks, started = [], time.perf_counter()
            for chunk in extraction.run(items, batch_size=batch_size, start=start, stop=start + size):
                chunks.append(chunk)
                if progress is not None:
                    progress(chunk.stop, (chunk.stop - begun) * extraction.calls_per_image)
            seconds = time.perf_counter() - started
            _write(_shard(path, number), chunks, manifest.fingerprint, kept_as)
            Stopwatch(path / FILE).add(_TIMED, seconds)
            number, start = number + 1, chunks[-1].stop
    finally:
        held.close()
    return load_cache(path)


def load_cache(path: Path | str) -> FeatureCache:
    """Open a cache for reading.

    Raises:
        RunError: If it is none, is unfinished, or a shard is damaged.
        ImageError: If no image has features.
    """
    path = Path(path)
    if not (path / "manifest.json").exists():
        raise RunError(f"{path} is no cache of features: it has no manifest.json.")
    manifest, sessions = read_manifest(path / "manifest.json")
    headers = _finished(path, manifest.fingerprint)
    finished, count = headers[-1]["stop"] if headers else 0, manifest.fingerprint_fields["images"]["count"]
    if finished != count:
        raise RunError(
            f"{path} has the features of the first {finished} of {count} images: it was interrupted, or a shard is "
            "missing. The command that made it goes on from there."
        )
    failures = tuple(Failure(**failure) for header in headers for failure in header["failures"])
    positions = [header["positions"] for header in headers]
    filled = [number for number, rows in enumerate(positions) if rows]
    if not filled:
        raise ImageError(f"None of {count} images could be used. The first: {failures[0].reason}")
    shards = tuple(_shard(path, number) for number in filled)
    with _opened(shards[0]) as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()[1:]) for name in sessions[0]["columns"]}
    return FeatureCache(
        path=path,
        shapes=shapes,
        positions=np.array([row for rows in positions for row in rows], dtype=np.int64),
        failures=failures,
        shards=shards,
        ends=np.cumsum([len(positions[number]) for number in filled]),
    )


def find_storage(name: str) -> torch.dtype:
    """What features are kept as, by its name in `STORAGES`.

    Raises:
        InputError: If there is no such storage.
    """
    if name not in STORAGES:
        raise InputError(f"Unknown storage {name!r}: features are kept as {' or '.join(STORAGES)}.")
    return STORAGES[name]


def cache_root(root: Path | str | None = None) -> Path:
    """Where caches go: what is given, ``$DIFFSIGHT_CACHE``, or ``~/.cache/diffsight/features``."""
    return Path(root or os.environ.get("DIFFSIGHT_CACHE") or "~/.cache/diffsight/features").expanduser()


def content(images: Any, items: Images) -> str:  # noqa: ANN401
    """What the images are, whatever they are called: files by their bytes, all else by its pixels."""
    if isinstance(images, Source):
        return images.content()
    ids: list[str] = []
    for _ in by_content(items, ids):
        pass
    return digest("\n".join(ids).encode())[:32]


def column_shapes(extraction: Extraction) -> dict[str, tuple[int, int, int, int]]:
    """For each column (views, channels, height, width), without computing anything."""
    shapes = [found.shape for found in profile(extraction.backbone, extraction.layers)]
    pooled = [
        (c, h, w) if extraction.pool.size is None else (c, min(h, extraction.pool.size), min(w, extraction.pool.size))
        for c, h, w in shapes
    ]
    return dict(
        zip(
            extraction.columns,
            [(extraction.stored_views, *shape) for shape in pooled] * len(extraction.levels),
            strict=True,
        )
    )


def bytes_per_image(extraction: Extraction, storage: torch.dtype = torch.float32) -> int:
    """Room on the disk that the features of an image take."""
    return sum(int(np.prod(shape)) for shape in column_shapes(extraction).values()) * storage.itemsize


def shard_images(extraction: Extraction, storage: torch.dtype) -> int:
    """How many images make a shard: about 64 MB, cut where the groups of images are cut."""
    images = min(_SHARD_IMAGES, _SHARD_BYTES // max(1, bytes_per_image(extraction, storage)))
    return max(1, images // GROUP) * GROUP


def _shard(path: Path, number: int) -> Path:
    return path / f"shard-{number:05d}.safetensors"


def _opened(path: Path) -> Any:  # noqa: ANN401
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise damaged(path, f"it is not a shard of features ({error})") from error


def _write(path: Path, chunks: Sequence[Chunk], fingerprint: str, storage: torch.dtype) -> None:
    """Put a shard in place, whole or not at all."""
    filled = [chunk for chunk in chunks if chunk.positions]
    names = filled[0].features if filled else ()
    columns = {name: torch.cat([chunk.features[name] for chunk in filled]).to(storage) for name in names}
    for name, column in columns.items():
        if not column.isfinite().all():
            raise NumericsError(f"A feature of {name} is too large for fp16 (over 65,504). Use storage fp32.")
    header = {
        "fingerprint": fingerprint,
        "positions": [position for chunk in chunks for position in chunk.positions],
        "failures": [{"position": one.position, "reason": one.reason} for chunk in chunks for one in chunk.failures],
        "start": chunks[0].start,
        "stop": chunks[-1].stop,
    }
    with writing(path.parent):
        put(path, safetensors.torch.save(columns, {"diffsight": to_json(header, "A shard's header")}))


def _finished(path: Path, fingerprint: str) -> list[dict[str, Any]]:
    """Headers of the shards that are there, which must follow one another and belong to the manifest."""
    headers = []
    while (shard := _shard(path, len(headers))).exists():
        with _opened(shard) as file:
            try:
                header = json.loads(file.metadata()["diffsight"])
                foreign = header["fingerprint"] != fingerprint
            except (TypeError, KeyError, ValueError) as error:
                raise damaged(shard, "its header is not one of diffsight") from error
        if foreign or header["start"] != (headers[-1]["stop"] if headers else 0):
            raise damaged(shard, "it belongs to another cache or another place in it")
        headers.append(header)
    return headers
