"""Freed memory goes back to the system when it is asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from skillweave.base.allocator import keep_freed_memory, release_freed_memory

def resident():
    line = next(line for line in open("/proc/self/status") if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

kept = keep_freed_memory() if {keep} else None
blocks = [bytearray(50_000) for _ in range(4000)]
full = resident()
last = bytearray(50_000)  # behind them, so that their memory is not the end of the heap
blocks.clear()
before = resident()
release_freed_memory()
print(full, before, resident())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is on Linux")
@pytest.mark.parametrize("keep", [False, True])
def test_freed_memory_goes_back_to_the_system(keep: bool) -> None:
    """Blocks of 200 MB in all, freed with glibc's usual settings and with those of a training."""
    script = SCRIPT.format(keep=keep)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    full, before, after = map(int, done.stdout.split())
    assert before > full - 20
    assert after < full - 150
