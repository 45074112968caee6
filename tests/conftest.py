import os

# Before anything imports huggingface_hub, which reads it once: no test may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from PIL import Image


def pytest_addoption(parser):
    group = parser.getgroup("diffsight")
    group.addoption("--device", default="cpu", help="device of the `device` fixture: cpu, cuda, cuda:1, mps (cpu)")
    group.addoption(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="type of the `dtype` fixture: what the networks compute in (float32)",
    )


def pytest_report_header(config):
    return (
        f"diffsight: device {config.getoption('device')}, dtype {config.getoption('dtype')}, torch {torch.__version__}"
    )


def pytest_collection_modifyitems(items):
    # Files with slow tests first: at the end one process would wait for the other.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def device(request):
    return torch.device(request.config.getoption("device"))


@pytest.fixture(scope="session")
def dtype(request):
    return getattr(torch, request.config.getoption("dtype"))


def global_state():
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "deterministic warnings": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "cudnn": (torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "scaled dot-product kernels": (
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
        ),
        "numpy's error handling": np.geterr(),
        "Pillow's pixel limit": Image.MAX_IMAGE_PIXELS,
        "working directory": os.getcwd(),
    }


@pytest.fixture(autouse=True)
def untouched_global_state():
    """A library that changes how the user's other code computes is a bug, so no test may leave such a change behind.

    Random numbers may be drawn. A test that has to change a setting does it with monkeypatch or in a context manager.
    """
    before = global_state()
    yield
    after = global_state()
    changed = [f"{name}: {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
    if changed:
        pytest.fail("the test changed global state; " + "; ".join(changed))
