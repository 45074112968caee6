"""Rendered scenes of one or two things, and captions that tell of them: test images with known truth.

The things differ in shape, colour, size, position and texture; captions have the grammar of Clark & Jaini's
attribute-binding tests (2303.15233): ``A small red square and a large blue circle``, ``On the left is a circle``. The
embedded ``tiny-shapes`` learnt from such scenes without the combinations `HELD_OUT`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "red": (225, 40, 40),
        "green": (40, 175, 60),
        "blue": (50, 80, 230),
        "yellow": (240, 215, 50),
        "purple": (150, 50, 190),
        "cyan": (60, 205, 220),
    }
)
SIZES = ("small", "large")
POSITIONS = ("left", "right")
TEXTURES = ("solid", "striped")

# Each shape and four of the six colours; every word of them is seen in training, but not together.
HELD_OUT = frozenset({("circle", "yellow"), ("square", "purple"), ("triangle", "red"), ("cross", "blue")})

VALUES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"shape": SHAPES, "colour": tuple(COLOURS), "size": SIZES, "position": POSITIONS, "texture": TEXTURES}
)
_RADIUS = {"small": (4.2, 4.8), "large": (7.0, 7.6)}  # in 32nds of the side
_CENTRE = {"left": 8.0, "right": 24.0}
_STRIPE = 2.0
_SHADE = 0.35  # of the colour, in the dark stripes
_OVERSAMPLED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One thing in a scene.

    Attributes:
        shape: One of `SHAPES`.
        colour: One of `COLOURS`.
        size: ``small`` or ``large``.
        position: ``left`` or ``right`` half of the picture.
        texture: ``solid`` or ``striped``.
        centre: Where its middle is, x and y in shares of the side.
        radius: Half its width, in shares of the side.
    """

    shape: str
    colour: str
    size: str
    position: str
    texture: str
    centre: tuple[float, float]
    radius: float

    @property
    def held_out(self) -> bool:
        """Whether its shape and colour were never seen together in training."""
        return (self.shape, self.colour) in HELD_OUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One or two things, the leftmost first, before a grey background.

    Attributes:
        things: What is in it.
        background: Grey value from 0 to 255.
    """

    things: tuple[Thing, ...]
    background: int


def random_thing(
    rng: np.random.Generator, fixed: Mapping[str, str], *, unlike: Thing | None = None, differs: Sequence[str] = ()
) -> Thing:
    """Draw a thing.

    Args:
        rng: Random numbers.
        fixed: Attributes that are given.
        unlike: Another thing.
        differs: Attributes in which the two must differ.
    """

    def value(attribute: str) -> str:
        if attribute in fixed:
            return fixed[attribute]
        banned = getattr(unlike, attribute) if attribute in differs else None
        options = [option for option in VALUES[attribute] if option != banned]
        return options[rng.integers(len(options))]

    size, position = value("size"), value("position")
    radius = rng.uniform(*_RADIUS[size])
    x = _CENTRE[position] + rng.uniform(-1, 1) * (7.8 - radius)
    y = rng.uniform(radius + 0.5, 31.5 - radius)
    return Thing(
        shape=value("shape"),
        colour=value("colour"),
        size=size,
        position=position,
        texture=value("texture"),
        centre=(x / 32, y / 32),
        radius=radius / 32,
    )


def random_scene(
    rng: np.random.Generator, *, count: int = 2, differs: Sequence[str] = (), held_out: bool | None = False
) -> Scene:
    """Draw a scene of independent things.

    Args:
        rng: Random numbers.
        count: 1 or 2 things.
        differs: Attributes in which two things must differ; they always stand on different sides.
        held_out: False: no combination of `HELD_OUT` is in it; True: at least one is; None: as it comes.
    """
    while True:
        first = random_thing(rng, {} if count == 1 else {"position": "left"})
        things = (first,)
        if count == 2:
            things += (random_thing(rng, {"position": "right"}, unlike=first, differs=differs),)
        if held_out is None or any(thing.held_out for thing in things) == held_out:
            return Scene(things=things, background=int(rng.integers(0, 256)))


def with_values(scene: Scene, attribute: str, values: Sequence[str]) -> Scene:
    """The same scene with other values of one attribute; where sizes or positions change hands, so do the places.

    Args:
        scene: Of two things.
        attribute: Which one.
        values: The new value of each thing; for size and position those of the two exchanged.
    """
    left, right = scene.things
    things = tuple(replace(thing, **{attribute: value}) for thing, value in zip((left, right), values, strict=True))
    if attribute == "position":
        # Who goes to the other side stands as far from its middle as who stood there.
        centres = [(right.centre[0], left.centre[1]), (left.centre[0], right.centre[1])]
        things = tuple(replace(thing, centre=centre) for thing, centre in zip(things, centres, strict=True))[::-1]
    if attribute == "size":
        things = (replace(things[0], radius=right.radius), replace(things[1], radius=left.radius))
    return replace(scene, things=tuple(replace(thing, centre=_inside(thing)) for thing in things))


def _inside(thing: Thing) -> tuple[float, float]:
    """Its centre, moved so that all of it is in its half of the picture."""
    low = 0.0 if thing.position == "left" else 0.5
    x = min(max(thing.centre[0], low + thing.radius), low + 0.5 - thing.radius)
    return x, min(max(thing.centre[1], thing.radius), 1 - thing.radius)


def draw(scene: Scene, side: int = 32) -> Image.Image:
    """Paint a scene as an RGB picture of ``side``×``side`` pixels, smooth at the edges."""
    full = side * _OVERSAMPLED
    canvas = Image.new("RGB", (full, full), (scene.background,) * 3)
    for thing in scene.things:
        mask = Image.new("L", (full, full), 0)
        _outline(ImageDraw.Draw(mask), thing, full)
        canvas.paste(COLOURS[thing.colour], mask=mask)
        if thing.texture == "striped":
            _keep_stripes(ImageDraw.Draw(mask), thing, full)
            canvas.paste(tuple(int(_SHADE * value) for value in COLOURS[thing.colour]), mask=mask)
    return canvas.resize((side, side), Image.Resampling.BOX)


def _outline(pen: ImageDraw.ImageDraw, thing: Thing, full: int) -> None:
    x, y = (value * full for value in thing.centre)
    r = thing.radius * full
    match thing.shape:
        case "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        case "square":
            a = 0.9 * r
            pen.rectangle((x - a, y - a, x + a, y + a), fill=255)
        case "triangle":
            pen.polygon([(x - r, y + 0.9 * r), (x + r, y + 0.9 * r), (x, y - r)], fill=255)
        case _:
            arm = 0.33 * r
            pen.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
            pen.rectangle((x - arm, y - r, x + arm, y + r), fill=255)


def _keep_stripes(pen: ImageDraw.ImageDraw, thing: Thing, full: int) -> None:
    """Leave every second horizontal stripe of a mask."""
    width = _STRIPE * full / 32
    y = (thing.centre[1] - thing.radius) * full
    bottom = (thing.centre[1] + thing.radius) * full
    while y < bottom:
        pen.rectangle((0, y, full, y + width - 1), fill=0)
        y += 2 * width


def phrase(thing: Thing, attributes: Sequence[str], changed: Mapping[str, str] | None = None) -> str:
    """``small striped red square``: the words for some attributes of a thing; ``object`` where its shape is not one.

    Args:
        thing: What is told of.
        attributes: Which of its attributes, in any order; ``position`` is not part of the phrase.
        changed: Other values for some of them.
    """
    values = {name: getattr(thing, name) for name in VALUES} | dict(changed or {})
    words = [values[name] for name in ("size", "texture", "colour") if name in attributes]
    return " ".join([*words, values["shape"] if "shape" in attributes else "object"])


def caption(
    things: Sequence[Thing], attributes: Sequence[str], changed: Sequence[Mapping[str, str] | None] | None = None
) -> str:
    """Tell of one thing or two in the grammar of Clark & Jaini.

    ``["On the {position} is a " | "A "] + size + colour + (shape | "object")``, two of them joined with "and".

    Args:
        things: What is told of, the leftmost first.
        attributes: Which attributes of each.
        changed: For each thing, other values for some of them: so a caption becomes wrong.
    """
    parts = []
    for index, thing in enumerate(things):
        other = (changed[index] if changed else None) or {}
        words = phrase(thing, attributes, other)
        article = "an" if words[0] in "aeiou" else "a"
        if "position" in attributes:
            parts.append(f"on the {other.get('position', thing.position)} is {article} {words}")
        else:
            parts.append(f"{article} {words}")
    text = " and ".join(parts)
    return text[0].upper() + text[1:]
