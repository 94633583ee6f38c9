"""The result of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ended = Literal["solved", "budget", "stuck", "model"]
"""Why a search ended: every training pair is solved, the budget is spent, nothing is left to try, or the model could
not be reached any more (then the problem is counted as unfinished, and a resumed run searches it again)."""


@dataclass(frozen=True)
class Best:
    """The programs that a search would have answered with, from ``calls`` model calls on.

    - ``programs``: Python texts that define ``f(x)``; with several, their outputs are put to the vote, and the first
      wins ties. Empty: no program, so the model answers the test inputs directly.
    - ``calls``, ``tokens``: how much of the budget was used when these programs became the best
    - ``coherent``: the share of training pairs that the first program solves, in [0, 1]
    """

    programs: tuple[str, ...]
    calls: int
    tokens: int
    coherent: float


@dataclass(frozen=True)
class Solution:
    """What a search ended with. It is the only key to the test inputs (:class:`~skillweave.reason.problem.HeldOut`).

    - ``course``: the best so far, in order, whenever it changed; the last one is the answer. Empty: the method searches
      no program, and the model answers the test inputs directly.
    - ``calls``, ``tokens``: how much of the budget the search used
    """

    course: tuple[Best, ...]
    ended: Ended
    calls: int
    tokens: int

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs of the answer; empty if there are none."""
        return self.course[-1].programs if self.course else ()
