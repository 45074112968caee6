"""Numbers as text, written as the command line writes them."""

from collections.abc import Mapping

NOTHING = "–"


def share(value: float | None) -> str:
    """A share as a percentage: ``87.5%``."""
    return NOTHING if value is None else f"{value:.1%}"


def interval(estimate: Mapping[str, float] | None) -> str:
    """The interval of a share: ``[83.1%, 91.0%]``."""
    return NOTHING if estimate is None else f"[{estimate['low']:.1%}, {estimate['high']:.1%}]"


def count(value: float | None) -> str:
    """A whole number: ``12,345``."""
    return NOTHING if value is None else f"{value:,.0f}"


def rate(value: float | None) -> str:
    """A number of calls, or milliseconds: three digits where it is small, ``12,345.6`` where it is not."""
    if value is None:
        return NOTHING
    return f"{value:,.1f}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def briefly(seconds: float | None) -> str:
    """A time that may be short: ``0.63 ms``, ``12.3 ms``, ``4.5 s``."""
    if seconds is None:
        return NOTHING
    return f"{rate(1000 * seconds)} ms" if seconds < 1 else duration(seconds)


def duration(seconds: float) -> str:
    """A time that a person can read: ``12.3 s``, ``4 min 05 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(number: int, one: str, many: str = "") -> str:
    """A number with its noun: ``1 image``, ``2 images``."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
