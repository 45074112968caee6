"""The bag of tricks by name, and what each is made with (Shipard et al. 2302.03298; fact sheet A.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from diffsight.errors import InputError, nearest
from diffsight.synthesis.tricks import Guidance, Merged, Trick
from diffsight.synthesis.wording import Bank, Prompts, Wording

DOMAINS = (
    "photo", "drawing", "painting", "sketch", "collage",
    "poster", "digital art image", "rock drawing", "stick figure", "3D rendering",
)  # fmt: skip
DOMAIN_FORM = "{a domain} of {a class}"
SATELLITE_FORM = "a satellite photo of {a class} in the style of {a domain}"
BASE = "an image of {a class}"
CLASS_PROMPT = "{class}"
RANGE = (1.0, 5.0)

TRICKS: Mapping[str, str] = {
    "base": "'an image of {a class}', the paper's reference",
    "photo": "'a photo of {a class}'",
    "class-prompt": "the bare class name",
    "multi-domain": "'{a domain} of {a class}' in the paper's ten domains, or your own",
    "satellite": "'a satellite photo of {a class} in the style of {a domain}', the paper's form for EuroSAT",
    "random-guidance": "the base prompt with a guidance scale for each image, uniform from 1 to 5",
    "templates": "your own templates in turn",
    "aliases": "the base prompt with other names of the classes, from a file",
    "superclass": "the base prompt with what the class is a type of",
    "bank": "prompts from a file: templates, or prompts of each class",
    "merged": "class-prompt, multi-domain and random-guidance, a third each",
}
MERGED = ("class-prompt", "multi-domain", "random-guidance")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrickOptions:
    """What the tricks of `make_trick` are made with.

    Attributes:
        guidance: Of all tricks but random-guidance.
        random: Of random-guidance.
        articles: "an image of an airplane", as the paper writes; without, as its code does.
        domains: Of multi-domain and satellite.
        form: Of multi-domain and satellite, instead of their own.
        templates: Of the trick templates.
        aliases: Of the trick aliases.
        superclass: Of the trick superclass.
        bank: Of the trick bank.
    """

    guidance: Guidance = field(default_factory=Guidance)
    random: Guidance = field(default_factory=lambda: Guidance(low=RANGE[0], high=RANGE[1]))
    articles: bool = True
    domains: tuple[str, ...] | None = None
    form: str | None = None
    templates: tuple[str, ...] | None = None
    aliases: Mapping[str, tuple[str, ...]] | None = None
    superclass: str | Mapping[str, str] | None = None
    bank: Wording | Bank | None = None


# Which tricks use an option; one that none of those asked for uses is refused.
_USED_BY = {
    "domains": ("multi-domain", "satellite"),
    "form": ("multi-domain", "satellite"),
    "templates": ("templates",),
    "aliases": ("aliases",),
    "superclass": ("superclass",),
    "bank": ("bank",),
}


def make_trick(spec: str, options: TrickOptions | None = None) -> Trick | Merged:
    """A trick by name, or several merged.

    Args:
        spec: A name of `TRICKS`, or several joined by ``+``: ``"base+multi-domain"``.
        options: What they are made with.

    Raises:
        InputError: If there is no such trick, one lacks what it needs, or an option fits none of them.
        PromptError: If a template, domain or alias is wrong.
    """
    options = options or TrickOptions()
    asked = [name.strip() for name in spec.split("+")]
    if unknown := next((name for name in asked if name not in TRICKS), None):
        raise InputError(f"Unknown trick {unknown!r}. {nearest(unknown, TRICKS)} Several are joined by '+'.")
    names = [part for name in asked for part in (MERGED if name == "merged" else (name,))]
    for option, users in _USED_BY.items():
        if getattr(options, option) is not None and not {*users} & {*names}:
            raise InputError(f"{option} belongs to the trick {' or '.join(users)}, which was not asked for ({spec}).")
    tricks = tuple(_make(name, options) for name in names)
    return tricks[0] if len(tricks) == 1 else Merged(name="merged" if asked == ["merged"] else spec, tricks=tricks)


def _make(name: str, options: TrickOptions) -> Trick:
    if name in ("templates", "aliases", "superclass", "bank") and getattr(options, name) is None:
        raise InputError(f"The trick {name!r} needs {_NEEDS[name]}.")
    base = BASE if options.articles else BASE.replace("{a class}", "{class}")
    guidance = options.random if name == "random-guidance" else options.guidance
    prompts: Prompts
    match name:
        case "photo":
            prompts = Wording(templates=("a photo of {a class}",))
        case "class-prompt":
            prompts = Wording(templates=(CLASS_PROMPT,))
        case "multi-domain" | "satellite":
            literal = {"multi-domain": "a {domain} of a {class}", "satellite": SATELLITE_FORM.replace("{a ", "a {")}
            usual = {"multi-domain": DOMAIN_FORM, "satellite": SATELLITE_FORM} if options.articles else literal
            prompts = Wording(templates=(options.form or usual[name],), domains=options.domains or DOMAINS)
        case "templates":
            prompts = Wording(templates=options.templates or ())
        case "aliases":
            prompts = Wording(templates=(base,), aliases=options.aliases or {})
        case "superclass":
            prompts = Wording(templates=(base,), superclass=options.superclass)
        case "bank" if options.bank is not None:
            prompts = options.bank
        case _:
            prompts = Wording(templates=(base,))
    return Trick(name=name, prompts=prompts, guidance=guidance)


_NEEDS = {
    "templates": "at least one template",
    "aliases": "a file of aliases",
    "superclass": "to know what the classes are a type of",
    "bank": "a file of prompts",
}
