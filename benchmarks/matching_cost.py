"""What matching costs: calls and seconds of a query, and memory of reading attention, as ratios within one run.

    python benchmarks/matching_cost.py [--out runs/matching-cost.json]

(a) One image and n captions by pmi: the empty caption run once per draw for all of them, as the library does, against
    once for each caption; and with the default settings, which drop captions early where there are many.
(b) One pass of a network of Stable Diffusion's shape, with few channels and random weights, 64×64 latents and 77
    tokens: attention left alone; read as a stream by the library; with the maps of the same layers kept, by diffusers'
    attention that makes maps, in these layers alone; and by that one in all layers, as published code does it.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor
from zero_shot import say

from diffsight.backbones import load
from diffsight.backbones.base import resolve_device
from diffsight.backbones.encoding import by_content, encode_images
from diffsight.data.images import images_from
from diffsight.data.scenes import VALUES, draw, random_scene
from diffsight.matching.attention import AttentionLayer, AttentionProbe, Pooling, attention_layers, default_layers
from diffsight.matching.matcher import ImageTextMatcher
from diffsight.matching.settings import MatchSettings, levels_of, make_scorer
from diffsight.matching.statistics import Ledger, Wanted
from diffsight.scoring.elimination import Exhaustive

GIB = 2**30


def in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, after one run that does not count; in turns, as a machine's speed moves."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def queries(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Calls and seconds of a query with and without shared rows of the empty caption."""
    backbone, settings = load(args.model, device=args.device), MatchSettings(draws=args.draws)
    picture = draw(random_scene(np.random.default_rng(0)))
    (image,) = encode_images(backbone, by_content(images_from([picture]), []))
    names = [
        f"A {size} {colour} {shape}"
        for size, colour, shape in product(VALUES["size"], VALUES["colour"], VALUES["shape"])
    ]
    draws = range(settings.draws)
    levels = levels_of(settings, Exhaustive(num_draws=settings.draws), backbone)
    say(f"(a) one image and n captions, pmi, {settings.draws} draws, {args.model} on {backbone.device}\n")
    say("| captions | calls, shared | apart | ratio | seconds, shared | apart | ratio | calls, default settings |")
    say("|---|---|---|---|---|---|---|---|")
    rows = []
    for count in args.captions:
        texts, zeros = names[:count], np.zeros(count, dtype=np.int64)
        # Further empty captions of the same model: one for each pair.
        scorer = make_scorer(backbone, settings, (*texts, *[""] * count), levels)

        def measured(apart: bool, scorer=scorer, zeros=zeros, count=count) -> int:  # noqa: ANN001
            ledger = Ledger(scorer=scorer, images=[image], draws=settings.draws, batch_size=args.batch_size)
            places = np.arange(count)
            empty = Wanted(zeros, count + places, draws) if apart else Wanted(zeros[:1], np.array([ledger.null]), draws)
            ledger.measure([Wanted(zeros, places, draws), empty])
            return ledger.calls

        shared, apart = measured(False), measured(True)
        runs = {"shared": lambda run=measured: run(False), "apart": lambda run=measured: run(True)}
        seconds = in_turns(runs, args.repeats)
        matcher = ImageTextMatcher(backbone, settings=settings, batch_size=args.batch_size)
        matcher.score(picture, texts)
        if matcher.calls != shared:
            say(f"    the matcher itself made {matcher.calls} calls")
        everything = matcher.calls
        matcher.rank(picture, texts)
        row = {"captions": count, "shared": shared, "apart": apart, "seconds": seconds}
        rows.append(row | {"matcher": everything, "default": matcher.calls - everything})
        cells = [f"{count}", f"{shared:,}", f"{apart:,}", f"{apart / shared:.2f}", f"{seconds['shared']:.2f}"]
        cells += [f"{seconds['apart']:.2f}", f"{seconds['apart'] / seconds['shared']:.2f}"]
        say(f"| {' | '.join(cells)} | {matcher.calls - everything:,} |")
    return rows


