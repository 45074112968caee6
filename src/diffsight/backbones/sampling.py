"""From noise to images with diffusers' schedulers, for any backbone: prompt, guidance and noise of each row its own.

Every sampler here is deterministic (eta 0): an image depends on its prompt, its guidance scale and its start noise, and
on no other row of the batch. The scheduler is made from the backbone's own noise levels, and is fed the clean image
that the network predicts, in whatever form: that is known at every level, zero terminal SNR included.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from diffsight.backbones.base import Backbone, Condition
from diffsight.diffusion.prediction import Prediction
from diffsight.diffusion.schedule import Schedule
from diffsight.errors import InputError, NumericsError, nearest

SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM as in CompVis's code (2010.02502)",
    "dpm++": "DPM-Solver++ of order 2, multistep (2211.01095)",
    "euler": "Euler's method on the probability flow (2206.00364), the one for rectified flows and EDM",
}
AUTO = "auto"
# "leading" is CompVis's spacing; DPM-Solver++'s own is "linspace", whose steps must be whole numbers.
_SPACINGS = {"ddim": "leading", "dpm++": "linspace", "euler": "leading"}
_NO_SIGNAL = 1e-3  # Under this alpha the last level is pure noise, and sampling has to start there (2305.08891 §3.3).
_SMALLEST = 2.0**-24  # Of alpha², so that no sigma is infinite; diffusers' own value.
_DECODED = 2**18  # Numbers of the latents that go through the decoder at once: 16 pictures of 512 pixels.


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """How noise becomes an image.

    Attributes:
        name: ``"ddim"``, ``"dpm++"`` or ``"euler"``; ``"auto"`` is DPM-Solver++, and for rectified flows and EDM Euler.
        steps: Denoising steps; each is one call of the denoiser, and two with guidance.

    Raises:
        InputError: If there is no such sampler, or the steps are no number from 1.
    """

    name: str = AUTO
    steps: int = 20

    def __post_init__(self) -> None:
        if self.name not in (AUTO, *SAMPLERS):
            raise InputError(f"Unknown sampler {self.name!r}. {nearest(self.name, SAMPLERS)}")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"A sampler takes a whole number of steps from 1; got {self.steps!r}.")

    def fitting(self, schedule: Schedule) -> "Sampler":
        """The same with a name of `SAMPLERS`: what ``"auto"`` stands for with such noise levels."""
        if self.name != AUTO:
            return self
        return replace(self, name="dpm++" if schedule.kind == "ddpm" else "euler")

    def check(self, backbone: Backbone) -> None:
        """Refuse a model that this sampler cannot sample.

        Raises:
            InputError: With the reason.
        """
        _plan(backbone.schedule, self, backbone.name)

    def calls(self, *, guided: bool) -> int:
        """Denoiser calls for one image; guidance needs the null condition as well."""
        return self.steps * (2 if guided else 1)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values."""
        return asdict(self)


@torch.no_grad()
def draw(
    backbone: Backbone,
    condition: Condition,
    guidance_scale: Float[Tensor, " b"],
    noise: Float[Tensor, "b c h w"],
    *,
    sampler: Sampler,
) -> Float[Tensor, "b c h w"]:
    """Draw a batch of latents.

    Guidance is CompVis's: ``null + s (cond - null)``; s = 1 is the condition alone. The null condition is run as a
    batch of its own, and only if a row needs it, so that what a row computes does not depend on its neighbours'
    scales.

    Args:
        backbone: The model.
        condition: One member per row.
        guidance_scale: s of each row.
        noise: Standard normal start of each row.
        sampler: How.

    Returns:
        ``x0`` for `Backbone.decode`, fp32, on the model's device.

    Raises:
        InputError: If the numbers of rows differ, or the sampler does not fit the model.
    """
    if not len(condition) == len(guidance_scale) == len(noise) or len(noise) == 0:
        raise InputError(
            f"Each row needs a condition, a scale and a noise; got {len(condition)}, {len(guidance_scale)} and "
            f"{len(noise)}."
        )
    path = _plan(backbone.schedule, sampler, backbone.name)
    device = backbone.device
    scale = guidance_scale.to(device, torch.float32).view(-1, 1, 1, 1)
    null = condition.nulls(len(noise)) if bool((guidance_scale != 1).any()) else None
    on_pixels = backbone.latent_shape[1] == backbone.transform.output_size
    x = noise.to(device, torch.float32) * path.start
    for time, level in zip(path.scheduler.timesteps, path.levels, strict=True):
        x_t = path.scheduler.scale_model_input(x, time) if path.scaled else x
        index = torch.full((len(x),), level)
        prediction = backbone.predict(x_t, index, condition)
        if null is not None:
            cond, uncond = prediction.output, backbone.predict(x_t, index, null).output
            # Affine in the output, and so the same in every view. A row without guidance stays what it is to the bit.
            output = torch.where(scale == 1, cond, uncond + scale * (cond - uncond))
            prediction = replace(prediction, output=output)
        if on_pixels:
            prediction = _clipped(prediction)
        x = path.scheduler.step(getattr(prediction, path.view), time, x).prev_sample
    return x


