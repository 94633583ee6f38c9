"""Says why an answer could not be judged: once for each reason, since a task has thousands of answers."""

from __future__ import annotations

import threading

from skillweave.progress import console

_told: set[str] = set()
_lock = threading.Lock()


def told_once(reason: str, text: str) -> None:
    """Print ``text`` where this process has told nothing for this ``reason`` yet."""
    with _lock:
        if reason in _told:
            return
        _told.add(reason)
    console.print(f"  {text} (told once)", soft_wrap=True, markup=False)
