"""The classes of class-conditional models: by name, or by id written as text."""

import hashlib
import json
from collections.abc import Sequence

from diffsight.backbones.base import Backbone
from diffsight.errors import PromptError, nearest


def class_id(name: str, class_names: Sequence[str], model: str) -> int:
    """Find a class by its name, by one of its synonyms, or by its id.

    Args:
        name: What the user wrote.
        class_names: In the order of their ids; the null class is not among them.
        model: What to call the model in errors.

    Raises:
        PromptError: If the model does not know the class, or knows several of that name.
    """
    # ImageNet's names list synonyms ("tench, Tinca tinca"), and a few words belong to two classes ("crane").
    found = [id for id, names in enumerate(class_names) if name == names or name in names.split(", ")]
    if len(found) > 1:
        raise PromptError(f"{name!r} is the name of the classes {found} of {model}. Write the id instead.")
    if found:
        return found[0]
    count = len(class_names)
    if name.isdecimal() and int(name) < count:
        return int(name)
    if name.isdecimal():
        raise PromptError(f"{model} has no class {name}: its ids go from 0 to {count - 1}.")
    raise PromptError(f"{model} knows {count} classes and {name!r} is not one of them. {nearest(name, class_names)}")


def classes_hash(class_names: Sequence[str]) -> str:
    """For `Backbone.identity`: a name that stands for another id is fed as another class."""
    return hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()[:16]


def refuse_unconditional(backbone: Backbone) -> None:
    """Say that a model without conditions cannot choose between classes.

    Raises:
        PromptError: If it is one.
    """
    if backbone.class_names == ():
        raise PromptError(
            f"{backbone.name} is unconditional: it takes neither classes nor text, so it cannot tell which of several "
            "fits an image best. Use its features, or a model that reads text or class ids ('diffsight ls models')."
        )
