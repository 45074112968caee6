"""The file of a task: what may stand in it, and every mistake in one, with its line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import yaml

from diffsight.data.corruptions import split_change
from diffsight.data.prompts import PromptSet
from diffsight.errors import InputError, nearest

METRICS = ("top1", "mean_per_class")
REQUIRED = ("name", "version", "source", "templates", "licence", "citation")
OPTIONAL = ("split", "class_names", "metric", "protocol", "presets")
_LARGEST = 1_000_000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """What is wrong with a task.

    Attributes:
        message: All of it, with the file, the line and what to do.
        line: Counted from 1; None if it is not at one place.
        key: Of the value that is wrong, if it is one.
    """

    message: str
    line: int | None = None
    key: str | None = None


def read_task(text: str, *, origin: str = "task") -> tuple[dict[str, Any], list[Mistake]]:
    """Read the values of a task file, and find all its mistakes.

    Args:
        text: YAML.
        origin: Where it is from, for the messages.

    Returns:
        The values that are right, and what is wrong.
    """
    if len(text) > _LARGEST:
        return {}, [Mistake(message=f"{origin} has {len(text)} characters; a task file has at most {_LARGEST}.")]
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        values = cast(dict[str, Any], yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = None if mark is None else mark.line + 1
        return {}, [Mistake(message=f"{origin} is not YAML: {error}", line=line)]
    if not isinstance(root, yaml.MappingNode):
        return {}, [Mistake(message=f"{origin} must be a list of keys and values: {', '.join(REQUIRED)}.")]
    lines, mistakes = _key_lines(root, origin)
    mistakes += [
        Mistake(message=f"{origin} has no {key!r}. A task needs: {', '.join(REQUIRED)}.", key=key)
        for key in REQUIRED
        if key not in lines
    ]
    right: dict[str, Any] = {}
    for key, line in lines.items():
        value = _tuples(values.get(key))
        try:
            check_value(key, value)
        except InputError as error:
            mistakes.append(Mistake(message=f"{origin}, line {line}, {key}: {error}", line=line, key=key))
        else:
            right[key] = value
    return right, mistakes


def lines_of(text: str) -> dict[str, int]:
    """The line of each key of a file that `read_task` has read."""
    root = yaml.compose(text, yaml.SafeLoader)
    return _key_lines(root, "")[0] if isinstance(root, yaml.MappingNode) else {}


def check_value(key: str, value: object) -> None:
    """Refuse a value of a task that makes no sense.

    Raises:
        InputError: The message says only what is wrong with the value.
    """
    match key:
        case "version":
            if type(value) is not int or value < 1:
                raise InputError("must be a whole number from 1.")
        case "metric":
            if value not in METRICS:
                raise InputError(f"must be a known metric. {nearest(str(value), METRICS)}")
        case "templates":
            PromptSet.from_templates(("one", "other"), _texts(value))
        case "class_names":
            if value is not None:
                PromptSet.from_templates(_texts(value), "{}")
        case "presets":
            if not isinstance(value, Mapping):
                raise InputError("must map names of presets to lists of templates.")
            for templates in value.values():
                PromptSet.from_templates(("one", "other"), _texts(templates))
        case "citation" | "licence" | "protocol":
            if not isinstance(value, str):
                raise InputError("must be text; put it in quotes.")
        case _:
            if not isinstance(value, str) or not value.strip() or len(value.splitlines()) != 1:
                raise InputError("must be one line of text; put it in quotes if it looks like a number or a date.")
            if key == "source":
                split_change(value)


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, tuple) or not value:
        raise InputError("must be a list of texts.")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InputError(f"item {index + 1} is a {type(item).__name__}, not text; put it in quotes.")
    return value


def _key_lines(root: yaml.MappingNode, origin: str) -> tuple[dict[str, int], list[Mistake]]:
    """The line of each known key, and what is wrong with keys: YAML itself lets unknown and repeated ones pass."""
    lines: dict[str, int] = {}
    mistakes: list[Mistake] = []
    for node, _ in root.value:
        line, key = node.start_mark.line + 1, str(node.value)
        if key not in (*REQUIRED, *OPTIONAL):
            says = f"unknown key {key!r}. {nearest(key, (*REQUIRED, *OPTIONAL))}"
            mistakes.append(Mistake(message=f"{origin}, line {line}: {says}", line=line, key=key))
        elif key in lines:
            says = f"{key!r} is there already, on line {lines[key]}."
            mistakes.append(Mistake(message=f"{origin}, line {line}: {says}", line=line, key=key))
        else:
            lines[key] = line
    return lines, mistakes


def _tuples(value: object) -> object:
    """Lists as tuples, also inside a mapping."""
    if isinstance(value, dict):
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
