"""What the settings of all heads have in common: checks of sizes, and the form in which they go into files."""

from dataclasses import asdict
from typing import Any

from diffsight.errors import InputError


def as_dict(settings: Any) -> dict[str, Any]:  # noqa: ANN401 - any frozen dataclass with a name
    """Name and options as plain JSON values."""
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}
    return {"name": settings.name, **options}


def check_sizes(settings: Any, *options: str) -> None:  # noqa: ANN401
    """Refuse options that are not None, a whole number of at least 1, or several of these.

    Raises:
        InputError: Then.
    """
    for option in options:
        value = getattr(settings, option)
        sizes = value if isinstance(value, tuple) else (value,)
        if value is not None and (not sizes or any(type(size) is not int or size < 1 for size in sizes)):
            raise InputError(f"{option} of head {settings.name!r} must be at least 1, in whole numbers; got {value!r}.")
