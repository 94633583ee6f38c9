"""The commands. Each is thin: it reads its settings, calls one function of the library and prints the result.

What a command works with (torch, transformers) takes seconds to import: it is imported inside the command, so that
``--help``, ``--version`` and a mistyped option answer at once.
"""

from skillweave.cli import build, cku, export, methods, models, packs, tasks  # noqa: F401  (each adds its commands)
from skillweave.cli.app import app, main

__all__ = ["app", "main"]
