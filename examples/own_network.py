"""A denoiser of one's own, in plain torch, learns the classes of a folder of photographs, and then classifies.

    python examples/own_network.py PHOTOGRAPHS

The network is as small as it can be and is trained for seconds on the few photographs that it is then asked about: this
shows how a network is wrapped, and nothing about accuracy.
"""

import sys

import torch
from torch import Tensor, nn

from diffsight import DiffusionClassifier, ImageTransform, open_source
from diffsight.backbones.custom import wrap
from diffsight.diffusion.schedule import from_config

DDPM = {"_class_name": "DDPMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


class Denoiser(nn.Module):
    """Says which noise is in a picture, told its class: what `wrap` needs is this call and nothing else."""

    def __init__(self, classes: int, width: int = 32) -> None:
        super().__init__()
        self.told = nn.Embedding(classes, width)
        self.time = nn.Embedding(1000, width)
        self.into = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(3)])
        self.out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x_t: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        """The noise, of the shape of ``x_t``."""
        hidden = self.into(x_t) + (self.told(class_labels) + self.time(timestep))[:, :, None, None]
        for block in self.blocks:
            hidden = hidden + nn.functional.silu(block(hidden))
        return self.out(hidden)


def main(photographs: str) -> None:
    """Train, wrap, classify."""
    source = open_source(f"folder:{photographs}")
    if source.labels is None or source.class_names is None:
        raise SystemExit("Put the photographs into one sub-folder for each class.")
    schedule, transform, generator = from_config(DDPM), ImageTransform(size=16), torch.Generator().manual_seed(0)
    x0 = torch.stack([transform(source[i].load()) for i in range(len(source))])
    labels = torch.tensor(list(source.labels))

    network = Denoiser(len(source.class_names))
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(100):
        rows = torch.randint(len(x0), (32,), generator=generator)
        levels = torch.randint(len(schedule), (32,), generator=generator)
        eps = torch.randn(32, 3, 16, 16, generator=generator)
        found = network(schedule.mix(x0[rows], eps, levels), levels, labels[rows])
        loss = (found - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    backbone = wrap(
        network, schedule=schedule, prediction="eps", transform=transform, class_names=source.class_names, name="mine"
    )
    judge = DiffusionClassifier(backbone, source.class_names).fit()
    few = source.select(range(0, len(source), max(1, len(source) // 5)))
    for image, answer in zip(few.ids, judge.classify(few), strict=True):
        sys.stdout.write(f"{image}: {judge.classes_[answer.label]}, {answer.calls} calls\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
