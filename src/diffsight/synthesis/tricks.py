"""Shipard et al.'s bag of tricks (2302.03298): which prompt and which guidance scale each image gets.

A trick is a value without state: what an image gets follows from the seed, its class and its number alone, so that any
image can be made again, and a run can be continued anywhere. What can be said (templates, domains, aliases, a bank of
prompts) is gone through in turn, in an order of its own for each class: every possibility comes once before any comes
again. Sets of one size can therefore be compared, which the authors' sets cannot (fact sheet A.5.7).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffsight.errors import InputError
from diffsight.synthesis.wording import Choice, Prompts, number, turn

MIDDLE = 3.0  # The default scale: the mean of the paper's law of random scales, whose low values are what helped.


@dataclass(frozen=True, slots=True, kw_only=True)
class Prescription:
    """What one image is made from, beside its noise.

    Attributes:
        prompt: What the model reads.
        guidance_scale: Of classifier-free guidance as CompVis counts it: 1 is none.
        trick: Whose idea it is.
        domain: The kind of picture that the prompt names, if it does.
    """

    prompt: str
    guidance_scale: float
    trick: str
    domain: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """A law of guidance scales: one value, or uniform between two.

    Attributes:
        low: The least.
        high: The greatest.
        whole: Only whole numbers, each as often, as the paper's code draws them.

    Raises:
        InputError: If the bounds are no scales, or not whole where they should be.
    """

    low: float = MIDDLE
    high: float = MIDDLE
    whole: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 100:
            raise InputError(f"A guidance scale is from 0 to 100, and a range goes up; got {self.low} to {self.high}.")
        if self.whole and (self.low % 1 or self.high % 1):
            raise InputError(f"Whole scales need whole bounds; got {self.low} to {self.high}.")

    def draw(self, word: int) -> float:
        """A scale, from a number of 64 bits; to three decimals, so that it can be read and written."""
        if self.whole:
            return self.low + word * int(self.high - self.low + 1) // 2**64
        return round(self.low + (self.high - self.low) * (word / 2**64), 3)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values."""
        return {"low": self.low, "high": self.high, "whole": self.whole}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trick:
    """Prompts and guidance: every trick of the paper is one of these.

    Attributes:
        name: What it is called in manifests.
        prompts: What can be said.
        guidance: The law of its scales.
    """

    name: str
    prompts: Prompts
    guidance: Guidance = field(default_factory=Guidance)

    @property
    def parts(self) -> "tuple[Trick, ...]":
        """Itself."""
        return (self,)

    def prescribe(
        self,
        name: str,
        class_index: int,
        index: int,
        *,
        seed: int,
        choices: Mapping[str, Sequence[Choice]] | None = None,
    ) -> Prescription:
        """What the ``index``-th image of a class gets; see `sample`."""
        known = choices[self.name] if choices is not None else self.prompts.choices(name)
        chosen = known[turn(len(known), index, seed, self.name, name)]
        scale = self.guidance.draw(number(seed, self.name, name, index, "guidance"))
        return Prescription(prompt=chosen.prompt, guidance_scale=scale, trick=self.name, domain=chosen.domain)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values."""
        return {"name": self.name, **self.prompts.to_dict(), "guidance": self.guidance.to_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Several tricks, each for the same number of images of a class: N/k, and the remainder goes round the classes.

    The j-th image of a trick gets here what it would get in a set of that trick alone.

    Attributes:
        name: What the whole is called.
        tricks: Its parts.

    Raises:
        InputError: If there are fewer than two, or two of one name.
    """

    name: str = "merged"
    tricks: tuple[Trick, ...]

    def __post_init__(self) -> None:
        names = [trick.name for trick in self.tricks]
        if len(names) < 2 or len({*names}) < len(names):
            raise InputError(f"Merging needs at least two tricks of different names; got {', '.join(names) or 'none'}.")

    @property
    def parts(self) -> tuple[Trick, ...]:
        """The tricks."""
        return self.tricks

    def prescribe(
        self,
        name: str,
        class_index: int,
        index: int,
        *,
        seed: int,
        choices: Mapping[str, Sequence[Choice]] | None = None,
    ) -> Prescription:
        """What the ``index``-th image of a class gets; see `sample`."""
        part = self.tricks[(index + class_index) % len(self.tricks)]
        return part.prescribe(name, class_index, index // len(self.tricks), seed=seed, choices=choices)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values."""
        return {"name": self.name, "merged": [trick.to_dict() for trick in self.tricks]}


def sample(trick: Trick | Merged, name: str, class_index: int, index: int, *, seed: int = 0) -> Prescription:
    """What an image gets: a function of these arguments and nothing else.

    Args:
        trick: Which.
        name: Of the class.
        class_index: Its place among the classes: from which part of a merged trick its images start.
        index: Number of the image in its class, from 0.
        seed: Of the whole set.

    Raises:
        PromptError: If nothing can be said of the class.
    """
    return trick.prescribe(name, class_index, index, seed=seed)
