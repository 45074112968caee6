"""``diffsight convert``: a published checkpoint to a folder that every other command can use."""

from pathlib import Path
from typing import Annotated

import typer

from diffsight.cli import options, output


def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A .pt file of OpenAI's guided-diffusion as published, or its safetensors."
        ),
    ],
    *,
    kind: Annotated[
        str, typer.Option(metavar="NAME", help="Which model it is: adm-64, adm-256, adm-256-uncond or adm-512.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write; it must not exist.")],
    as_json: options.Json = False,
) -> int:
    """Turn a checkpoint that is no diffusers folder into one, once.

    Only tensors are read; a file that holds anything else is refused. The folder is written whole or not at all.
    """
    with output.interruptible(f"{out} was not written."):
        from diffsight.backbones.adm import convert_adm

        convert_adm(checkpoint, out, kind=kind)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    place = out.resolve()
    if as_json:
        output.show_json({"kind": kind, "checkpoint": str(checkpoint), "folder": str(place), "bytes": size})
    else:
        output.show(f"{kind}: wrote {size / 2**20:,.0f} MiB to {out}")
        output.show(f"Use it as --model {place}, or in Python: diffsight.load({str(place)!r})")
    return 0
