"""``diffsight layers``: the layers of a model by name, what they give and what it costs to get there."""

from typing import Annotated

import typer

from diffsight.cli import options, output


def layers(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model of 'diffsight ls models', hf:ORG/REPO[@REVISION], a folder or a model file."
        ),
    ] = "tiny-fashion",
    *,
    device: options.Device = None,
    dtype: options.Dtype = None,
    as_json: options.Json = False,
) -> int:
    """List the layers of a model in the order in which they run.

    Each goes by three names: its own, its place as papers count it, and its path in the network; any other module goes
    by its path. 'share' is the part of the network's operations up to the layer's output: what features of it cost.
    """
    from diffsight.backbones.layers import profile

    backbone = options.load_model(model, device, dtype)
    found = profile(backbone)
    entries = [
        {
            "name": one.layer.name,
            "block": f"b{one.layer.number}",
            "path": one.layer.path,
            "shape": list(one.shape),
            "flops": one.flops,
            "share": one.share,
        }
        for one in found
    ]
    if as_json:
        output.show_json({"model": backbone.name, "timesteps": len(backbone.schedule), "layers": entries})
        return 0
    rows = [["layer", "block", "channels × height × width", "GFLOP", "share", "module"]]
    for one in found:
        shape = " × ".join(map(str, one.shape))
        gflops = f"{one.flops / 1e9:,.3g}" if one.flops < 1e12 else f"{one.flops / 1e9:,.0f}"
        rows.append([one.layer.name, f"b{one.layer.number}", shape, gflops, f"{one.share:.1%}", one.layer.path])
    output.show(output.table(rows, align="<<<>><"))
    output.show(f"Timesteps go from 0 (clean) to {len(backbone.schedule) - 1} (noise).")
    return 0
