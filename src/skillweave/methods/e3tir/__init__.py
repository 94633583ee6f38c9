"""E3-TIR: warm up a tool-using agent with expert prefixes, branches that continue them, and its own exploration."""

from skillweave.methods.e3tir.config import E3tirConfig

__all__ = ["E3tirConfig"]
