"""What is said of a class: templates with the right article, domains, aliases, superclasses, or prompts as they stand.

A template names the class as ``{class}``, or with its article as ``{a class}`` ("an airplane"); ``{}`` and ``{c}`` are
the class, too. The domain of a multi-domain prompt is ``{domain}`` or ``{a domain}``.
"""

import hashlib
import json
import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from diffsight.errors import PromptError

CLASS, DOMAIN = ("", "c", "class", "a class"), ("domain", "a domain")
LONGEST = 1000  # Characters of a prompt: no text encoder here reads as many.
_LISTED = 100  # More choices than that are told by their hash.

# Words that begin with a vowel and are spoken with a consonant, and the other way round; and single letters by name.
_CONSONANT = re.compile(r"(uni([^nm]|$|\s)|us[aeiu]|u[bt][aei]|eu|ew|one\b|once\b|ukulele|uranium)", re.IGNORECASE)
_SILENT = re.compile(r"(hono[u]?r|honest|hour|heir)", re.IGNORECASE)
_NUMBER = re.compile(r"(8|11(?!\d)|18(?!\d))")
_LETTERS = "AEFHILMNORSX"


@dataclass(frozen=True, slots=True)
class Choice:
    """One thing that can be said of a class, and the domain that it names, if any."""

    prompt: str
    domain: str | None = None