def to_pixels(backbone: Backbone, latents: Float[Tensor, "b c h w"]) -> UInt8[np.ndarray, "b height width 3"]:
    """Decode latents to RGB pictures, without what the model's transform adds to a picture.

    The border that the transform pads is cut off, and a model of grey pictures gives grey ones. Nothing else is done to
    a picture: no safety checker replaces it, and no watermark is put in.

    Raises:
        NumericsError: If a latent or a picture is not finite.
    """
    pictures = []
    for group in latents.split(max(1, _DECODED // latents[0].numel())):
        images = backbone.decode(group)
        if not images.isfinite().all() or not group.isfinite().all():
            raise NumericsError(
                f"{backbone.name} drew something that is not a number in {str(backbone.dtype).removeprefix('torch.')}. "
                "Use dtype 'bf16' or 'fp32', or a lower guidance scale."
            )
        pad = backbone.transform.pad
        if pad:
            images = images[:, :, pad:-pad, pad:-pad]
        if backbone.transform.grayscale:
            luminance = images.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)  # ITU-R 601, as Pillow's
            images = (images * luminance).sum(1, keepdim=True).expand(-1, 3, -1, -1)
        pictures.append(((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(pictures).permute(0, 2, 3, 1).contiguous().numpy()


def join(conditions: Sequence[Condition]) -> Condition:
    """Put the members of several conditions of one model into one.

    Args:
        conditions: At least one.
    """
    first = conditions[0]
    return Condition(
        names=tuple(name for condition in conditions for name in condition.names),
        tensors={key: torch.cat([condition.tensors[key] for condition in conditions]) for key in first.tensors},
        null=first.null,
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Path:
    """A scheduler that is ready, and which level of the schedule each of its steps is at."""

    scheduler: Any
    levels: tuple[int, ...]
    view: str
    start: float
    scaled: bool


def _plan(schedule: Schedule, sampler: Sampler, name: str) -> _Path:
    largest, sampler = len(schedule) - 1, sampler.fitting(schedule)
    if sampler.steps > largest:
        raise InputError(f"{name} has {len(schedule)} noise levels: at most {largest} steps; got {sampler.steps}.")
    if schedule.kind == "flow":
        # Even steps from the level of pure noise, which the schedule's shift makes uneven.
        levels = np.round(np.arange(len(schedule), 0, -len(schedule) / sampler.steps))[: sampler.steps] - 1
        return _along_sigma(schedule, sampler, name, levels.astype(np.int64))
    if schedule.kind == "edm":
        # Even steps of Karras et al.'s ramp (eq. 5), and from the smallest sigma to none.
        levels = np.round(np.linspace(largest, 0, sampler.steps))
        return _along_sigma(schedule, sampler, name, levels.astype(np.int64))
    if not torch.equal(schedule.timesteps, torch.arange(len(schedule)).double()):
        raise InputError(f"{name} has noise levels of the kind {schedule.kind!r}, which no sampler here knows yet.")
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    alpha_bar = schedule.alpha.square().clamp(min=_SMALLEST)
    beta = 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    common: dict[str, Any] = {
        "num_train_timesteps": len(schedule),
        "trained_betas": beta.tolist(),
        "timestep_spacing": "trailing" if schedule.alpha[-1] < _NO_SIGNAL else _SPACINGS[sampler.name],
        "steps_offset": 1,
    }
    match sampler.name:
        case "ddim":
            # The last step ends at the first level and not at none, as in CompVis's code and Stable Diffusion's files.
            scheduler: Any = DDIMScheduler(
                **common, prediction_type="sample", clip_sample=False, set_alpha_to_one=False
            )
        case "dpm++":
            scheduler = DPMSolverMultistepScheduler(**common, prediction_type="sample", algorithm_type="dpmsolver++")
        case _:
            scheduler = EulerDiscreteScheduler(**common, prediction_type="sample")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Of numpy 2, at how diffusers makes an array of a tensor.
        scheduler.set_timesteps(sampler.steps)
    return _Path(
        scheduler=scheduler,
        levels=tuple(int(time) for time in scheduler.timesteps),
        view="x0",
        start=float(scheduler.init_noise_sigma),
        scaled=True,
    )


def _along_sigma(schedule: Schedule, sampler: Sampler, name: str, levels: np.ndarray) -> _Path:
    """Euler's method along sigma: the slope of x there is what the network says, the flow or EDM's eps (eq. 1, 3)."""
    flows = schedule.kind == "flow"
    if sampler.name != "euler":
        what = "is a rectified flow" if flows else "has EDM's noise levels"
        raise InputError(f"{name} {what}, which the sampler {sampler.name!r} does not know. Use 'euler'.")
    from diffusers import FlowMatchEulerDiscreteScheduler

    sigmas = schedule.sigma[torch.from_numpy(levels)].tolist()
    scheduler: Any = FlowMatchEulerDiscreteScheduler(num_train_timesteps=len(schedule), shift=1.0)
    scheduler.set_timesteps(sigmas=sigmas)
    return _Path(
        scheduler=scheduler,
        levels=tuple(levels.tolist()),
        view="flow" if flows else "eps",
        start=1.0 if flows else (sigmas[0] ** 2 + 1) ** 0.5,  # Under EDM's noise there is an image, of variance 1.
        scaled=False,
    )


def _clipped(prediction: Prediction) -> Prediction:
    """What a model on pixels says of the clean image, in the range of images, as its authors sample (2102.09672)."""
    return replace(prediction, output=prediction.x0.clamp(-1, 1), kind="x0")
