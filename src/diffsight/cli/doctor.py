"""``diffsight doctor``: what this machine has, and what is missing."""

import os
import platform
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from diffsight.cli import options, output
from diffsight.errors import DiffsightError

PACKAGES = ("diffsight", "torch", "torchvision", "diffusers", "transformers", "huggingface-hub", "numpy", "pillow")
HUB_SECONDS = 3.0


def doctor(*, as_json: options.Json = False) -> int:
    """Check this installation and this machine.

    Versions, devices, memory, the Hub, the embedded model, the data. The exit code is 3 if the model does not load.
    """
    with output.interruptible("Nothing was changed."):
        report = {
            "versions": versions(),
            "device": device(),
            "memory": memory(),
            "hub": hub(),
            "model": embedded_model(),
            "data": data(),
        }
    if as_json:
        output.show_json(report)
    else:
        for title, values in report.items():
            output.show(title)
            output.show(output.table([(name, str(value)) for name, value in values.items()], indent="  "))
    return 0 if report["model"]["loads"] else 3


def versions() -> dict[str, str]:
    """Of Python, the system and the packages that decide results."""
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def device() -> dict[str, str]:
    """What a command chooses without --device and --dtype, and what else there is."""
    import torch

    from diffsight.backbones.base import resolve_device, resolve_dtype

    chosen = resolve_device(None)
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "device": str(chosen),
        "dtype": str(resolve_dtype(None, chosen)).removeprefix("torch."),
        "gpus": ", ".join(gpus) or "none",
        "cpu threads": str(torch.get_num_threads()),
    }


def memory() -> dict[str, str]:
    """Free and total memory of the machine and of the first GPU."""
    import torch

    found = {}
    if {"SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"} <= set(os.sysconf_names):
        page, total, free = (os.sysconf(name) for name in ("SC_PAGE_SIZE", "SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
        found["machine"] = f"{page * free / 2**30:.1f} of {page * total / 2**30:.1f} GiB free"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        found["gpu"] = f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    return found


def hub() -> dict[str, str]:
    """Where downloads are kept, and whether the Hub answers within three seconds."""
    from huggingface_hub import constants

    return {
        "cache": str(constants.HF_HUB_CACHE),
        "address": constants.ENDPOINT,
        "answers": _reachable(constants.ENDPOINT),
    }


def _reachable(address: str) -> str:
    """Ask in a thread: looking up a name knows no time limit."""
    from huggingface_hub import get_session
    from huggingface_hub.errors import OfflineModeIsEnabled

    answer = [f"no (nothing within {HUB_SECONDS:.0f} s); models in the cache and folders can still be used"]

    def ask() -> None:
        try:
            answer[0] = f"yes ({get_session().head(address, timeout=HUB_SECONDS).status_code})"
        except OfflineModeIsEnabled:
            answer[0] = "not asked (HF_HUB_OFFLINE is set)"
        except Exception as error:  # Whatever the network, a proxy or the client may raise.
            answer[0] = f"no ({type(error).__name__}); models in the cache and folders can still be used"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answer[0]


def embedded_model() -> dict[str, Any]:
    """Whether the model of this package loads, and the sample photographs are there."""
    from diffsight.backbones.cards import assets, cards

    name = next(card.name for card in cards().values() if card.embedded)
    started = time.perf_counter()
    try:
        options.load_model(name, None, None)
    except DiffsightError as error:
        found: dict[str, Any] = {"name": name, "loads": False, "reason": str(error)}
    else:
        found = {"name": name, "loads": True, "seconds": round(time.perf_counter() - started, 1)}
    return {**found, "samples": sum(1 for _ in (assets() / "samples").rglob("*.png"))}


def data() -> dict[str, str]:
    """Which of the tasks' data sets are where they are looked for."""
    from diffsight.data.sources import open_source
    from diffsight.evaluation.task import list_tasks, load_task

    found = {}
    for task in map(load_task, list_tasks()):
        try:
            found[task.name] = f"{len(open_source(task.source, split=task.split)):,} images"
        except DiffsightError:
            found[task.name] = "not here"
    return found
