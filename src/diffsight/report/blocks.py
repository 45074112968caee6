"""What a page is made of. Texts are text: the templates escape them; only a chart's SVG is taken as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One number of the headline.

    Attributes:
        label: What it is.
        value: The number.
        detail: What has to stand beside it: an interval, of how many.
        main: Whether it is the number that the task reports.
    """

    label: str
    value: str
    detail: str = ""
    main: bool = False


@dataclass(frozen=True, slots=True)
class Tiles:
    """The headline numbers."""

    kind: ClassVar[str] = "tiles"
    floats: ClassVar[bool] = False
    tiles: Sequence[Tile]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph.

    Attributes:
        text: What it says.
        tone: A warning is set apart, a note is small.
    """

    kind: ClassVar[str] = "text"
    floats: ClassVar[bool] = False
    text: str
    tone: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Facts:
    """Pairs of a name and a value."""

    kind: ClassVar[str] = "facts"
    floats: ClassVar[bool] = False
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A cell of a table that is more than text.

    Attributes:
        text: What is in it.
        shade: Strength of its background, from 0 to 10.
        right: Whether it is where right answers are counted.
        span: Draw this interval (low, value, high), shares from 0 to 1.
    """

    text: str = ""
    shade: int = 0
    right: bool = False
    span: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: Its heading.
        number: Numbers stand to the right.
        title: What the heading stands for, if it is short.
    """

    name: str
    number: bool = True
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose first column names the rows; where it is too wide it scrolls inside the page.

    Attributes:
        caption: What it shows.
        columns: With headings.
        rows: Text or cells.
        dense: Narrow columns of counts, as in a confusion matrix.
        wide: Many columns: smaller, with headings in several lines, and rows' names that stay in sight on a phone.
    """

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Cell]]
    dense: bool = False
    wide: bool = False

    @property
    def floats(self) -> bool:
        """Whether something may stand beside it."""
        return self.dense


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A picture of numbers; several of them stand beside one another where there is room.

    Attributes:
        svg: From `charts.to_svg`; not escaped.
        caption: Below it.
    """

    kind: ClassVar[str] = "chart"
    floats: ClassVar[bool] = True
    svg: str
    caption: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image of a gallery.

    Attributes:
        uri: ``data:`` URI of a small copy, or None where the image is not there.
        alt: What stands for the image.
        lines: Below it.
        good: Whether the answer is right; None where that is no question.
        title: The image's id.
    """

    uri: str | None
    alt: str
    lines: Sequence[str]
    good: bool | None = None
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gallery:
    """Images, and what was answered."""

    kind: ClassVar[str] = "gallery"
    floats: ClassVar[bool] = False
    title: str
    note: str
    pictures: Sequence[Picture]


Block = Tiles | Text | Facts | Table | Chart | Gallery


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of a page with a heading.

    Attributes:
        id: For links to it, unique in the page.
        title: Its heading.
        blocks: What is in it.
    """

    id: str
    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A run on a page, or the comparison of several.

    Attributes:
        id: For links to it, unique in the page.
        title: Its heading.
        subtitle: Below it.
        sections: What is in it; the first has no heading.
    """

    id: str
    title: str
    subtitle: str
    sections: Sequence[Section]
