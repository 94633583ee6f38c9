"""What glibc does with freed memory: keep it for the next step of a training, or give it back to the system."""

from __future__ import annotations

import ctypes
import sys

# Parameter numbers of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell glibc never to map large blocks one by one and not to return freed memory; return whether it accepted.

    A training step on a CPU allocates and frees the same large blocks (above all the logits) again and again. By
    default glibc maps each of them again, and the kernel fills every page with zeros when it is first used. These
    settings are those of ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` and ``MALLOC_TOP_PAD_``, made inside
    the process [ours]. The process then keeps its peak memory until :func:`release_freed_memory` is called, or it ends.
    Does nothing if the C library is not glibc.
    """
    libc = _glibc("mallopt")
    if libc is None:
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 256 * 2**20))
    accepted = [libc.mallopt(ctypes.c_int(key), ctypes.c_int(value)) for key, value in wanted]
    return all(accepted)


def release_freed_memory() -> None:
    """Give all whole pages of freed memory back to the system, which glibc keeps for later allocations.

    Whatever reads a model or makes another one of it frees much memory, and a process that then serves for weeks has no
    use for it. SmolLM2 in bfloat16 has 257 MiB; after it was opened, the process gave back 414 MiB, and after its
    layers were put into int8 254 MiB [ours]. Does nothing if the C library is not glibc.
    """
    libc = _glibc("malloc_trim")
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc(function: str) -> ctypes.CDLL | None:
    """Return the C library if it is glibc and has the function."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, function) else None
