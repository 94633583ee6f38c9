"""The commands. Each is thin: it reads its settings, calls one function of the library and prints the result."""

from skillweave.cli.app import app, main

__all__ = ["app", "main"]
