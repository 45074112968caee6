"""Noise levels as tables: ``x_t = alpha * x0 + sigma * eps``, and the grids that choose among them.

A level is addressed by its index, 0 (clean) to ``len(schedule) - 1`` (noise), whatever unit of time the network was
trained with. Tables are float64 on the CPU; what is made from them is float32 or better, because a half-precision
``1 - alpha**2`` is wrong by 7 % at the cleanest levels.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffsight.diffusion.transfer import send
from diffsight.errors import InputError, nearest

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """A table of noise levels, from clean to noisy.

    Compare two schedules by their `fingerprint`.

    Attributes:
        alpha: Factor of the image at each level, float64.
        sigma: Factor of the noise at each level, float64.
        timesteps: What the network is fed at each level, float64.
        kind: "ddpm" (``alpha² + sigma² = 1``), "flow" (``alpha + sigma = 1``) or "edm" (``alpha = 1``).

    Raises:
        InputError: If a table is empty, not finite or negative, or the levels do not go from clean to noisy.
    """

    alpha: Float[Tensor, " n"]
    sigma: Float[Tensor, " n"]
    timesteps: Float[Tensor, " n"]
    kind: Literal["ddpm", "flow", "edm"]

    def __post_init__(self) -> None:
        for name in ("alpha", "sigma", "timesteps"):
            table = torch.as_tensor(getattr(self, name)).detach().to("cpu", torch.float64)
            if table.ndim != 1 or len(table) == 0 or not table.isfinite().all():
                raise InputError(f"A schedule's {name} must be a list of finite numbers, one per level; got {table}.")
            object.__setattr__(self, name, table)
        if not len(self.alpha) == len(self.sigma) == len(self.timesteps):
            raise InputError(
                f"A schedule's tables must be of one length; got {len(self.alpha)} alpha, {len(self.sigma)} sigma and "
                f"{len(self.timesteps)} timesteps."
            )
        log_snr = self.log_snr
        if (self.alpha < 0).any() or (self.sigma < 0).any() or log_snr.isnan().any():
            raise InputError("A schedule's alpha and sigma must not be negative, nor both be zero at a level.")
        noisier = log_snr[1:] < log_snr[:-1]
        if not noisier.all():
            level = int(noisier.int().argmin())
            raise InputError(
                f"Each level of a schedule must be noisier than the one before; level {level + 1} is not "
                f"(log-SNR {log_snr[level]:.4g}, then {log_snr[level + 1]:.4g})."
            )

    def __len__(self) -> int:
        return len(self.alpha)

    @property
    def snr(self) -> Float[Tensor, " n"]:
        """Signal-to-noise ratio ``alpha² / sigma²``, float64; 0 where only noise is left."""
        return (self.alpha / self.sigma).square()

    @property
    def log_snr(self) -> Float[Tensor, " n"]:
        """``log(alpha² / sigma²)``, float64; -inf where only noise is left."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @property
    def beta(self) -> Float[Tensor, " n"] | None:
        """Variance added by each step of a DDPM chain, float64; None for the other kinds."""
        if self.kind != "ddpm":
            return None
        alpha_bar = self.alpha.square()
        return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])

    def nearest_level(self, log_snr: float) -> int:
        """The level with the nearest log-SNR: how a noise level is carried from one schedule to another."""
        return int((self.log_snr - log_snr).abs().argmin())

    def at(self, index: Int[Tensor, " b"], like: Tensor) -> tuple[Tensor, Tensor]:
        """Look up alpha and sigma for a batch.

        Args:
            index: A level per row of ``like``, on any device; on the CPU it costs no synchronisation.
            like: A tensor with the batch first; decides device and number of dimensions.

        Returns:
            alpha and sigma of shape (b, 1, ...), fp32 (float64 if ``like`` is), on the device of ``like``.

        Raises:
            InputError: If an index is not a level (checked where it is free: on the CPU).
        """
        return self._gather(self.alpha, index, like), self._gather(self.sigma, index, like)

    def mix(
        self, x0: Float[Tensor, "#b *shape"], eps: Float[Tensor, "#b *shape"], index: Int[Tensor, " b"]
    ) -> Float[Tensor, "b *shape"]:
        """Noise ``x0`` to given levels, in fp32 or better: ``alpha * x0 + sigma * eps``.

        Args:
            x0: Clean images or latents; a single one is used for all levels.
            eps: Standard normal noise; a single one is used for all levels.
            index: One level per result.

        Raises:
            InputError: If the shapes differ, or an index is not a level.
        """
        if x0.shape[1:] != eps.shape[1:]:
            raise InputError(f"x0 {tuple(x0.shape)} and noise {tuple(eps.shape)} must be of one shape.")
        alpha, sigma = self.at(index, like=x0)
        return alpha * x0 + sigma * eps

    def fingerprint(self) -> str:
        """Short hash of everything that changes numbers; rounded to fp32, so that machines agree on it."""
        digest = hashlib.sha256(self.kind.encode())
        for table in (self.alpha, self.sigma, self.timesteps):
            digest.update(table.float().numpy().astype("<f4").tobytes())
        return digest.hexdigest()[:16]

    def _gather(self, table: Tensor, index: Tensor, like: Tensor) -> Tensor:
        low, high = (int(index.min()), int(index.max())) if index.device.type == "cpu" and index.numel() else (0, 0)
        if not 0 <= low <= high < len(self):
            raise InputError(f"Levels must be between 0 and {len(self) - 1}; got {low} to {high}.")
        # The dtype first: not every device has float64.
        table = table.to(torch.promote_types(like.dtype, torch.float32)).to(index.device)
        return send(table[index.long()], like.device).reshape(-1, *[1] * (like.ndim - 1))


