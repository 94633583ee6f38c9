"""The commands. Each is thin: it reads its settings, calls one function of the library and prints the result.

torch and transformers take seconds to import. Commands import them inside their functions, so that ``--help``,
``--version`` and a mistyped option answer at once.
"""

from skillweave.cli.start import main

__all__ = ["main"]
