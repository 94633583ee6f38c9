"""The budget of one problem: model calls, tokens and seconds, counted alike for every method."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from pydantic import Field

from skillweave.config import Config
from skillweave.errors import UserError, nearest

_PART = re.compile(r"\s*(\w+)\s*=\s*([0-9]*\.?[0-9]+)\s*([kKmM]?)\s*")
_MOST = 10**18
_TIMES = {"": 1, "k": 1_000, "m": 1_000_000}


class BudgetSpent(Exception):
    """No call is left in the budget of this problem."""


class Budget(Config):
    """What the search for one problem may use. None is no limit, but one limit must be set.

    A call is one completion of a model: five samples of one prompt are five calls, and a repair is a call. A call that
    the cache answers counts as well, so that a resumed run goes the same way. Tokens are those of prompts and
    completions together. A call that began within the budget is completed, so tokens and seconds may be exceeded by the
    calls in flight; calls are never exceeded.
    """

    calls: int | None = Field(default=64, ge=1, description="the most model calls")
    tokens: int | None = Field(default=None, ge=1, description="the most tokens, prompts and completions together")
    seconds: float | None = Field(
        default=None, gt=0, description="the most seconds; the only limit that makes a run hard to repeat"
    )


def parse_budget(text: str) -> Budget:
    """The budget that ``calls=64,tokens=20k,seconds=30`` means. Raises :class:`UserError`."""
    values: dict[str, float] = {}
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise UserError(
                f"--budget {text}: '{part.strip()}' is not KEY=NUMBER: write calls=64,tokens=20k,seconds=30"
            )
        key, number, times = match[1], match[2], match[3].lower()
        if key not in Budget.model_fields:
            raise UserError(f"--budget {text}: unknown key '{key}'; {nearest(key, Budget.model_fields)}")
        if key in values:
            raise UserError(f"--budget {text}: '{key}' is given twice")
        amount = float(number) * _TIMES[times]
        if amount >= _MOST:
            raise UserError(f"--budget {text}: {key} is more than any run takes: write fewer, or leave it out")
        if amount <= 0 or (key != "seconds" and amount != int(amount)):
            raise UserError(f"--budget {text}: {key} must be a {'positive' if key == 'seconds' else 'whole'} number")
        values[key] = amount if key == "seconds" else int(amount)
    return Budget.model_validate({"calls": None, **values})


class Meter:
    """Counts what one problem has used.

    Call :meth:`reserve` before each model call, and :meth:`charge` after it, or :meth:`release` if it was never made.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self._clock = clock
        self._start = clock()
        self.calls = 0
        """calls that were reserved, made or not"""
        self.tokens = 0

    @property
    def seconds(self) -> float:
        return self._clock() - self._start

    @property
    def room(self) -> int:
        """How many more calls may begin now."""
        budget = self.budget
        if budget.tokens is not None and self.tokens >= budget.tokens:
            return 0
        if budget.seconds is not None and self.seconds >= budget.seconds:
            return 0
        return 2**31 if budget.calls is None else budget.calls - self.calls

    def reserve(self) -> bool:
        """Count one call that is about to begin. False, and nothing is counted, if the budget is spent."""
        if self.room < 1:
            return False
        self.calls += 1
        return True

    def charge(self, tokens: int) -> None:
        """Count the tokens of a call that ended."""
        self.tokens += tokens

    def release(self) -> None:
        """Take back the reservation of a call that was never made."""
        self.calls -= 1
