"""How well the policy does with its tools, on prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any

from skillweave.tasks import Entry
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools.call import POLICY
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import ConversationSettings, begin, converse


def success(
    model: Any, agent: AgentTask, form: CallFormat, entries: Sequence[Entry], settings: ConversationSettings, *,
    around: Callable[[], Any] = nullcontext,
) -> dict[str, float]:  # fmt: skip
    """Play each entry once, greedily.

    Means over all: ``success`` (the verifier's score, 0 without an answer), ``answered``, ``calls`` and
    ``failed_calls`` a conversation, ``tokens`` that the policy wrote. At least one entry.
    """
    starts = begin(model, form, [entry.prompt for entry in entries])
    episodes = converse(model, form, agent.toolbox, starts, settings, around=around)
    scores = [agent.task.score(one.answer, entry) for one, entry in zip(episodes, entries, strict=True)]
    return {
        "success": fmean(scores),
        "answered": fmean(one.answer is not None for one in episodes),
        "calls": fmean(one.calls for one in episodes),
        "failed_calls": fmean(one.failures for one in episodes),
        "tokens": fmean(one.writers.count(POLICY) for one in episodes),
    }
