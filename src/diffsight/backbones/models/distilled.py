"""Models that were distilled into few steps: what a folder tells of it, and what it means for scores.

A diffusion model says what a noised image looked like on average, and its errors bound a likelihood (2303.16203, §3).
A student that draws in one to eight steps was taught to say what a teacher would have drawn, mostly under guidance and
at a few noise levels: its errors bound nothing, and at the other levels it was never asked.
"""

import logging
import re

from diffsight.backbones.folders import read_json
from diffsight.backbones.opened import Opened
from diffsight.errors import ModelError

log = logging.getLogger(__name__)

_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
_EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
_NAMES = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm|tcd|schnell|sprint|dmd2?)(?![a-z])", re.IGNORECASE)


def check_distillation(opened: Opened, part: str = "unet") -> None:
    """Refuse a model whose scores would mean nothing, and warn where that is doubtful. Before any weight is read.

    The warning goes to `logging`, once for each load.

    Args:
        opened: The folder.
        part: Its denoiser.

    Raises:
        ModelError: If the network is fed the guidance scale that its teacher had, as latent consistency models are
            (2310.04378, §4.2): it gives guided images, and no scale is the one without guidance.
    """
    network = read_json(opened.denoiser_folder(part) / "config.json", f"without a {part}")
    if network.get("time_cond_proj_dim") is not None:
        raise ModelError(
            f"{opened.called} is a latent consistency model: its network jumps to a guided image and is fed the scale "
            "of the guidance. Its errors say nothing about how well a class fits. Use the model it was distilled from."
        )
    if reason := _sign(opened, str(network.get("_name_or_path", ""))):
        log.warning(
            "%s seems to be distilled into few steps (%s). Such a model was taught to draw, at few noise levels and "
            "mostly under guidance, so its errors are a doubtful measure of fit. Prefer the model it was distilled "
            "from.",
            opened.called,
            reason,
        )


def _sign(opened: Opened, origin: str) -> str | None:
    """What in the folder says that the model is distilled; None if nothing does."""
    scheduler = opened.scheduler() if opened.has("scheduler") else {}
    sampler = scheduler.get("_class_name")
    if sampler in _SCHEDULERS:
        return f"its scheduler is {sampler}"
    called = opened.called.removeprefix("hf:") if opened.called.startswith("hf:") else opened.folder.name
    known = opened.card.repo or opened.card.name if opened.card else called
    names = (known, origin, str(opened.index.get("_name_or_path", "")))
    for name in names:
        if found := _NAMES.search(name):
            return f"{found[0]!r} in the name {name}"
    # Turbo's and Lightning's schedulers start at the very last level, as do those of models with zero terminal SNR.
    if sampler in _EULER and scheduler.get("timestep_spacing") == "trailing":
        return None if scheduler.get("rescale_betas_zero_snr") else f"{sampler} with 'trailing' spacing, as Turbo has"
    return None
