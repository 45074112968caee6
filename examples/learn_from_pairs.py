"""Learn from a few images with a right and a wrong caption, and measure on others what that brought.

    python examples/learn_from_pairs.py OUT [QUERIES [MODEL]]

QUERIES is a file with a line for each image: {"image": "photo.jpg", "texts": ["a cat", "a dog"], "positive": 0}.
Without it scenes are drawn, of the kind that tiny-shapes knows, which is in the package and runs offline. OUT gets the
adapter, for `diffsight match run QUERIES --adapter OUT/adapter.safetensors`.
"""

import sys
from pathlib import Path

import numpy as np

from diffsight import ImageTextMatcher, MatchSettings, Query, fit_adapter, load
from diffsight.data.manifests import read_manifest, write_manifest
from diffsight.data.scenes import caption, draw, random_scene
from diffsight.data.splits import few_shot_queries
from diffsight.matching.adapters import save_adapter


def draw_queries(folder: Path) -> Path:
    """Draw 80 scenes of two things, of which the captions tell of one; the wrong one gives it the other's colour."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, queries = np.random.default_rng(0), []
    for number in range(80):
        scene, file = random_scene(rng, differs=("shape", "colour")), folder / f"{number}.png"
        draw(scene).save(file)
        thing, other = scene.things
        texts = [caption([thing], ("colour", "shape"), changed) for changed in (None, [{"colour": other.colour}])]
        right = number % 2
        queries.append(Query(id=str(number), images=(file,), texts=tuple(texts[:: 1 - 2 * right]), positive=right))
    write_manifest(folder / "queries.jsonl", queries)
    return folder / "queries.jsonl"


def main(out: str, queries: str | None = None, model: str = "tiny-shapes") -> None:
    """Learn from half of the queries, and ask the others without and with what was learnt."""
    manifest = read_manifest(queries or draw_queries(Path(out) / "scenes"))
    learnt, rest = few_shot_queries(manifest.queries, count=len(manifest.queries) // 2, seed=0)
    backbone, settings = load(model), MatchSettings(draws=8)

    adapter = fit_adapter(backbone, [manifest.queries[place] for place in learnt], settings=settings)
    file = save_adapter(adapter, Path(out) / "adapter")

    held = [manifest.queries[place] for place in rest]
    for name, given in (("zero-shot", None), ("fitted", file)):
        matcher = ImageTextMatcher(backbone, settings=settings, adapter=given)
        right = [match.best == query.positive for match, query in zip(matcher.match(held), held, strict=True)]
        sys.stdout.write(f"{name}: {np.mean(right):.0%} of {len(held)} queries that were not learnt from\n")
    sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