def random_unet(channels: tuple[int, ...], device: torch.device) -> UNet2DConditionModel:
    """A network of Stable Diffusion's shape with random weights: 8 heads, text read at 16 places."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=64,
            block_out_channels=channels,
            cross_attention_dim=channels[-1],
            attention_head_dim=8,
            norm_num_groups=min(32, channels[0]),
        )
    return unet.eval().requires_grad_(False)


@contextmanager
def keeping(
    unet: UNet2DConditionModel, layers: tuple[AttentionLayer, ...], *, everywhere: bool
) -> Iterator[list[Tensor]]:
    """Keep whole maps of some layers, by attention that makes them: in these layers, or in all of the network."""
    maps: list[Tensor] = []
    kept = {layer.path for layer in layers}
    modules = {name: one for name, one in unet.named_modules() if isinstance(one, Attention)}
    before = {name: one.processor for name, one in modules.items()}

    def remember(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any) -> Tensor:  # noqa: ANN401 - as diffusers'
            maps.append(make(*args))
            return maps[-1]

        return made

    for name, one in modules.items():
        if everywhere or name in kept:
            one.set_processor(AttnProcessor())
        if name in kept:
            one.get_attention_scores = remember(one.get_attention_scores)
    try:
        yield maps
    finally:
        for name, one in modules.items():
            one.set_processor(before[name])
            vars(one).pop("get_attention_scores", None)


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """The most memory that tensors have while something runs, beyond what they had before.

    On a CPU this is the sum of all allocations and releases that PyTorch's profiler saw; on a GPU what its allocator
    counted.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(changes).max(initial=0))


def attention(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory and seconds of a pass that reads attention in several ways."""
    device = resolve_device(args.device)
    unet = random_unet(tuple(args.channels), device)
    some, every = default_layers(unet), attention_layers(unet)
    say(
        f"\n(b) a pass of a network of {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters on {device}\n"
    )
    say("| rows | attention | peak, MiB | more than alone, MiB | maps kept, MiB | seconds | × alone |")
    say("|---|---|---|---|---|---|---|")
    rows = []
    for batch in args.rows:
        x = torch.randn(batch, 4, 64, 64, device=device)
        text = torch.randn(batch, 77, args.channels[-1], device=device)
        sizes: dict[str, int] = {}

        @torch.no_grad()
        def forward(name: str, how: Callable[[], AbstractContextManager[Any]], x=x, text=text, sizes=sizes) -> None:  # noqa: ANN001
            with how() as found:
                unet(x, 500, encoder_hidden_states=text)
                if callable(found):
                    found()
                elif found is not None:
                    sizes[name] = sum(one.nbytes for one in found)
                    torch.cat([one.mean(dim=(1, 2)) for one in found])
            if device.type == "cuda":
                torch.cuda.synchronize(device)

        ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {"alone": nullcontext}
        for layers in (some, every):
            probe = AttentionProbe(layers=layers, pooling=Pooling(), tokens=torch.ones(1, 77, dtype=torch.bool))
            members = torch.zeros(batch, dtype=torch.long)
            ways[f"{len(layers)} layers, streamed"] = lambda probe=probe, members=members: probe.watch(unet, members)
            ways[f"{len(layers)} layers, maps kept"] = lambda layers=layers: keeping(unet, layers, everywhere=False)
        # Scores and their softmax, of all pairs of 64 × 64 places.
        if 2 * batch * 8 * 64**4 * x.element_size() <= args.most * GIB:
            ways[f"{len(some)} layers, maps kept, maps made in all"] = lambda: keeping(unet, some, everywhere=True)
        runs = {name: lambda name=name, how=how: forward(name, how) for name, how in ways.items()}
        peaks = {name: peak_bytes(run, device) for name, run in runs.items()}
        seconds = in_turns(runs, args.repeats)
        for name in ways:
            more, slower = peaks[name] - peaks["alone"], seconds[name] / seconds["alone"]
            row = {"rows": batch, "attention": name, "peak": peaks[name], "more": more, "maps": sizes.get(name, 0)}
            rows.append(row | {"seconds": seconds[name], "ratio": slower})
            cells = [f"{size / 2**20:,.1f}" for size in (peaks[name], more, sizes.get(name, 0))]
            say(f"| {batch} | {name} | {' | '.join(cells)} | {seconds[name]:.2f} | {slower:.2f} |")
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=("queries", "attention"), default=("queries", "attention"))
    parser.add_argument("--model", default="tiny-shapes")
    parser.add_argument("--device")
    parser.add_argument("--captions", nargs="+", type=int, default=(2, 4, 10, 36))
    parser.add_argument("--draws", type=int, default=MatchSettings().draws)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--channels", nargs=4, type=int, default=(32, 64, 128, 128), help="of the random network")
    parser.add_argument("--rows", nargs="+", type=int, default=(1, 8), help="of a pass of it")
    parser.add_argument("--most", type=float, default=4.0, help="leave out what would take more than so many GiB")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median time is reported")
    parser.add_argument("--out", type=Path, default=Path("runs/matching-cost.json"))
    args = parser.parse_args()
    report: dict[str, object] = {"threads": torch.get_num_threads()}
    for part in args.parts:
        report[part] = queries(args) if part == "queries" else attention(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
