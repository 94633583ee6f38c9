"""What goes between a model and its tools: a call, what came of it, and who wrote which token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POLICY, EXPERT, TOOL = 1, 2, 0
"""Who wrote a token. What a tool wrote is never in a loss, hence 0."""

FAULTS = ("malformed", "unknown tool", "wrong arguments", "exception", "timeout")
"""What can be wrong with a call, in the order in which it is looked for."""


@dataclass(frozen=True)
class Call:
    """A call as it was asked for: nothing is checked yet."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What goes back to the model: the result, or in one line what was wrong; never a traceback.

    ``fault`` is one of :data:`FAULTS`, None where the call succeeded. ``seconds``: the time the tool ran.
    """

    text: str
    fault: str | None = None
    seconds: float = 0.0
