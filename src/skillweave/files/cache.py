"""The folder that keeps converted models and known fingerprints between runs."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$SKILLWEAVE_CACHE``, or ``~/.cache/skillweave``. Everything in it can be recomputed, so it may be deleted."""
    return Path(os.environ.get("SKILLWEAVE_CACHE") or "~/.cache/skillweave").expanduser()
