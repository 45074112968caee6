"""What sharing work between the classes of an image could save: the layers before the text, and its keys and values.

    python benchmarks/sharing.py [--model tiny-fashion] [--classes 10] [--rows 250] [--device cpu]

(a) The prefix: what a pass does before the first cross-attention does not depend on the class, and could be done once
    for all classes of a (draw, image). Measured as the time to get there, so that the gain is an upper bound.
(b) Keys and values of the text depend on the class alone. They are computed once for each class and looked up by row;
    outputs must stay the same.
(c) The network in bf16 against fp32.
(d) (a) and (b) for Stable Diffusion 2's UNet, as shares of its floating point operations; nothing is computed.

All times are medians of passes in turns, within one run.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch
from gpu_networks import SHAPES
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from zero_shot import say

from diffsight.backbones import load
from diffsight.backbones.base import Backbone, Condition


class _Reached(BaseException):
    """The pass has come as far as it should."""


def text_layers(network: nn.Module) -> list[tuple[str, Any]]:
    """The cross-attention modules, in the order in which they are stored."""
    return [(path, module) for path, module in network.named_modules() if getattr(module, "is_cross_attention", False)]


@contextmanager
def on_first_text(network: nn.Module, action: Callable[[], None]) -> Iterator[None]:
    """Do something when the pass comes to the first cross-attention."""
    reached = False

    def hook(*_: Any) -> None:  # noqa: ANN401
        nonlocal reached
        if not reached:
            reached = True
            action()

    handles = [module.register_forward_pre_hook(hook) for _, module in text_layers(network)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def looked_up(network: nn.Module, states: Tensor, rows: Tensor) -> Iterator[None]:
    """Keys and values of the text from a table with a row for each class."""
    changed = [layer for _, module in text_layers(network) for layer in (module.to_k, module.to_v)]
    tables = [layer(states) for layer in changed]

    def looking(table: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda _: table[rows]

    for layer, table in zip(changed, tables, strict=True):
        layer.forward = looking(table)
    try:
        yield
    finally:
        for layer in changed:
            del layer.forward


def seconds_of(ways: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of each way, taken in turns."""

    def once(work: Callable[[], object]) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter() - started

    for work in ways.values():
        once(work)
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            found[name].append(once(work))
    return {name: median(values) for name, values in found.items()}


@torch.no_grad()
def measure(backbone: Backbone, condition: Condition, rows: int, repeats: int) -> None:
    """Parts (a) to (c)."""
    classes = len(condition)
    arm = torch.arange(rows) % classes
    x_t = torch.randn(-(-rows // classes), *backbone.latent_shape).repeat_interleave(classes, dim=0)[:rows]
    x_t, level = x_t.to(backbone.device), torch.full((rows,), 500)
    given, network = condition.take(arm), backbone.network
    states, where = condition.tensors["encoder_hidden_states"], arm.to(backbone.device)

    def whole() -> Tensor:
        return backbone.predict(x_t, level, given).output

    def stop() -> None:
        raise _Reached

    def prefix() -> None:
        with on_first_text(network, stop):
            try:
                whole()
            except _Reached:
                return

    def cached() -> Tensor:
        with looked_up(network, states, where):
            return whole()

    other = load(backbone.name, device=backbone.device, dtype="bf16")
    as_half = other.condition(list(condition.names)).take(arm)
    ways: dict[str, Callable[[], object]] = {"whole": whole, "prefix": prefix, "cached": cached}
    ways["bf16"] = lambda: other.predict(x_t, level, as_half)
    torch.testing.assert_close(cached(), whole(), atol=1e-5, rtol=1e-4)
    took = seconds_of(ways, backbone.device, repeats)
    share = took["prefix"] / took["whole"]
    milliseconds, gain = 1e3 * took["whole"], bound(share, classes)
    say(f"{backbone.name} on {backbone.device}, {rows} rows, {classes} classes, fp32: {milliseconds:.1f} ms a pass")
    say(f"(a) before the text: {share:.1%} of the time; sharing it could be worth up to {gain:.2f} times")
    say(f"(b) keys and values looked up: {took['whole'] / took['cached']:.2f} times as fast")
    say(f"(c) bf16: {took['whole'] / took['bf16']:.2f} times as fast as fp32")


def bound(share: float, classes: int) -> float:
    """How many times as fast a pass is if a share of it is done once for all classes."""
    return 1 / (1 - share * (1 - 1 / classes))


def count(classes: int) -> None:
    """Part (d)."""
    shape = SHAPES["full"]["unet"]
    with torch.device("meta"):
        network, counter, before = shape.network(), FlopCounterMode(display=False), []
        inputs = shape.inputs(1, torch.device("meta"), torch.float32)
        with counter, torch.no_grad(), on_first_text(network, lambda: before.append(counter.get_total_flops())):
            network(**inputs)
    total = counter.get_total_flops()
    layers = [layer for _, module in text_layers(network) for layer in (module.to_k, module.to_v)]
    text = sum(2 * shape.tokens * layer.in_features * layer.out_features for layer in layers)
    prefix = before[0] / total
    say(f"(d) {shape.title}: {total / 1e9:.0f} GFLOP a call")
    say(f"    before the text {prefix:.2%}, worth up to {bound(prefix, classes):.3f} times")
    say(f"    keys and values {text / total:.2%}, worth up to {1 / (1 - text / total):.3f} times")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny-fashion")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--rows", type=int, default=250)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device")
    args = parser.parse_args()
    backbone = load(args.model, device=args.device, dtype="fp32")
    condition = backbone.condition([f"a photo of {number}" for number in range(args.classes)])
    measure(backbone, condition, args.rows, args.repeats)
    count(args.classes)


if __name__ == "__main__":
    main()
