"""Tables and pictures of the benchmark of synthesis."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from synthesis_parts import BOTH, DISTILLED, REAL, SINGLE_FILTERS, Part
from synthesis_sets import FILTERS, TRICKS, Bench, same_set, unpack
from zero_shot import say

from diffsight.store.disk import make

Results = Mapping[Part, Mapping[str, Any]]
_ZOOM, _GAP, _TEXT = 2, 2, 13


def percent(value: float | None) -> str:
    """A share, or a dash."""
    return "–" if value is None else f"{value:.1%}"


def with_interval(found: Mapping[str, float]) -> str:
    """A share with its 95 % interval."""
    return f"{found['value']:.1%} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    if not values:
        return "–"
    more = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{more}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    say(f"\n| {' | '.join(head)} |\n|---|" + "---|" * (len(head) - 1))
    for row in rows:
        say(f"| {' | '.join(row)} |")


def trained(found: Results, name: str, network: str) -> list[Mapping[str, Any]]:
    """The results of all seeds of a network on a set."""
    return [one for part, one in found.items() if (part.kind, part.name, part.network) == ("train", name, network)]


def show(bench: Bench, found: Results) -> None:
    """Print what is finished."""
    sets = {part.name: one for part, one in found.items() if part.kind == "set"}
    _show_accuracy(bench, found)
    _show_filters(bench, found, sets)
    _show_sets(bench, found, sets)
    _show_diversity(found)
    _show_speed(found)


def _show_accuracy(bench: Bench, found: Results) -> None:
    networks = list(bench.networks)
    gdc = {part.name: one for part, one in found.items() if part.kind == "gdc"}
    tested = max([one["tested"] for one in found.values() if "tested" in one], default=0)
    say(f"\nTop-1 on {tested:,} real test photographs; mean ± standard deviation over {bench.seeds} seeds.")
    rows = []
    for name in (*TRICKS, DISTILLED, BOTH, REAL):
        runs = {network: trained(found, name, network) for network in networks}
        some = next((one for of_network in runs.values() for one in of_network), None)
        if some is None and name not in gdc:
            continue
        images = some["images"] if some else gdc[name]["images"]
        cells = [spread([one["top1"] for one in runs[network]]) for network in networks]
        cells += [percent(_mean([one["validation"]["accuracy"] for one in runs[networks[0]] if one["validation"]]))]
        # Only some trainings are adapted: the gain is over the same ones.
        gains = [one["adapted"] - one["top1"] for one in runs[networks[0]] if one["adapted"] is not None]
        cells += [
            f"{100 * statistics.mean(gains):+.1f}" if gains else "–",
            with_interval(gdc[name]["top1"]) if name in gdc else "–",
        ]
        rows.append([_titled(name), f"{images:,}", *cells])
    first = networks[0]
    head = ["trained on", "images", *networks, f"{first}, held out", f"{first}, gain by AdaBN (transductive)", "GDC"]
    table(head, rows)
    for part, one in found.items():
        if part.kind == "zero-shot":
            say(
                f"\nZero-shot classifier, default policy: {with_interval(one['top1'])} on the first {one['tested']:,} "
                f"test photographs, {one['calls']['mean']:.1f} calls per image."
            )
        if (part.kind, part.name) == ("set", DISTILLED):
            say(
                f"\nDistilled: {one['images']:,} unlabelled training photographs, labelled with at most {bench.draws} "
                f"draws ({one['calls'] / one['images']:.1f} calls per image); {one['right'] / one['images']:.1%} of "
                "the labels are right."
            )


def _titled(name: str) -> str:
    titles = {
        REAL: "real photographs (ceiling)",
        DISTILLED: "photographs labelled by the model (distilled)",
        BOTH: "the same and merged (distilled)",
        "multi-domain": "multi-domain, the model's six",
        "multi-domain-paper": "multi-domain, the paper's",
        "base-7.5": "base, guidance 7.5",
    }
    return titles.get(name, name)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.mean(values) if values else None


def _show_filters(bench: Bench, found: Results, sets: Mapping[str, Mapping[str, Any]]) -> None:
    rows, network = [], bench.networks[0]
    usual = sets.get("filters-usual", {}).get("dropped")
    for name in FILTERS:
        same = same_set(name, usual) if name in SINGLE_FILTERS and usual is not None else name
        if same not in sets:
            continue
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sets[same]["dropped"].items()) or "nothing"
        runs = trained(found, same, network)
        score = spread([one["top1"] for one in runs])
        images = f"{sets[same]['images']:,} of {sets[same]['drawn']:,}"
        more = "" if same == name else f" (the same images as {same.removeprefix('filters-')})"
        rows.append([f"{name.removeprefix('filters-')}{more}", images, dropped, score])
    if rows:
        say(f"\nFilters on the trick {bench.filter_trick}, {bench.filter_per_class:,} images of each class.")
        table(["filters", "kept of drawn", "dropped", network], rows)


def _show_sets(bench: Bench, found: Results, sets: Mapping[str, Mapping[str, Any]]) -> None:
    rows = []
    for name, one in sets.items():
        if "drawn" in one:
            rate = one["drawn"] / max(one["seconds"], 1e-9)
            domains = ", ".join(one["domains"]) or "–"
            cells = [f"{one['images']:,}", f"{one['missing']:,}", f"{one['calls']:,}", f"{one['seconds']:.0f}"]
            rows.append([name, *cells, f"{rate:.0f}", domains])
    if rows:
        say("\nSets, as they were drawn, maybe beside other processes.")
        table(["set", "images", "missing", "calls of its last session", "seconds", "images/s", "domains"], rows)
    times = [one["seconds"] for part, one in found.items() if part.kind == "train"]
    if times:
        say(f"\n{len(times)} trainings, {statistics.mean(times):.0f} s each on average, {max(times):.0f} s at most.")


def _show_diversity(found: Results) -> None:
    rows, real, features = [], None, ""
    for part, one in found.items():
        if part.kind == "diversity":
            oracle, real, features = one["oracle"], one["real"], one["features"]
            values = [f"{one['pooled']['vendi']:.1f}", f"{one['pooled']['cosine']:.3f}"]
            values += [f"{with_interval(one['agreement'])}", f"{oracle['fid']:.4g}", f"{oracle['kid']['value']:.4g}"]
            values += [percent(oracle[key]) for key in ("precision", "recall")]
            values += [f"{oracle['density']:.2f}", percent(oracle["coverage"])]
            rows.append([part.name, *values])
    if real is None:
        return
    rows.append(["real test photographs", f"{real['vendi']:.1f}", f"{real['cosine']:.3f}", *["–"] * 7])
    say(
        f"\nDiversity of {real['images']:,} images of each set, the same number of each class, by {features}. Vendi "
        "grows with the number of images. FID and what follows need real images: oracle; with these features they "
        "are no Inception distances. The label agreement is the generator's own."
    )
    oracle_head = [f"oracle {name}" for name in ("FID", "KID", "precision", "recall", "density", "coverage")]
    table(["set", f"Vendi (n = {real['images']:,})", "mean cosine", "label agreement", *oracle_head], rows)


def _show_speed(found: Results) -> None:
    for part, one in found.items():
        if part.kind == "draw-speed":
            rates = one["images_per_second"]
            say(
                f"\nDrawing, batches of {one['batch']:,}, {one['steps']} steps of dpm++, guidance "
                f"{one['guidance_scale']:g}, {one['dtype']}, {one['device']}; medians of {one['repeats']}."
            )
            plain = rates["diffusers"]
            table(["", "images/s", "of diffusers'"], [[n, f"{r:.1f}", f"{r / plain:.2f}"] for n, r in rates.items()])
        if part.kind == "use-speed":
            _show_use(found, one)


def _show_use(found: Results, one: Mapping[str, Any]) -> None:
    zero_shot = next(row for row in one["rows"] if row["what"] == "zero-shot")
    score = next((each["top1"]["value"] for part, each in found.items() if part.kind == "zero-shot"), None)
    rows = []
    for row in one["rows"]:
        network = row["what"].partition(",")[0]
        merged = _mean([each["top1"] for each in trained(found, "merged", network)])
        if "failed" in row:
            rows.append([row["what"], row["failed"], *["–"] * 5])
            continue
        rate = row["prepared"]
        cells = [f"{row[key]:,.0f}" if key in row else "–" for key in ("with_preparing", "single")]
        shown = percent(score if row["what"] == "zero-shot" else merged)
        rows.append(
            [row["what"], row["device"], shown, f"{rate:,.1f}", *cells, f"{rate / zero_shot['prepared']:,.0f}×"]
        )
    say(f"\nInference, batches of {one['batch']}; {one['threads']} threads on the CPU. Networks learnt from merged.")
    head = ["", "device", "top-1", "images/s", "with resizing", "one at a time", "of zero-shot's"]
    table(head, rows)


def draw_figures(bench: Bench, folder: Path) -> Iterator[Path]:
    """Write a picture of each set, and one of all, in grey and small enough for the documentation."""
    make(folder.resolve())
    samples = {
        name: unpack(path)
        for name in TRICKS
        if (path := bench.work / "samples" / f"{bench.set_key(name)}.npz").exists()
    }
    if not samples:
        return
    yield _drawn(samples, 4, folder / "synthesis-tricks.png", across=2)
    for name in samples:
        yield _drawn({name: samples[name]}, 12, folder / f"synthesis-{name}.png", across=1)


def _drawn(samples: Mapping[str, Any], columns: int, path: Path, *, across: int) -> Path:
    """A block for each set, some beside each other: a row for each class with its first images."""
    font = ImageFont.load_default(_TEXT)
    names = next(iter(samples.values())).class_names
    side = _ZOOM * next(iter(samples.values())).source[0].load().width + _GAP
    left = int(max(font.getlength(name) for name in names)) + 3 * _GAP
    head, block = _TEXT + 4 * _GAP, columns * side + 4 * _GAP
    across = len(samples) if across == 2 else across
    sheet = Image.new("L", (left + across * block, head + len(names) * side), 255)
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        pen.text((_GAP, head + row * side + (side - _TEXT) // 2), name, fill=20, font=font)
    for place, (title, images) in enumerate(samples.items()):
        x = left + place * block
        pen.text((x, _GAP), title, fill=20, font=font)
        for row in range(len(names)):
            for column, number in enumerate(np.flatnonzero(images.labels == row)[:columns].tolist()):
                tile = images.source[number].load().convert("L")
                tile = tile.resize((side - _GAP, side - _GAP), Image.Resampling.NEAREST)
                sheet.paste(tile, (x + column * side, head + row * side))
    sheet.save(path, optimize=True)
    return path
