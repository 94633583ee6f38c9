"""Which of several vLLM servers answers a request: pure decisions, without a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

SLACK = 4
"""A pack leaves a server that has served it for one with this many fewer requests."""
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 60.0


@dataclass(eq=False)
class Replica:
    """One vLLM server: what it does now, and when it is tried again after a failure.

    - ``load``: requests of this engine that it has now
    - ``served``: the packs (None: the plain base) that it has answered with
    - ``ready``: the packs whose adapters are proven to act there
    """

    url: str
    load: int = 0
    served: set[str | None] = field(default_factory=set)
    ready: set[str] = field(default_factory=set)
    prepared: bool = False
    failures: int = 0
    retry_at: float = 0.0
    why: str = ""

    def failed(self, why: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Note a failure: the server is left alone for 1 second, then 2, 4, ... up to a minute, and prepared again."""
        self.retry_at = clock() + min(_LONGEST_WAIT, _FIRST_WAIT * 2**self.failures)
        self.failures += 1
        self.why = why
        self.forget()

    def forget(self) -> None:
        """Note that it must be prepared again before it answers."""
        self.prepared = False
        self.ready.clear()

    def worked(self) -> None:
        """Note that it answers."""
        self.failures, self.retry_at, self.why = 0, 0.0, ""


def choose(
    replicas: Sequence[Replica], pack: str | None, now: float, without: Sequence[Replica] = ()
) -> Replica | None:
    """Return the server for a request with a pack, or None if all have failed lately or are in ``without``.

    It is the least loaded of those that have served the pack, unless another has at least :data:`SLACK` requests fewer.
    Of equally loaded ones it is the one that has served the fewest packs, so that packs spread.
    """
    able = [one for one in replicas if one.retry_at <= now and one not in without]
    if not able:
        return None
    least = min(able, key=lambda one: (one.load, len(one.served)))
    known = min((one for one in able if pack in one.served), key=lambda one: one.load, default=None)
    return known if known is not None and known.load < least.load + SLACK else least
