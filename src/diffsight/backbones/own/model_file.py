"""A model file: a user's own combination of a known model with what they trained, as one YAML file."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from diffsight.backbones.folders import PICKLES, files_hash, weights_hash
from diffsight.backbones.small_memory import TEXT_ENCODERS
from diffsight.errors import InputError, ModelError, nearest

KEYS = ("base", "denoiser", "lora", "embeddings", "text_encoder", "trained_on")
_LARGEST = 100_000  # Bytes.


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A low-rank change of the weights.

    Attributes:
        file: In diffusers' or kohya's format.
        scale: What it is multiplied by.
    """

    file: Path
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """A textual inversion.

    Attributes:
        file: Its vectors.
        token: What stands for them in a prompt.
        named: Whether the user chose the token, and not the file's name.
    """

    file: Path
    token: str
    named: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """What a model file says; all its files exist.

    Attributes:
        base: A card's name, a Hub repository or a folder.
        denoiser: A diffusers folder of the network, or its weights.
        lora: Fused in this order.
        embeddings: Added in this order.
        text_encoder: How text encoders are kept; see `diffsight.load`.
        trained_on: What the user wants to be said beside the numbers.
    """

    base: str
    denoiser: Path | None = None
    lora: tuple[Lora, ...] = ()
    embeddings: tuple[Embedding, ...] = ()
    text_encoder: str | None = None
    trained_on: str | None = None

    def provenance(self) -> dict[str, str]:
        """For `Backbone.identity`: hashes of all files, scales and tokens; not where the files lie."""
        said = {}
        if self.denoiser is not None:
            folder = self.denoiser.is_dir()
            said["denoiser"] = weights_hash(self.denoiser, (".",)) if folder else files_hash([self.denoiser])
        if self.lora:
            said["lora"] = ", ".join(f"{files_hash([one.file])} x {one.scale!r}" for one in self.lora)
        if self.embeddings:
            said["embeddings"] = ", ".join(f"{one.token!r} {files_hash([one.file])}" for one in self.embeddings)
        return said


def is_model_file(name: str | Path) -> bool:
    """Whether a model's name is that of a model file."""
    return str(name).lower().endswith((".yaml", ".yml")) and not str(name).startswith("hf:")


