"""How well the policy does with its tools, on prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any

from skillweave.methods.e3tir.config import RolloutSettings
from skillweave.tasks import Entry
from skillweave.tasks.agents.load import AgentTask
from skillweave.tools.call import POLICY
from skillweave.tools.loop import Start, play
from skillweave.tools.protocol import Protocol
from skillweave.tools.writer import Writer


def success(
    model: Any, agent: AgentTask, form: Protocol, entries: Sequence[Entry], settings: RolloutSettings, *,
    context: int | None, around: Callable[[], Any] = nullcontext,
) -> dict[str, float]:  # fmt: skip
    """Play each entry once, greedily; of ``settings`` the limits and the batch size count.

    Means over all: ``success`` (the verifier's score, 0 without an answer), ``answered``, ``calls`` and
    ``failed_calls`` a conversation, ``tokens`` that the policy wrote. At least one entry.
    """
    writer = Writer(model, form.tokenizer, temperature=0.0, batch_size=settings.batch_size, around=around)
    starts = [Start(form.prompt_ids(entry.prompt), seed=0) for entry in entries]
    episodes = play(writer, form, agent.toolbox, starts, settings, context)
    scores = [agent.score(one.answer, entry) for one, entry in zip(episodes, entries, strict=True)]
    return {
        "success": fmean(scores),
        "answered": fmean(one.answer is not None for one in episodes),
        "calls": fmean(one.calls for one in episodes),
        "failed_calls": fmean(one.failures for one in episodes),
        "tokens": fmean(one.writers.count(POLICY) for one in episodes),
    }
