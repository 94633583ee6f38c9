"""The machine and the versions of libraries, which are written beside every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

LIBRARIES = ("skillweave", "torch", "transformers", "trl", "peft", "safetensors", "numpy", "reasoning-gym")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a result depends on."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def machine() -> str:
    """Return one line: system, processor, cores, memory, and the GPU if there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [platform.system(), platform.machine(), f"{os.cpu_count()} cores", f"{memory:.0f} GiB memory"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(parts)