def read_model_file(path: str | Path) -> ModelFile:
    """Read a model file.

    Raises:
        ModelError: With the file, the line and the key of the first mistake.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as stream:
            text = stream.read(_LARGEST + 1).decode("utf-8-sig")
    except FileNotFoundError:
        raise ModelError(f"There is no model file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"The model file {path} cannot be read: {error}") from error
    if len(text) > _LARGEST:
        raise ModelError(f"{path} is larger than {_LARGEST} bytes and no model file.")
    try:
        root = yaml.compose(text, yaml.SafeLoader)
        values = cast(dict[str, Any], yaml.safe_load(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(root, yaml.MappingNode):
        raise ModelError(f"{path} must be a list of keys and values: {', '.join(KEYS)}.")
    lines = _lines(root, path)
    if "base" not in lines:
        raise ModelError(f"{path} has no 'base': the card, hf:org/repo@revision or folder that it changes.")
    found: dict[str, Any] = {}
    for key, line in lines.items():
        try:
            found[key] = _READERS[key](values[key], path.parent)
        except InputError as error:
            raise ModelError(f"{path}, line {line}, {key}: {error}") from error
    return ModelFile(**found)


def _lines(root: yaml.MappingNode, path: Path) -> dict[str, int]:
    """The line of each key. YAML itself lets unknown and repeated ones pass."""
    lines: dict[str, int] = {}
    for node, _ in root.value:
        line, key = node.start_mark.line + 1, str(node.value)
        if key not in KEYS:
            raise ModelError(f"{path}, line {line}: unknown key {key!r}. {nearest(key, KEYS)}")
        if key in lines:
            raise ModelError(f"{path}, line {line}: {key!r} is there already, on line {lines[key]}.")
        lines[key] = line
    return lines


def _base(value: object, folder: Path) -> str:
    name = _text(value)
    if is_model_file(name):
        raise InputError(f"{name} is a model file itself; a base is a card, hf:org/repo@revision or a folder.")
    place = (folder / Path(name).expanduser()).resolve()
    return str(place) if not name.startswith("hf:") and place.is_dir() else name


def _denoiser(value: object, folder: Path) -> Path:
    place = (folder / Path(_text(value)).expanduser()).resolve()
    if not place.is_dir():
        return _weights(value, folder)
    if (place / "model_index.json").exists():
        inside = next((part for part in ("unet", "transformer") if (place / part).is_dir()), "unet")
        raise InputError(f"{place} is a whole pipeline. Give its folder {inside!r}, or give it as the base.")
    if not (place / "config.json").exists():
        raise InputError(f"{place} holds no config.json: it is no folder that diffusers' save_pretrained wrote.")
    return place


def _weights(value: object, folder: Path) -> Path:
    """A file of weights that cannot run code."""
    name = _text(value)
    file = (folder / Path(name).expanduser()).resolve()
    if name.startswith("hf:"):
        raise InputError(f"{name} is on the Hub; download the file, and give its place.")
    if not file.is_file():
        raise InputError(f"there is no file {file}; places are relative to the model file.")
    if file.suffix in PICKLES:
        raise InputError(
            f"{file.name} is a pickle, which can run code when it is read; diffsight reads safetensors only. Convert "
            f"it once: safetensors.torch.save_file(torch.load({file.name!r}, weights_only=True), "
            f"{file.stem + '.safetensors'!r})."
        )
    if file.suffix != ".safetensors":
        raise InputError(f"{file.name} is no .safetensors file.")
    return file


def _loras(value: object, folder: Path) -> tuple[Lora, ...]:
    loras = []
    for item in _list(value):
        given = _given(item, "scale")
        scale = given.get("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise InputError(f"a scale is a number; got {scale!r}.")
        loras.append(Lora(file=_weights(given["file"], folder), scale=float(scale)))
    return tuple(loras)


def _embeddings(value: object, folder: Path) -> tuple[Embedding, ...]:
    embeddings: list[Embedding] = []
    for item in _list(value):
        given = _given(item, "token")
        file = _weights(given["file"], folder)
        token = _text(given.get("token", file.stem))
        if len(token.split()) != 1 or token != token.strip():
            raise InputError(f"a token is one word, such as <my-dog>; got {token!r}.")
        if token.lower() in (one.token.lower() for one in embeddings):
            raise InputError(f"two embeddings have the token {token!r}.")
        embeddings.append(Embedding(file=file, token=token, named="token" in given))
    return tuple(embeddings)


def _text_encoder(value: object, folder: Path) -> str:
    if value not in TEXT_ENCODERS:
        raise InputError(f"must be one of {', '.join(TEXT_ENCODERS)}; got {value!r}.")
    return str(value)


def _given(item: object, other: str) -> Mapping[str, Any]:
    """An item of a list: a file, or a mapping of the file and something else."""
    if isinstance(item, str):
        return {"file": item}
    if not isinstance(item, Mapping) or "file" not in item or not set(item) <= {"file", other}:
        raise InputError(f"an item is a file, or {{file: ..., {other}: ...}}; got {item!r}.")
    return item


def _list(value: object) -> list[object]:
    if not isinstance(value, list) or not value:
        raise InputError("must be a list of files, such as [style.safetensors].")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or len(value.splitlines()) != 1:
        raise InputError(f"must be one line of text; got {value!r}. Put it in quotes if it looks like a number.")
    return value


_READERS: Mapping[str, Callable[[object, Path], object]] = {
    "base": _base,
    "denoiser": _denoiser,
    "lora": _loras,
    "embeddings": _embeddings,
    "text_encoder": _text_encoder,
    "trained_on": lambda value, folder: _text(value),
}
