"""Keep freed memory in the process: what a training step frees, the next one takes again without asking the kernel."""

from __future__ import annotations

import ctypes
import sys

# Parameter numbers of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc never to map large blocks one by one and never to give freed memory back; True if it listened.

    A training step on a CPU allocates and frees the same large blocks (logits above all) again and again. By default
    glibc maps each of them anew, and the kernel zeroes every page at its first touch. In-process form of
    ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_TOP_PAD_`` [ours]. The process then keeps its
    peak memory until it ends. Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt")):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 * 2**20))
    taken = [libc.mallopt(ctypes.c_int(key), ctypes.c_int(value)) for key, value in wanted]
    return all(taken)
