"""A backbone in closed form: classes are Gaussians of one variance, so Bayes' rule and every expectation are known."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffsight.backbones.base import Condition
from diffsight.backbones.encoding import Encoded
from diffsight.data.images import ImageTransform
from diffsight.data.prompts import PromptSet
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule, ddpm
from diffsight.zero_shot.settings import Settings, prepare

SCHEDULE = ddpm(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@dataclass(frozen=True, eq=False)
class GaussianBackbone:
    """Class ``k`` is N(means[k], spread² I) in latent space; ``output`` is what the network gives."""

    means: Tensor
    spread: float = 1.0
    output: str = "eps"
    schedule: Schedule = field(default_factory=lambda: SCHEDULE)
    poison: frozenset = frozenset()

    name = "gaussian"
    class_names = None
    learned_variance = False
    network = torch.nn.Identity()  # It is a formula and has no layers.
    layers = ()
    device = torch.device("cpu")
    dtype = torch.float32
    transform = ImageTransform(size=8)

    @property
    def latent_shape(self):
        return tuple(self.means.shape[1:])

    def encode(self, images):
        return images[:, : self.latent_shape[0], :, :].float()

    def decode(self, x0):
        return x0

    def condition(self, names):
        rows = torch.tensor([int(name.split()[-1]) for name in names])
        return Condition(names=tuple(names), tensors={"k": rows}, null={"k": rows[:1]})

    def predict(self, x_t, index, condition):
        alpha, sigma = self.schedule.at(index, like=x_t)
        mean = self.means[condition.tensors["k"]]
        gain = alpha * self.spread**2 / (alpha**2 * self.spread**2 + sigma**2)
        x0 = mean + gain * (x_t - alpha * mean)
        eps = (x_t - alpha * x0) / sigma
        views = Prediction(output=eps, kind="eps", x_t=x_t, alpha=alpha, sigma=sigma)
        value = getattr(views, self.output)
        if self.poison:
            bad = torch.tensor([int(k) in self.poison for k in condition.tensors["k"]])
            value = torch.where(bad[:, None, None, None], torch.nan, value)
        return Prediction(output=value, kind=self.output, x_t=x_t, alpha=alpha, sigma=sigma)

    def identity(self):
        return {"model": "gaussian"}

    def sample(self, count, seed):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(self.means), (count,), generator=generator)
        noise = torch.randn(count, *self.latent_shape, generator=generator)
        return self.means[labels] + self.spread * noise, labels.numpy()

    def bayes(self, x0):
        distance = (x0[:, None] - self.means[None]).flatten(2).square().sum(-1)
        return distance.argmin(1).numpy()

    def log_likelihoods(self, x0):
        distance = (x0[:, None] - self.means[None]).flatten(2).square().sum(-1)
        return -distance / (2 * self.spread**2)

    def expected_errors(self, x0):
        """E ‖eps − eps_hat‖² per dimension, shape (images, levels, classes)."""
        alpha, sigma, s2 = self.schedule.alpha, self.schedule.sigma, self.spread**2
        total = alpha**2 * s2 + sigma**2
        distance = (x0[:, None] - self.means[None]).flatten(2).double().square().mean(-1)
        from_noise = (alpha**2 * s2 / total) ** 2
        return from_noise[None, :, None] + (alpha * sigma / total)[None, :, None] ** 2 * distance[:, None]


def mixture(classes=5, *, distance=1.6, shape=(2, 4, 4), seed=0, output="eps"):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, *shape, generator=generator)
    means = means / means.flatten(1).norm(dim=1)[:, None, None, None] * distance
    return GaussianBackbone(means=means, output=output)


def contest(backbone, **settings):
    names = [f"class {k}" for k in range(len(backbone.means))]
    return prepare(backbone, PromptSet.from_templates(names, "a {}"), Settings(**settings))


def encoded(x0, prefix="x"):
    return [Encoded(id=f"{prefix}{i}", x0=x) for i, x in enumerate(x0)]


def run(setup, images, *, batch_size=64, depth=1):
    engine = setup.engine(batch_size)
    engine.depth = depth
    done = {s.id: s for finished in engine.run(iter(images)) for s in finished}
    return [done[image.id] for image in images], engine


def winners(scored):
    return np.array([int(np.flatnonzero(s.alive)[0]) for s in scored])
