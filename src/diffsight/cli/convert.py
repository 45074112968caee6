"""``diffsight convert``: a published checkpoint to a folder that every other command can use."""

from pathlib import Path
from typing import Annotated

import typer

from diffsight.cli import options, output
from diffsight.errors import InputError, nearest


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A .pt file of OpenAI's guided-diffusion as published, or its safetensors; or a whole pipeline in one "
            ".safetensors file, as model sites publish them.",
        ),
    ],
    *,
    kind: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Which model it is: adm-64, adm-256, adm-256-uncond or adm-512; of a single file the model that it "
            "was made from, such as sd-1.5 or sdxl-base-1.0.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="For a single file: a diffusers folder of that kind, for configuration, scheduler and tokenizers "
            "(default: the repository of --kind).",
        ),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Turn a checkpoint that is no diffusers folder into one, once.

    Only tensors are read; a file that holds anything else is refused. The folder is written whole or not at all.
    """
    with output.interruptible(f"{out} was not written."):
        from diffsight.backbones.converting.adm import convert_adm
        from diffsight.backbones.converting.adm_networks import KINDS, REFUSED
        from diffsight.backbones.converting.single_file import convert_single_file, single_file_kinds

        if kind not in (known := (*KINDS, *REFUSED, *single_file_kinds())):
            raise InputError(f"Unknown kind {kind!r}. {nearest(kind, known)}")
        if kind in single_file_kinds():
            convert_single_file(checkpoint, out, kind=kind, config=config)
        elif config is not None:
            raise InputError(f"--config is for single files of {', '.join(single_file_kinds())}; {kind} needs none.")
        else:
            convert_adm(checkpoint, out, kind=kind)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    place = out.resolve()
    if as_json:
        output.show_json({"kind": kind, "checkpoint": str(checkpoint), "folder": str(place), "bytes": size})
    else:
        output.show(f"{kind}: wrote {size / 2**20:,.0f} MiB to {out}")
        output.show(f"Use it as --model {place}, or in Python: diffsight.load({str(place)!r})")
    return 0
