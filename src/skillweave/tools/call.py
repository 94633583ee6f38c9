"""What passes between a model and its tools: calls, their outcomes, and the writer of each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POLICY, EXPERT, TOOL = 1, 2, 0
"""The writer of a token. Tokens of a tool are never in a loss, so theirs is 0."""

FAULTS = ("malformed", "unknown tool", "wrong arguments", "exception", "timeout")
"""What can be wrong with a call, in the order in which it is checked."""


@dataclass(frozen=True)
class Call:
    """A call as the model wrote it; nothing in it is checked yet."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What the model is told about a call: the result, or one line that says what was wrong, never a traceback.

    ``fault`` is one of :data:`FAULTS`, or None if the call succeeded. ``seconds`` is the time for which the tool ran.
    """

    text: str
    fault: str | None = None
    seconds: float = 0.0
