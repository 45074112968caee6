"""One family of exceptions: what happened, with which value, and what to do about it."""

import difflib
from collections.abc import Iterable


class DiffsightError(Exception):
    """Anything that diffsight refuses or cannot do; its message is meant for the user."""


class InputError(DiffsightError, ValueError):
    """A parameter, flag or combination of them that makes no sense."""


class ImageError(InputError):
    """An image that cannot be read, or must not be."""


class PromptError(InputError):
    """Class names, templates or a prompt file that would give a wrong answer."""


class SourceError(DiffsightError):
    """Data that is not where it was said to be, or not in the form that it should have."""


class ModelError(DiffsightError):
    """A model that cannot be found, loaded or trusted."""


class NumericsError(DiffsightError):
    """The network gave something that is not a number, also in full precision."""


class RunError(DiffsightError):
    """A run directory that is foreign, damaged, or belongs to other settings."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which of the known names are near to ``name``, or list them all when there are few.

    Args:
        name: What the user wrote.
        known: What could have been meant.

    Returns:
        A sentence for the end of an error message.
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name.lower(), choices, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(choice) for choice in close)}?"
    return f"Known names: {', '.join(choices)}."
