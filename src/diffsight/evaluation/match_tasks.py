"""Tasks of image–text matching by name: generated attribute binding, published benchmarks, manifests of one's own."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType

from PIL import Image

from diffsight.data.binding import TASKS, binding_examples
from diffsight.data.compositional import BENCHMARKS, read_benchmark
from diffsight.data.manifests import Failure, Manifest, read_manifest
from diffsight.data.queries import Crop, Picture, Query
from diffsight.data.scenes import draw
from diffsight.errors import InputError, nearest

# Version of each generated task: raised with every change that changes its pictures or captions.
BINDING_VERSION = 2
# As many as Clark & Jaini made of each.
EXAMPLES = 1000

BINDING: Mapping[str, str] = MappingProxyType(
    {
        "binding": "which caption is true of a scene: 20 tests of attribute binding after Clark & Jaini",
        "binding-held-out": "the same on combinations of shape and colour that tiny-shapes has never seen",
        "binding-images": "the same scenes, the other way: of which of two scenes a caption is true",
        "binding-images-held-out": "the same on combinations of shape and colour that tiny-shapes has never seen",
    }
)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class MatchTask:
    """Queries with right answers, or without.

    Attributes:
        name: What it is called.
        version: Raised with every change that changes numbers.
        queries: What is asked.
        failures: Rows of the data that are no query.
        licence: Of the data.
        citation: Of the data.
    """

    name: str
    version: int
    queries: tuple[Query, ...] = field(repr=False)
    failures: tuple[Failure, ...] = field(default=(), repr=False)
    licence: str = "not stated"
    citation: str = ""

    def limited(self, count: int | None) -> "MatchTask":
        """Only the first queries of each kind, a kind being the first tag.

        Raises:
            InputError: If ``count`` is no number of queries.
        """
        if count is None:
            return self
        if count < 1:
            raise InputError(f"limit is {count}; it is a number of queries, at least 1.")
        seen: dict[str, int] = {}
        kept = []
        for query in self.queries:
            kind = query.tags[0] if query.tags else ""
            seen[kind] = seen.get(kind, 0) + 1
            if seen[kind] <= count:
                kept.append(query)
        return replace(self, queries=tuple(kept))

    def fingerprint(self) -> str:
        """A hash of all that is asked: ids, texts, right answers, and the contents of the images."""
        digest = hashlib.sha256()
        for query in self.queries:
            asked = (query.id, query.texts, query.positive, query.tags, [_content(one) for one in query.images])
            digest.update(repr(asked).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def load_match_task(
    name: str, *, data: str | Path | None = None, images: str | Path | None = None, limit: int | None = None
) -> MatchTask:
    """Load a task.

    Args:
        name: ``binding`` or another of `BINDING`, perhaps with one test of it (``"binding/colour|shape"``); a benchmark
            of `diffsight.data.compositional.BENCHMARKS`, whose local copy is ``data``; or a manifest's file.
        data: Folder of a benchmark's local copy.
        images: Folder of a manifest's images, if not the manifest's own.
        limit: Only the first queries of each kind.

    Raises:
        InputError: If there is no such task.
        SourceError: If its data is not there.
    """
    whole, _, part = name.partition("/")
    if whole in BINDING:
        if part and part not in TASKS:
            raise InputError(f"{whole} has no test {part!r}. {nearest(part, TASKS)}")
        return _binding(whole, (part,) if part else TASKS, min(limit or EXAMPLES, EXAMPLES))
    if name in BENCHMARKS:
        if data is None:
            raise InputError(
                f"{name} needs a local copy of its data: {BENCHMARKS[name].layout} Give its folder (--data)."
            )
        known = BENCHMARKS[name]
        return _of(read_benchmark(name, Path(data)), licence=known.licence, citation=known.citation).limited(limit)
    if not Path(name).suffix and not Path(name).exists():
        raise InputError(
            f"There is no matching task {name!r}. {nearest(name, [*BINDING, *BENCHMARKS])} A task is also a file of "
            "queries (.jsonl, .json, .csv or .parquet)."
        )
    return _of(read_manifest(Path(name), images=images)).limited(limit)


def _of(manifest: Manifest, *, licence: str = "not stated", citation: str = "") -> MatchTask:
    return MatchTask(
        name=manifest.name,
        version=1,
        queries=manifest.queries,
        failures=manifest.failures,
        licence=licence,
        citation=citation,
    )


@lru_cache(maxsize=4)  # Seconds to draw, always the same, and asked for again by every step of a session.
def _binding(name: str, tests: tuple[str, ...], count: int) -> MatchTask:
    """Each test's examples; the right candidate is first in every second one."""
    queries = []
    make = partial(binding_examples, count=count, held_out=name.endswith("held-out"))
    for test in tests:
        for number, example in enumerate(make(test)):
            positive = number % 2
            if name.startswith("binding-images"):
                pictures = (draw(example.scene), draw(example.changed))
                images, texts = pictures[:: 1 - 2 * positive], (example.true,)
            else:
                images, texts = (draw(example.scene),), (example.true, example.false)[:: 1 - 2 * positive]
            queries.append(Query(id=f"{test}/{number}", images=images, texts=texts, positive=positive, tags=(test,)))
    return MatchTask(
        name=name,
        version=BINDING_VERSION,
        queries=tuple(queries),
        licence="Apache-2.0 (rendered by diffsight)",
        citation="after Clark & Jaini, NeurIPS 2023, arXiv:2303.15233, Table 3",
    )


def _content(picture: Picture) -> str:
    """What tells whether an image is still the same; a file that cannot be read is its own content."""
    if isinstance(picture, Image.Image):
        return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()
    path, box = (picture.path, picture.box) if isinstance(picture, Crop) else (picture, None)
    try:
        with Path(path).open("rb") as file:
            return f"{hashlib.file_digest(file, 'sha256').hexdigest()} {box}"
    except OSError:
        return f"unreadable {box}"