def ddpm(
    num_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
    *,
    rescale_zero_snr: bool = False,
    trained_betas: Sequence[float] | None = None,
) -> Schedule:
    """Variance-preserving levels of a DDPM chain; the defaults are those of Stable Diffusion 1 and 2.

    Args:
        num_timesteps: Number of levels.
        beta_start: First beta; not used by "squaredcos_cap_v2".
        beta_end: Last beta; not used by "squaredcos_cap_v2".
        beta_schedule: "linear" (DDPM, ADM, DiT), "scaled_linear" (Stable Diffusion) or "squaredcos_cap_v2" (cosine).
        rescale_zero_snr: Shift and scale so that the last level is pure noise (Lin et al. 2305.08891, Alg. 1).
        trained_betas: The betas themselves, instead of all the above but ``rescale_zero_snr``.

    Raises:
        InputError: If a parameter is out of range.
    """
    if trained_betas is not None:
        beta = torch.tensor(trained_betas, dtype=torch.float64)
    else:
        _check_count("num_timesteps", num_timesteps)
        beta = _betas(beta_schedule, num_timesteps, beta_start, beta_end)
    if beta.ndim != 1 or len(beta) == 0 or not ((beta > 0) & (beta <= 1)).all():
        raise InputError(f"Betas must be numbers over 0 and at most 1, one per level; got {beta}.")
    alpha = (1 - beta).cumprod(0).sqrt()
    if rescale_zero_snr:
        if len(alpha) < 2:
            raise InputError("Rescaling to zero terminal SNR needs at least two levels.")
        alpha = (alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1]))
    timesteps = torch.arange(len(alpha), dtype=torch.float64)
    return Schedule(alpha, (1 - alpha.square()).sqrt(), timesteps, kind="ddpm")


