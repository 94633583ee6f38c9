"""Bytes and seconds as text for people."""

from __future__ import annotations


def human_bytes(count: float) -> str:
    """Bytes in powers of ten: ``8.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if abs(round(count, 1)) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def human_seconds(seconds: float) -> str:
    """Seconds as ``42 s``, ``3 min 05 s`` or ``1 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
