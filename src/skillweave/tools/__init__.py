"""Tools a model may call, and the sandbox that runs the code it writes."""

from skillweave.tools.sandbox import Limits, Result, run

__all__ = ["Limits", "Result", "run"]