def flow(num_timesteps: int = 1000, shift: float = 1.0, *, time_scale: float = 1000.0) -> Schedule:
    """Levels of a rectified flow, ``x_t = (1 - sigma) x0 + sigma eps``.

    With a ``shift`` the levels are not uniform in sigma: Stable Diffusion 3 (shift 3) has 24.9 % under sigma = 0.5.

    Args:
        num_timesteps: Number of levels, ``s = 1/N, 2/N, ..., 1``.
        shift: ``sigma = shift * s / (1 + (shift - 1) * s)``; 3 for Stable Diffusion 3.
        time_scale: The network is fed ``time_scale * sigma``.

    Raises:
        InputError: If a parameter is out of range.
    """
    _check_count("num_timesteps", num_timesteps)
    if not (0 < shift < math.inf and 0 < time_scale < math.inf):
        raise InputError(f"shift and time_scale must be over 0; got {shift} and {time_scale}.")
    s = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
    denominator = 1 + (shift - 1) * s
    sigma = shift * s / denominator
    # (1 - s) / denominator is 1 - sigma without its cancellation, and exactly 0 at the last level.
    return Schedule((1 - s) / denominator, sigma, time_scale * sigma, kind="flow")


def edm(num_levels: int = 1000, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """Variance-exploding levels of Karras et al. (2206.00364, eq. 5); the network is fed ``ln(sigma) / 4``.

    Args:
        num_levels: Number of levels.
        sigma_min: The cleanest.
        sigma_max: The noisiest.
        rho: Levels are evenly spaced in ``sigma ** (1 / rho)``; ``math.inf`` spaces them evenly in ``log(sigma)``.

    Raises:
        InputError: If a parameter is out of range.
    """
    _check_count("num_levels", num_levels)
    if not (0 < sigma_min < sigma_max < math.inf and rho > 0):
        raise InputError(f"EDM needs 0 < sigma_min < sigma_max and rho > 0; got {sigma_min}, {sigma_max} and {rho}.")
    ramp = torch.linspace(0, 1, num_levels, dtype=torch.float64)
    if math.isinf(rho):
        sigma = (math.log(sigma_min) + ramp * math.log(sigma_max / sigma_min)).exp()
    else:
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        sigma = (low + ramp * (high - low)) ** rho
    return Schedule(torch.ones_like(sigma), sigma, sigma.log() / 4, kind="edm")


def from_config(config: Mapping[str, Any]) -> Schedule:
    """Read the training levels out of a diffusers ``scheduler_config.json``, whichever sampler it names.

    A resolution-dependent shift (``use_dynamic_shifting``) belongs to sampling: those models get an unshifted table.

    Args:
        config: The file's content; ``_class_name`` tells flow and EDM schedulers from the rest.

    Raises:
        InputError: If a key is missing, or the levels are of a sort that this library does not know.
    """
    name = config.get("_class_name", "the scheduler")
    if config.get("timestep_type") == "continuous" or config.get("invert_sigmas"):
        raise InputError(f"{name} has continuous or inverted timesteps, which are not supported. Use another model.")
    if config.get("snr_shift_scale", 1.0) != 1.0:
        raise InputError(f"{name} has snr_shift_scale={config['snr_shift_scale']}, which is not supported.")
    count = config.get("num_train_timesteps", 1000)
    if str(name).startswith("FlowMatch") or config.get("use_flow_sigmas"):
        shift = config.get("shift", config.get("flow_shift", 1.0))
        return flow(count, 1.0 if config.get("use_dynamic_shifting") else shift, time_scale=float(count))
    if str(name).startswith("EDM"):
        exponential = config.get("sigma_schedule", "karras") == "exponential"
        rho = math.inf if exponential else config.get("rho", 7.0)
        return edm(count, sigma_min=config.get("sigma_min", 0.002), sigma_max=config.get("sigma_max", 80.0), rho=rho)
    zero_snr = bool(config.get("rescale_betas_zero_snr"))
    if config.get("trained_betas") is not None:
        return ddpm(rescale_zero_snr=zero_snr, trained_betas=config["trained_betas"])
    missing = [key for key in ("beta_schedule", "beta_start", "beta_end") if key not in config]
    if missing:
        raise InputError(f"{name}'s configuration has no {', '.join(missing)}: its noise levels cannot be known.")
    return ddpm(count, config["beta_start"], config["beta_end"], config["beta_schedule"], rescale_zero_snr=zero_snr)


def midpoint_grid(num_levels: int, num_draws: int) -> Int[Tensor, " n"]:
    """Evenly spaced levels exactly as Li et al.'s code has them: step ``T // M``, starting at half a step.

    When ``num_draws`` does not divide ``num_levels`` the noisiest levels are left out, as there.

    Args:
        num_levels: T, the length of the schedule.
        num_draws: M; 500 of 1000 levels gives 1, 3, ..., 999.

    Raises:
        InputError: If there are more draws than levels.
    """
    _check_count("num_levels", num_levels)
    _check_count("num_draws", num_draws)
    if num_draws > num_levels:
        raise InputError(f"A midpoint grid of {num_draws} draws needs as many levels; there are {num_levels}.")
    step = num_levels // num_draws
    return step // 2 + step * torch.arange(num_draws)


def nested_grid(num_levels: int, num_draws: int, *, low: float = 0.0, high: float = 1.0) -> Int[Tensor, " n"]:
    """Levels in an order of which every prefix is even: van der Corput's, from the middle, for any number of levels.

    Each level comes once before any comes again, so that ``num_levels`` draws are the full grid. The first draws do not
    depend on ``num_draws``.

    Args:
        num_levels: Length of the schedule.
        num_draws: Length of the grid; over the number of levels it goes round again.
        low: Where the levels start, as a fraction of the schedule.
        high: Where they end.

    Raises:
        InputError: If there is no level between ``low`` and ``high``.
    """
    _check_count("num_levels", num_levels)
    _check_count("num_draws", num_draws)
    if not 0 <= low < high <= 1:
        raise InputError(f"A grid must satisfy 0 <= low < high <= 1; got low={low} and high={high}.")
    first, last = round(low * num_levels), round(high * num_levels)
    width = last - first
    if width == 0:
        raise InputError(f"None of {num_levels} levels is between low={low} and high={high}. Widen the range.")
    return torch.tensor(_spread(first, last)).repeat(-(-num_draws // width))[:num_draws]


def explicit_grid(num_levels: int, values: Sequence[int] | Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Check a user's own list of levels; a level may come several times.

    Args:
        num_levels: Length of the schedule.
        values: Level indices, in the order in which they are to be drawn.

    Raises:
        InputError: If the list is empty, or a value is not a level.
    """
    listed = values.tolist() if isinstance(values, Tensor) else list(values)
    if not listed:
        raise InputError("A grid must have at least one level.")
    for value in listed:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < num_levels:
            raise InputError(f"{value!r} is not a level: levels are whole numbers from 0 to {num_levels - 1}.")
    return torch.tensor(listed)


def _betas(name: str, count: int, start: float, end: float) -> Tensor:
    if name != "squaredcos_cap_v2" and not 0 < start <= end < 1:
        raise InputError(f"Betas must satisfy 0 < beta_start <= beta_end < 1; got {start} and {end}.")
    if name == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if name == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64).square()
    if name == "squaredcos_cap_v2":
        t = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        alpha_bar = ((t + 0.008) / 1.008 * math.pi / 2).cos().square()
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    raise InputError(f"Unknown beta schedule {name!r}. {nearest(name, BETA_SCHEDULES)}")


def _spread(start: int, stop: int) -> list[int]:
    """Order whole numbers so that every prefix is even: the middle, then the two halves in turn, each so ordered."""
    if start >= stop:
        return []
    middle = (start + stop) // 2
    order = [middle] * (stop - start)
    order[1::2], order[2::2] = _spread(start, middle), _spread(middle + 1, stop)
    return order


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1; got {value!r}.")
