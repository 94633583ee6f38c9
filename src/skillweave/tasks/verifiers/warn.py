"""Warn why an answer could not be judged: once per reason, because a task has thousands of answers."""

from __future__ import annotations

import threading

from skillweave.progress import console

_warned: set[str] = set()
_lock = threading.Lock()


def warn_once(reason: str, text: str) -> None:
    """Print ``text`` unless this process has already printed a warning for this ``reason``. Any thread may call it."""
    with _lock:
        if reason in _warned:
            return
        _warned.add(reason)
    console.print(f"  {text} (this is said once)", soft_wrap=True, markup=False)
