"""Fits timestep weights to labels: a convex problem with a few unknowns, solved by scipy."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int
from numpy.polynomial import Legendre, Polynomial
from scipy import optimize, special
from torch import Tensor

from diffsight.diffusion.schedule import Schedule
from diffsight.diffusion.weighting import uniform
from diffsight.errors import InputError, nearest
from diffsight.zero_shot.calibration import fit_temperature

FORMS = ("buckets", "cubic")
WeightSpace = Literal["eps", "x0"]
SPACES: tuple[WeightSpace, ...] = get_args(WeightSpace)
BUCKETS = 20
_POINTS = 64  # Where a polynomial is kept from going below 0; between them it can by next to nothing.


@dataclass(frozen=True, slots=True)
class WeightFit:
    """What was learnt.

    Attributes:
        values: Weights of the buckets, or coefficients of the polynomial, constant first.
        loss_before: Mean cross-entropy with uniform weights in eps space and the best temperature, in nats.
        loss_after: Mean cross-entropy with the weights.
    """

    values: tuple[float, ...]
    loss_before: float
    loss_after: float


def check_form(form: str, space: str) -> None:
    """Refuse forms and spaces that there are none of.

    Raises:
        InputError: Then.
    """
    if form not in FORMS:
        raise InputError(f"Unknown form of weights {form!r}. {nearest(form, FORMS)}")
    if space not in SPACES:
        raise InputError(f"Weights cannot be learnt for the space {space!r}. {nearest(space, SPACES)}")
    if form == "cubic" and space != "eps":
        raise InputError(
            "A cubic polynomial is learnt for the eps error: weights of the x0 error differ by powers of ten, which no "
            "cubic follows. Use the space 'eps', or the form 'buckets'."
        )


def literal(space: str) -> WeightSpace:
    """The space as a type checker wants it; after `check_form`."""
    return "x0" if space == "x0" else "eps"


def fit_timestep_weights(
    errors: Float[np.ndarray, "images draws classes"],
    labels: Int[np.ndarray, " images"],
    levels: Int[Tensor, " draws"],
    schedule: Schedule,
    *,
    form: str = "buckets",
    space: str = "eps",
    ridge: float = 1.0,
) -> WeightFit:
    """Fit ``p(class) ~ exp(-mean over draws of w(t) error)`` by cross-entropy.

    Clark & Jaini (2303.15233, §3, learned weighting) take the mean error of each of 20 parts of time and fit a softmax
    regression to them; Jeong et al. (2505.17955) a cubic polynomial of time. Nothing there keeps few images from being
    learnt by heart; here weights are not negative (a larger error is never evidence for a class), and each is
    pulled towards uniform weights in eps space: before any image is seen, it is 1 ± 1/√ridge times their size.

    Args:
        errors: Unweighted, in eps space, without gaps.
        labels: The true class of each image.
        levels: Noise level of each draw.
        schedule: The noise levels.
        form: ``"buckets"`` or ``"cubic"``.
        space: Whose error is weighted.
        ridge: Strength of the pull, over 0.

    Returns:
        Weights with a mean of 1 over time.

    Raises:
        InputError: If a bucket has no draw, or a polynomial fewer than four levels; a value is not finite; no weight
            is left above 0; or as `check_form` and `fit_temperature`.
    """
    check_form(form, space)
    if not 0 < ridge < np.inf:
        raise InputError(f"ridge must be a finite number over 0; got {ridge}.")
    if not np.isfinite(errors).all():
        raise InputError("Weights are learnt from errors without gaps: all classes of all images on the same draws.")
    steps = len(schedule)
    basis = _buckets(levels.numpy(), steps) if form == "buckets" else _legendre(levels.numpy() / steps)
    factor = uniform(schedule, literal(space)).to("eps", schedule).values[levels].numpy()
    # Uniform weights in eps space, as far as the basis has them.
    start = (basis > 0).sum(axis=0) / (basis * factor[:, None]).sum(axis=0) if form == "buckets" else np.eye(4)[0]
    temperature = fit_temperature(list(errors), labels).scale
    # Where uniform weights tell nothing, their temperature is no measure of what good weights are worth.
    scale = max(temperature, 1 / _usual_gap(errors))
    unit = start if form == "buckets" else np.ones(4)
    features = np.einsum("idc,dp->icp", errors, basis * factor[:, None] * unit) * (scale / errors.shape[1])
    features -= features[np.arange(len(labels)), labels][:, None]
    prior = start / unit
    penalty = ridge * (1 if form == "buckets" else 4)

    def cross_entropy(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logits = -features @ weights
        likely = special.softmax(logits, axis=1)
        # The label's own logit is 0.
        return float(special.logsumexp(logits, axis=1).sum()), -np.einsum("ic,icp->p", likely, features)

    def objective(weights: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = cross_entropy(weights)
        return value + penalty / 2 * np.square(weights - prior).sum(), slope + penalty * (weights - prior)

    if form == "buckets":
        found = optimize.minimize(objective, prior, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(prior))
    else:
        points = _legendre(np.linspace(0, 1, _POINTS))
        bound = {"type": "ineq", "fun": lambda weights: points @ weights, "jac": lambda _: points}
        options = {"maxiter": 500, "ftol": 1e-10}
        found = optimize.minimize(objective, prior, jac=True, method="SLSQP", constraints=[bound], options=options)
    learnt = found.x * unit
    # Over time: the first of the polynomials is 1, and the others have no mean.
    mean, usual = (float(one.mean() if form == "buckets" else one[0]) for one in (learnt, start))
    if not mean > 1e-6 * usual:
        raise InputError(
            "No timestep helps: every weight that fits these images is 0. Are the labels those of the run's classes?"
        )
    values = learnt / mean if form == "buckets" else _monomials(learnt / mean)
    before = special.log_softmax(-temperature * errors.mean(axis=1), axis=1)[np.arange(len(labels)), labels]
    return WeightFit(
        tuple(float(value) for value in values),
        -float(before.mean()),
        cross_entropy(found.x)[0] / len(labels),
    )


def _usual_gap(errors: np.ndarray) -> float:
    """How far the mean errors of classes are apart."""
    means = errors.mean(axis=1)
    apart = means - means.min(axis=1, keepdims=True)
    return float(np.median(apart[apart > 0])) if (apart > 0).any() else 1.0


def _buckets(levels: np.ndarray, steps: int) -> Float[np.ndarray, "draws buckets"]:
    """Which part of time each draw is in; as `weighting.bucketed` divides it."""
    basis = np.eye(BUCKETS)[levels * BUCKETS // steps]
    if empty := np.flatnonzero(basis.sum(axis=0) == 0).tolist():
        raise InputError(
            f"{len(empty)} of the {BUCKETS} parts of time have no draw on which all classes of all images were scored "
            f"(there are {len(levels)} such draws), so their weights cannot be learnt. Evaluate with --policy "
            "exhaustive --draws 100, or learn the form 'cubic'."
        )
    return basis


def _legendre(time: np.ndarray) -> Float[np.ndarray, "draws four"]:
    """Polynomials up to the third degree, orthonormal over time from 0 to 1."""
    if len(np.unique(time)) < 4:
        raise InputError(
            f"A cubic polynomial needs draws at four levels or more, and there are {len(np.unique(time))} on which all "
            "classes of all images were scored. Evaluate with --policy exhaustive --draws 100."
        )
    return np.sqrt(2 * np.arange(4) + 1) * np.polynomial.legendre.legvander(2 * time - 1, 3)


def _monomials(coefficients: np.ndarray) -> Float[np.ndarray, " four"]:
    """The same polynomial as powers of time."""
    own = Legendre(coefficients * np.sqrt(2 * np.arange(4) + 1), domain=[0, 1]).convert(kind=Polynomial).coef
    return np.pad(own, (0, 4 - len(own)))
