"""The loops that `gpu.py` times: ours, the published scripts', and the network without any."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from gpu_networks import Shape
from torch.nn import functional

from diffsight.backbones.base import Backbone, Condition
from diffsight.backbones.encoding import Encoded
from diffsight.diffusion.noise import NoiseBank
from diffsight.scoring.elimination import Exhaustive
from diffsight.scoring.engine import Engine, Units
from diffsight.scoring.scorer import LOSSES, Scorer

POLICY = Exhaustive(num_draws=16)
PUBLISHED_BATCH = 32


def images(backbone: Backbone) -> Iterator[Encoded]:
    """Random latents without end."""
    generator = torch.Generator(backbone.device).manual_seed(0)
    for number in itertools.count():
        x0 = torch.randn(backbone.latent_shape, generator=generator, device=backbone.device)
        yield Encoded(id=f"image {number}", x0=x0)


def our_loop(backbone: Backbone, condition: Condition, batch: int) -> Callable[[], int]:
    """One batch of the engine: the path of every classification."""
    scorer = Scorer(
        backbone=backbone, condition=condition, levels=POLICY.grid(len(backbone.schedule)), bank=NoiseBank(seed=0)
    )
    units = Units(unit_of_arm=tuple(range(len(condition))), loss=LOSSES.index("l2"), weights=np.ones(POLICY.max_draws))
    depth = 2 if backbone.device.type == "cuda" else 1
    engine = Engine(scorer=scorer, policy=POLICY, units=units, batch_size=batch, depth=depth)
    turns = engine.run(images(backbone))

    def step() -> int:
        before = engine.calls
        next(turns)
        if engine.batch_size != batch:
            raise torch.OutOfMemoryError(f"a batch of {batch} does not fit")
        return engine.calls - before

    return step


def straightforward(backbone: Backbone, condition: Condition) -> Callable[[], int]:
    """One image of the loop as the published scripts write it (c)."""
    device, dtype, shape = backbone.device, backbone.dtype, backbone.latent_shape
    levels = POLICY.grid(len(backbone.schedule))
    alphas, sigmas = backbone.schedule.alpha.float(), backbone.schedule.sigma.float()
    draw = torch.arange(len(levels)).repeat_interleave(len(condition))
    arm = torch.arange(len(condition)).repeat(len(levels))
    stream = images(backbone)

    @torch.no_grad()
    def step() -> int:
        x0 = next(stream).x0
        noise = torch.randn(len(levels), *shape)
        found = torch.zeros(len(draw))
        for start in range(0, len(draw), PUBLISHED_BATCH):
            rows = slice(start, start + PUBLISHED_BATCH)
            level, eps = levels[draw[rows]], noise[draw[rows]].to(device)
            alpha, sigma = (table[level].view(-1, 1, 1, 1).to(device) for table in (alphas, sigmas))
            x_t = (alpha * x0 + sigma * eps).to(dtype)
            given = {key: value[arm[rows].to(device)] for key, value in condition.tensors.items()}
            output = backbone.network(x_t, timestep=level.to(device), **given).sample[:, : shape[0]]
            error = functional.mse_loss(eps, output.float(), reduction="none").mean(dim=(1, 2, 3))
            found[rows] = error.cpu()
        return len(draw)

    return step


def bare(shape: Shape, backbone: Backbone, batch: int) -> Callable[[], int]:
    """The network's forward alone, on the same inputs every time."""
    inputs = shape.inputs(batch, backbone.device, backbone.dtype)

    def step() -> int:
        with torch.no_grad():
            backbone.network(**inputs)
        return batch

    return step
