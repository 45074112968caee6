"""A denoiser of the user's own in the place of a pipeline's: a fine-tuned network of the same kind."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from diffsight.backbones.folders import one_line, read_json
from diffsight.errors import ModelError

Network = TypeVar("Network", bound=nn.Module)

_WEIGHTS = "diffusion_pytorch_model.safetensors"


def read_own(kind: type[Network], own: Path, base: Path, dtype: torch.dtype) -> Network:
    """Read a denoiser; each weight must be there and none too many.

    Args:
        kind: The class of the pipeline's own network.
        own: A folder that ``save_pretrained`` wrote, or a safetensors file with diffusers' names.
        base: The folder of the pipeline's own network, whose configuration a file has.
        dtype: What to read it in.

    Raises:
        ModelError: If it is another kind of network, or its weights are not those that its configuration asks for.
    """
    if own.is_dir():
        found = read_json(own / "config.json", "without a config.json").get("_class_name", kind.__name__)
        if found != kind.__name__:
            raise ModelError(f"{own} holds a {found}, and the base has a {kind.__name__}. Give another base.")
        return _checked(kind, own, own, dtype)
    # A folder for the file: diffusers knows how to read that, whichever network it is.
    with tempfile.TemporaryDirectory(prefix="diffsight-") as place:
        shutil.copyfile(base / "config.json", Path(place) / "config.json")
        try:
            os.symlink(own, Path(place) / _WEIGHTS)
        except OSError:  # Windows lets not every user make links.
            shutil.copyfile(own, Path(place) / _WEIGHTS)
        return _checked(kind, Path(place), own, dtype)


def _checked(kind: type[Network], place: Path, own: Path, dtype: torch.dtype) -> Network:
    reader: Any = kind
    try:
        network, found = reader.from_pretrained(
            place, use_safetensors=True, torch_dtype=dtype, output_loading_info=True, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{own} cannot be read as a {kind.__name__}: {one_line(error)}") from error
    for keys, what in ((found["missing_keys"], "lacks"), (found["unexpected_keys"], "has what none knows:")):
        if names := sorted(keys):
            advice = " Single files in their authors' names are for 'diffsight convert'." if own.is_file() else ""
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{own} is no such {kind.__name__}: it {what} {', '.join(names[:3])}{more}.{advice}")
    return network
