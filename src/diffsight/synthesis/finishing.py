"""From drawn images to a set that can be used: what is missing is made good, and all files that describe it."""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffsight.errors import RunError
from diffsight.store.disk import put, to_json, writing
from diffsight.store.manifest import session
from diffsight.store.run import Manifest, Run
from diffsight.synthesis.describing import readme
from diffsight.synthesis.figures import contact_sheets
from diffsight.synthesis.folder import (
    CARD,
    IMAGES,
    MANIFEST,
    PER_SHARD,
    README,
    Store,
    drop_empty,
    find_members,
    pack,
    sample_members,
    shard_name,
)
from diffsight.synthesis.ledger import Attempt, Ledger
from diffsight.synthesis.painting import Order, Painter, resized
from diffsight.synthesis.plan import Plan

log = logging.getLogger(__name__)


def manifest_of(plan: Plan, batch_size: int) -> Manifest:
    """What a set depends on, and what else is worth recording of a session."""
    facts = {"batch_size": batch_size, "model": plan.backbone.name, "device": str(plan.backbone.device)}
    return Manifest(plan.fingerprint(), session(("diffusers", "transformers", "pillow"), **facts))


def finish(run: Run, plan: Plan, ledger: Ledger, store: Store, painter: Painter, *, notes: Sequence[str] = ()) -> None:
    """Write all that describes a set; doing it again changes nothing.

    Raises:
        RunError: If not one image is kept, or the disk refuses.
    """
    kept, made, reasons = ledger.kept(), ledger.made(), ledger.reasons()
    if not kept:
        why = Counter(reason for given in reasons.values() for reason in given).most_common(1)
        raise RunError(
            f"Not one of {len(plan)} images of {store.out} is kept: most are dropped as {why[0][0]!r}. Loosen the "
            "filters, or choose another model."
        )
    missing = sorted(key for key in made if key not in kept)
    for label, index in missing:
        store.remove(label, index)
    weights = plan.backbone.identity().get("weights", "")
    rows = [_row(plan, each, reasons.get(key, []), weights) for key, each in sorted(kept.items())]
    if plan.settings.format == "folder":
        for each in kept.values():
            _make_good(plan, store, painter, each)
    else:
        rows = _packed(plan, store, painter, sorted(kept.values(), key=lambda one: (one.index, one.label)), rows)
    card = _card(plan, rows, missing, reasons, made)
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    with writing(store.out):
        put(store.out / MANIFEST, buffer.getvalue().to_pybytes())
        put(store.out / README, readme(card, rows, notes).encode())
        # Last: without it a set is not finished.
        put(store.out / CARD, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())
    run.finish({"images": len(rows), "missing": len(missing), "dropped": card["dropped"]})
    contact_sheets(store.out)


def _row(plan: Plan, each: Attempt, reasons: Sequence[str], weights: str) -> dict[str, Any]:
    settings = plan.settings
    return {
        "file": f"{IMAGES}/{plan.classes.folders[each.label]}/{each.index:05d}.png",
        "class": plan.classes.names[each.label],
        "label": each.label,
        "index": each.index,
        "attempt": each.attempt,
        "prompt": each.prompt,
        "guidance_scale": each.guidance_scale,
        "seed": settings.seed,
        "trick": each.trick,
        "domain": each.domain or "",
        "steps": settings.sampler.steps,
        "sampler": settings.sampler.name,
        "model": plan.backbone.name,
        "weights": weights,
        "width": each.width,
        "height": each.height,
        "resize": settings.resize or "",
        "flags": ",".join(reasons),
        "sha256": each.sha256,
        "rows": each.rows,
        "place": each.place,
    }


def _card(
    plan: Plan,
    rows: Sequence[Mapping[str, Any]],
    missing: Sequence[tuple[int, int]],
    reasons: Mapping[tuple[int, int], Sequence[str]],
    made: Counter[tuple[int, int]],
) -> dict[str, Any]:
    classes, images = plan.classes, Counter(row["label"] for row in rows)
    lost = Counter(label for label, _ in missing)
    return {
        "schema": 1,
        "synthetic": True,
        "version": version("diffsight"),
        "classes": [
            {"name": name, "folder": folder, "images": images[label], "missing": lost[label]}
            for label, (name, folder) in enumerate(zip(classes.names, classes.folders, strict=True))
        ],
        "images": len(rows),
        "missing": len(missing),
        "drawn": sum(made.values()),
        "dropped": dict(sorted(Counter(reason for given in reasons.values() for reason in given).items())),
        "tricks": dict(sorted(Counter(row["trick"] for row in rows).items())),
        "format": plan.settings.format,
        "settings": json.loads(to_json(plan.settings.to_dict(), "Settings")),
        "model": {"name": plan.backbone.name, **plan.backbone.identity()},
    }


def _make_good(plan: Plan, store: Store, painter: Painter, each: Attempt) -> None:
    """Draw a file again that is not there, or not as it was written."""
    if store.has(each.label, each.index, each.bytes):
        return
    log.info("%s is missing or damaged; it is drawn again.", store.path(each.label, each.index))
    order = Order(
        label=each.label,
        name=plan.classes.names[each.label],
        index=each.index,
        attempt=each.attempt,
        prescription=plan.prescription(each.label, each.index),
    )
    pixels = painter.again(order, rows=each.rows, place=each.place)
    store.write(each.label, each.index, resized(pixels, plan.settings.size, antialias=plan.settings.antialias))


def _packed(
    plan: Plan, store: Store, painter: Painter, kept: Sequence[Attempt], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Move images into shards, one after another, the classes mixed; a shard that is there is whole."""
    by_key = {(row["label"], row["index"]): row for row in rows}
    for number, start in enumerate(range(0, len(kept), PER_SHARD)):
        chunk, shard = kept[start : start + PER_SHARD], store.out / shard_name(number)
        keys = [f"{start + place:08d}" for place in range(len(chunk))]
        if not shard.exists():
            members = []
            for key, each in zip(keys, chunk, strict=True):
                _make_good(plan, store, painter, each)
                image = store.path(each.label, each.index).read_bytes()
                members += sample_members(key, image, _without_file(by_key[each.label, each.index]))
            pack(shard, members)
        places = find_members(shard)
        for key, each in zip(keys, chunk, strict=True):
            if f"{key}.png" not in places:
                raise RunError(f"{shard} is of another set. Remove it: the same command makes it again.")
            offset, length = places[f"{key}.png"]
            by_key[each.label, each.index] |= {
                "file": f"{shard_name(number)}:{key}.png",
                "offset": offset,
                "length": length,
            }
            store.remove(each.label, each.index)
    drop_empty(store.out, plan.classes.folders)
    return [by_key[key] for key in sorted(by_key)]


def _without_file(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "file"}
