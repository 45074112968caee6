"""How well an image and a text fit: several scores of the same measurements, higher is better.

A score gives a number for every draw; its mean over draws is the score of the pair. Differences between candidates draw
by draw are what elimination tests.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from diffsight.errors import InputError, nearest
from diffsight.matching.statistics import Statistics


@runtime_checkable
class Score(Protocol):
    """What every score can do."""

    name: ClassVar[str]

    @property
    def needs_null(self) -> bool:
        """Whether the empty text has to be measured too."""
        ...

    @property
    def needs_attention(self) -> bool:
        """Whether cross-attention has to be read."""
        ...

    @property
    def compares_images(self) -> bool:
        """Whether images of one text can be compared, and not only texts of one image."""
        ...

    def per_draw(
        self, statistics: Statistics, weights: Float[np.ndarray, " draws"]
    ) -> Float[np.ndarray, "draws pairs"]:
        """The score at each draw.

        Args:
            statistics: What was measured.
            weights: Of each draw in eps-space, with mean 1.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and settings as plain JSON values; `score_from_dict` reads them."""
        ...


@dataclass(frozen=True, slots=True)
class DenoisingError:
    """−w ‖ε − ε_θ(x_t, c)‖² / D: which text denoises the image best (Li et al. 2303.16203).

    Texts can be compared for one image. Images cannot be compared for one text: the score says above all how easy an
    image is. Use `PMI` there.
    """

    name: ClassVar[str] = "error"

    @property
    def needs_null(self) -> bool:
        """No."""
        return False

    @property
    def needs_attention(self) -> bool:
        """No."""
        return False

    @property
    def compares_images(self) -> bool:
        """No: it says above all how easy an image is."""
        return False

    def per_draw(
        self, statistics: Statistics, weights: Float[np.ndarray, " draws"]
    ) -> Float[np.ndarray, "draws pairs"]:
        """The negative weighted error."""
        return -weights[:, None] * statistics.errors

    def to_dict(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}


@dataclass(frozen=True, slots=True)
class PMI:
    """w (‖ε − ε_θ(x_t, ∅)‖² − ‖ε − ε_θ(x_t, c)‖²) / D: how much the text helps (Krojer et al. 2305.16397).

    A log-likelihood ratio log p(x|c) / p(x), up to scale: texts and images can both be compared. For texts of one image
    it ranks as `DenoisingError` does, because the empty text's part is the same for all.
    """

    name: ClassVar[str] = "pmi"

    @property
    def needs_null(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_attention(self) -> bool:
        """No."""
        return False

    @property
    def compares_images(self) -> bool:
        """Yes."""
        return True

    def per_draw(
        self, statistics: Statistics, weights: Float[np.ndarray, " draws"]
    ) -> Float[np.ndarray, "draws pairs"]:
        """The weighted gain over the empty text."""
        return weights[:, None] * (statistics.null_errors - statistics.errors)

    def to_dict(self) -> dict[str, Any]:
        """Its name."""
        return {"name": self.name}


@dataclass(frozen=True, slots=True)
class Attention:
    """Mean pooled cross-attention of the chosen layers, each layer with equal weight (He et al. 2305.10722, §3).

    Attributes:
        null: What to do with the attention under the empty text: ``ignore``; ``subtract`` it, which removes what an
            image gets from any text; or ``average`` it in, as the authors' code does.
    """

    name: ClassVar[str] = "attention"
    null: str = "ignore"

    def __post_init__(self) -> None:
        if self.null not in ("ignore", "subtract", "average"):
            raise InputError(f"null must be 'ignore', 'subtract' or 'average'; got {self.null!r}.")

    @property
    def needs_null(self) -> bool:
        """If the empty text is looked at."""
        return self.null != "ignore"

    @property
    def needs_attention(self) -> bool:
        """Yes."""
        return True

    @property
    def compares_images(self) -> bool:
        """Only less the attention under the empty text, which an image gets from any text."""
        return self.null == "subtract"

    def per_draw(
        self, statistics: Statistics, weights: Float[np.ndarray, " draws"]
    ) -> Float[np.ndarray, "draws pairs"]:
        """The mean over heads, then over layers; draws count alike, whatever the weights of errors are."""
        shares = layer_shares(statistics.columns)
        under_text = statistics.attention @ shares
        if self.null == "ignore":
            return under_text
        under_null = statistics.null_attention @ shares
        return under_text - under_null if self.null == "subtract" else (under_text + under_null) / 2

    def to_dict(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Hybrid:
    """alpha · attention + beta · (‖ε − ε_θ(x_t, ∅)‖ − ‖ε − ε_θ(x_t, c)‖), the norms not squared.

    What He et al.'s code does unless it is told otherwise, although it is called cross-attention there.

    Attributes:
        alpha: Weight of the attention.
        beta: Weight of the gain over the empty text.
        null: As in `Attention`.
    """

    name: ClassVar[str] = "hybrid"
    alpha: float = 1.0
    beta: float = 1.0
    null: str = "subtract"

    def __post_init__(self) -> None:
        Attention(null=self.null)
        if not np.isfinite([self.alpha, self.beta]).all():
            raise InputError(f"alpha and beta must be finite numbers; got {self.alpha} and {self.beta}.")

    @property
    def needs_null(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_attention(self) -> bool:
        """Yes."""
        return True

    @property
    def compares_images(self) -> bool:
        """As in `Attention`."""
        return self.null == "subtract" or self.alpha == 0

    def per_draw(
        self, statistics: Statistics, weights: Float[np.ndarray, " draws"]
    ) -> Float[np.ndarray, "draws pairs"]:
        """The weighted sum; only the gain is weighted by timestep."""
        attention = Attention(null=self.null).per_draw(statistics, weights)
        norms = (np.sqrt(statistics.size * errors) for errors in (statistics.null_errors, statistics.errors))
        without, with_text = norms
        return self.alpha * attention + self.beta * weights[:, None] * (without - with_text)

    def to_dict(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **asdict(self)}


SCORES: Mapping[str, type] = {score.name: score for score in (PMI, DenoisingError, Attention, Hybrid)}


def score_from_dict(values: Mapping[str, Any]) -> Score:
    """Make a score from its name and settings.

    Args:
        values: ``{"name": "hybrid", "beta": 0.5}``.

    Raises:
        InputError: If there is no such score, it has no such setting, or a value makes no sense.
    """
    settings = dict(values)
    name = str(settings.pop("name", ""))
    if name not in SCORES:
        raise InputError(f"Unknown score {name!r}. {nearest(name, SCORES)}")
    known = list(getattr(SCORES[name], "__dataclass_fields__", {}))
    for key in settings:
        if key not in known:
            raise InputError(f"The score {name!r} has no setting {key!r}. {nearest(key, known)}")
    return SCORES[name](**settings)


def layer_shares(columns: tuple[str, ...]) -> Float[np.ndarray, " columns"]:
    """Weights of the attention's columns that give each layer the same, and its heads equal parts; they sum to 1."""
    layers = [column.rpartition("/")[0] for column in columns]
    return np.array([1 / (len(set(layers)) * layers.count(layer)) for layer in layers])
