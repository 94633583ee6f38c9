"""Keep freed memory in the process, so that the next training step can use it again without asking the kernel."""

from __future__ import annotations

import ctypes
import sys

# Parameter numbers of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc never to map large blocks one by one and never to return freed memory; return whether it accepted.

    A training step on a CPU allocates and frees the same large blocks (above all the logits) again and again. By
    default glibc maps each of them again, and the kernel fills every page with zeros when it is first used. These
    settings are those of ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_TOP_PAD_``, made inside
    the process [ours]. The process then keeps its peak memory until it ends. Does nothing if the C library is not
    glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt")):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 * 2**20))
    accepted = [libc.mallopt(ctypes.c_int(key), ctypes.c_int(value)) for key, value in wanted]
    return all(accepted)