@runtime_checkable
class Prompts(Protocol):
    """All that can be said of a class."""

    def choices(self, name: str) -> Sequence[Choice]:
        """What can be said of this class, in a fixed order.

        Raises:
            PromptError: If nothing can.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """Every template with every domain and every name of the class.

    Attributes:
        templates: Each with one place for the class, and for the domain if there are domains.
        domains: Kinds of picture.
        aliases: What to call a class instead of its name; classes that are not in it keep theirs.
        superclass: What every class is a kind of, or what each class is: ", a type of pet" follows the name.

    Raises:
        PromptError: If a template has no place for what it should name, or something is empty.
    """

    templates: tuple[str, ...]
    domains: tuple[str, ...] = ()
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    superclass: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.templates:
            raise PromptError("There is no template. The usual one is 'an image of {a class}'.")
        for template in self.templates:
            check_template(template, with_domain=bool(self.domains))
        for domain in self.domains:
            if not domain.strip() or "{" in domain or "}" in domain:
                raise PromptError(
                    f"A domain is a word for a kind of picture, such as 'sketch', without braces; got {domain!r}. What "
                    "is said around it is the form, such as 'a {domain} of {a class}'."
                )
        for name, others in self.aliases.items():
            if not others or not all(other.strip() for other in others):
                raise PromptError(f"The aliases of {name!r} must be words; got {list(others)!r}.")

    def choices(self, name: str) -> tuple[Choice, ...]:
        """Templates first, then domains, then names."""
        suffix = self._suffix(name)
        names = [other + suffix for other in self.aliases.get(name, (name,))]
        return tuple(
            Choice(prompt=fill(template, called, domain), domain=domain)
            for template in self.templates
            for domain in self.domains or (None,)
            for called in names
        )

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values; long lists are told by their hash."""
        aliases = {name: list(others) for name, others in self.aliases.items()}
        superclass = self.superclass if isinstance(self.superclass, str | None) else dict(self.superclass)
        return {
            "templates": told(list(self.templates)),
            "domains": told(list(self.domains)),
            "aliases": told(aliases),
            "superclass": superclass if isinstance(superclass, str | None) else told(superclass),
        }

    def _suffix(self, name: str) -> str:
        if self.superclass is None:
            return ""
        found = self.superclass if isinstance(self.superclass, str) else self.superclass.get(name, "")
        if not found.strip():
            raise PromptError(f"It is not said what {name!r} is a type of. Name it in the file of superclasses.")
        return f", a type of {found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bank:
    """Prompts that were written for each class, for example by a language model.

    Attributes:
        prompts: Of each class, as they stand.

    Raises:
        PromptError: If a prompt is empty or too long.
    """

    prompts: Mapping[str, tuple[str, ...]]

    def __post_init__(self) -> None:
        for name, prompts in self.prompts.items():
            for prompt in prompts:
                if not prompt.strip() or len(prompt) > LONGEST:
                    raise PromptError(f"A prompt of {name!r} must have 1 to {LONGEST} characters; got {prompt!r:.80}.")

    def choices(self, name: str) -> tuple[Choice, ...]:
        """The prompts of the class."""
        if not self.prompts.get(name):
            raise PromptError(f"The prompt bank has no prompt for {name!r}.")
        return tuple(Choice(prompt) for prompt in self.prompts[name])

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-compatible values; long lists are told by their hash."""
        return {"bank": told({name: list(prompts) for name, prompts in self.prompts.items()})}


def check_template(template: str, *, with_domain: bool) -> None:
    """Refuse a template without a place for the class, or one whose domain is missing or not there.

    Raises:
        PromptError: Saying which.
    """
    if not template.strip() or len(template) > LONGEST:
        raise PromptError(f"A template must have 1 to {LONGEST} characters; got {template!r:.80}.")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise PromptError(f"The template {template!r} has a stray brace; write {{{{ or }}}} for a brace.") from error
    places = [(name, spec or "", conversion) for _, name, spec, conversion in parts if name is not None]
    strange = [name for name, spec, conversion in places if name not in CLASS + DOMAIN or spec or conversion]
    if strange:
        raise PromptError(
            f"The template {template!r} has the placeholder {{{strange[0]}}}; known are {{class}}, {{a class}}, "
            "{domain} and {a domain}."
        )
    if sum(name in CLASS for name, _, _ in places) != 1:
        raise PromptError(f"The template {template!r} must have one place for the class: {{class}} or {{a class}}.")
    domains = sum(name in DOMAIN for name, _, _ in places)
    if domains != with_domain:
        should = "one place for the domain, {domain} or {a domain}" if with_domain else "no place for a domain"
        raise PromptError(f"The template {template!r} must have {should}.")


def fill(template: str, name: str, domain: str | None) -> str:
    """Put class and domain into a checked template, each with its article where the template asks for it."""
    values = {"c": name, "class": name, "": name, "domain": domain or ""}
    text = []
    for literal, place, _, _ in string.Formatter().parse(template):
        text.append(literal)
        if place is not None:
            value = values[place.removeprefix("a ")]
            text.append(f"{article(value)} {value}" if place.startswith("a ") else value)
    return "".join(text)


def article(phrase: str) -> str:
    """The indefinite article, by how the first word is spoken: an airplane, a unicorn, an SUV."""
    word = re.split(r"[\s/-]", phrase.strip(), maxsplit=1)[0]
    if not word:
        return "a"
    if word[0].isdigit():
        return "an" if _NUMBER.match(word) else "a"
    spelled = len(word) == 1 or (word.isupper() and len(word) <= 3)  # X-ray, SUV: spoken letter by letter
    if spelled:
        return "an" if word[0].upper() in _LETTERS else "a"
    if _SILENT.match(word):
        return "an"
    return "an" if word[0].lower() in "aeiou" and not _CONSONANT.match(word) else "a"


def turn(count: int, index: int, *address: str | int) -> int:
    """Which of ``count`` things is the ``index``-th: in an order by the address, each comes once before any again.

    Args:
        count: How many there are.
        index: From 0.
        address: What the order is for.
    """
    start, stride = number(*address, "start"), number(*address, "stride") % count
    while math.gcd(stride, count) != 1:
        stride += 1
    return (start + index * stride) % count


def number(*address: str | int) -> int:
    """A number of 64 bits that follows from an address alone."""
    text = json.dumps(["prescriptions-1", *address], ensure_ascii=True)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def told(value: Sequence[str] | Mapping[str, Any]) -> Any:  # noqa: ANN401 - JSON
    """A list or dict for a fingerprint: itself while it is short, else how long it is and its hash."""
    size = len(value) if isinstance(value, Sequence) else sum(map(len, value.values()))
    if size <= _LISTED:
        return value
    content = json.dumps(value, sort_keys=True).encode()
    return {"count": size, "sha256": hashlib.sha256(content).hexdigest()}
