"""What a figure was made on: written beside every result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

LIBRARIES = ("skillweave", "torch", "transformers", "trl", "peft", "safetensors", "numpy", "reasoning-gym")


def versions() -> dict[str, str]:
    """Versions of the libraries that a result depends on, and of Python."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def machine() -> str:
    """One line: system, processor, cores, memory, GPU if there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [platform.system(), platform.machine(), f"{os.cpu_count()} cores", f"{memory:.0f} GiB memory"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name(0))
    return ", ".join(parts)
