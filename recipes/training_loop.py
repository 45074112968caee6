"""The training loop of the recipes: one batch for each step, an averaged copy, and checkpoints to continue from."""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

log = logging.getLogger("recipe")

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast to train; everything else is fixed by the recipe.

    Timesteps are drawn as 1000·u^skew with u uniform: a ``skew`` below 1 draws them towards high noise, where text
    binds. ``minutes`` is the longest that a call may take: where ``steps`` would take longer, they become fewer.
    ``workers`` make the batches; they change nothing but the pace.
    """

    steps: int
    minutes: float | None = None
    workers: int = 0
    batch_size: int = 128
    learning_rate: float = 1e-3
    warmup: int = 100
    decay_fraction: float = 0.3
    ema_decay: float = 0.998
    seed: int = 0
    skew: float = 1.0
    compile: bool = True

    def rate(self, step: int, steps: int) -> float:
        """Warm-up, constant, then linear to zero: the end can be moved while the constant part runs."""
        decay_steps = max(1, int(steps * self.decay_fraction))
        return self.learning_rate * min(1.0, (step + 1) / self.warmup, (steps - step) / decay_steps)


def add_length(parser: argparse.ArgumentParser, *, vae_steps: int, steps: int) -> None:
    """The options of how long and how fast to train both stages."""
    parser.add_argument("--vae-steps", type=int, default=vae_steps)
    parser.add_argument("--vae-batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=steps, help="of UNet and text encoder")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--minutes", type=float, help="longest time of these steps: there are fewer where needed")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches; on a GPU about 5")
    parser.add_argument("--no-compile", action="store_true")


def plans(args: argparse.Namespace, *, skew: float = 1.0) -> tuple[Plan, Plan]:
    """What was asked for: the plan of the VAE, and of UNet and text encoder."""
    vae = Plan(
        steps=args.vae_steps, batch_size=args.vae_batch, workers=args.workers, learning_rate=2e-3, ema_decay=0.99
    )
    unet = Plan(
        steps=args.steps,
        minutes=args.minutes,
        workers=args.workers,
        batch_size=args.batch,
        skew=skew,
        compile=not args.no_compile,
    )
    return vae, unet


def best_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    """bf16 on a GPU, and on a CPU that has instructions for it; others would take several times as long as in fp32."""
    device = best_device()
    able = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=able)


def save_state(path: Path, **state: object) -> None:
    """Write a training state so that a reader sees the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path) -> dict | None:
    """The last state written to ``path``, tensors only, or None."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None


@dataclass(frozen=True)
class Batches(Dataset):
    """The batch of every step: each step has its own random stream, whoever draws it and after any interruption."""

    make: Callable[[torch.Generator], Batch]
    seed: int

    def __getitem__(self, step: int) -> Batch:
        return self.make(torch.Generator().manual_seed(self.seed * 1_000_003 + step))


def train(
    folder: Path,
    name: str,
    model: nn.Module,
    plan: Plan,
    make_batch: Callable[[torch.Generator], Batch],
    loss_of: Callable[[nn.Module, Batch], Tensor],
    watch: Callable[[nn.Module], dict[str, float]] | None = None,
) -> nn.Module:
    """AdamW with an averaged copy; continues from ``folder/NAME.pt``; one JSON line per 50 steps. Gives the copy.

    ``watch`` looks at the averaged copy every 500 steps and at the end; what it finds goes into ``folder/watch.jsonl``.
    """
    device = best_device()
    model = model.to(device)

    def move(averages: list[Tensor], current: list[Tensor], count: int) -> None:
        # The average starts short, so that it forgets the random initialisation.
        decay = min(plan.ema_decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(averages, current, 1 - decay)

    averaged = AveragedModel(model, multi_avg_fn=move)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
    )
    step, steps, path = 0, plan.steps, folder / f"{name}.pt"
    if state := load_state(path):
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        log.info("%s continues at step %d of %d", name, step, steps)

    def checkpoint() -> None:
        save_state(
            path,
            model=model.state_dict(),
            averaged=averaged.state_dict(),
            optimizer=optimizer.state_dict(),
            step=step,
        )

    def note(file: str, found: dict[str, object]) -> None:
        line = {"stage": name, "step": step, **found}
        with (folder / file).open("a") as record:
            record.write(json.dumps(line) + "\n")
        log.info("%s", line)

    losses: list[Tensor] = []
    began = saved = time.monotonic()
    first, measured = step, plan.minutes is None
    batches = DataLoader(
        Batches(make_batch, plan.seed),
        batch_size=None,
        sampler=range(step, steps),
        num_workers=plan.workers,
        pin_memory=device.type == "cuda",
        prefetch_factor=8 if plan.workers else None,
    )
    for batch in batches:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step, steps)
        loss = loss_of(model, tuple(part.to(device, non_blocking=True) for part in batch))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        averaged.update_parameters(model)
        step += 1
        losses.append(loss.detach())
        spent = time.monotonic() - began
        if not measured and spent > 0.6 * 60 * plan.minutes:
            # Once, before the rate falls: what fits into the rest at the pace so far.
            measured = True
            steps = min(steps, step + int((step - first) / spent * (60 * plan.minutes - spent)))
            log.info("%s ends at step %d of %d, to fit into %g minutes", name, steps, plan.steps, plan.minutes)
        if step % 50 == 0 or step >= steps:
            note("curve.jsonl", {"loss": float(torch.stack(losses).mean()), "seconds": spent})
            losses.clear()
        if watch and (step % 500 == 0 or step >= steps):
            note("watch.jsonl", watch(averaged.module))
        if time.monotonic() - saved > 60:
            checkpoint()
            saved = time.monotonic()
        if step >= steps:
            break
    checkpoint()
    return averaged.module
