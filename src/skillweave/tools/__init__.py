"""Tools that a model may call, the conversations in which it calls them, and sandboxes for the code it writes."""

from skillweave.tools.call import EXPERT, FAULTS, POLICY, TOOL, Call, Outcome
from skillweave.tools.call_format import CallFormat, Turn
from skillweave.tools.sandbox import Limits, Result, run
from skillweave.tools.toolbox import Toolbox, ToolSession

__all__ = [
    "EXPERT",
    "FAULTS",
    "POLICY",
    "TOOL",
    "Call",
    "CallFormat",
    "Limits",
    "Outcome",
    "Result",
    "ToolSession",
    "Toolbox",
    "Turn",
    "run",
]
