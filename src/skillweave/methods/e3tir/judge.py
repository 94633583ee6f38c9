"""How well the policy does with its tools, on prompts that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any

from skillweave.artefact import digest
from skillweave.methods.e3tir.config import RolloutSettings
from skillweave.tasks import Entry
from skillweave.tasks.agents.load import AgentTask
from skillweave.tools.call import POLICY
from skillweave.tools.loop import Start, play
from skillweave.tools.protocol import Protocol
from skillweave.tools.writer import Writer


def success(
    model: Any, agent: AgentTask, form: Protocol, entries: Sequence[Entry], settings: RolloutSettings, *,
    context: int | None, samples: int = 1, seed: int = 0, around: Callable[[], Any] = nullcontext,
) -> dict[str, float]:  # fmt: skip
    """Play each entry ``samples`` times: greedily where it is once, else as in training.

    Means over all: ``success`` (the verifier's score), ``answered``, ``calls`` and ``failed_calls`` a conversation,
    ``tokens`` that the policy wrote; and ``any``, the mean over entries of the best score. At least one entry.
    """
    writer = Writer(
        model, form.tokenizer, temperature=settings.temperature if samples > 1 else 0.0,
        top_p=settings.top_p, batch_size=settings.batch_size, around=around,
    )  # fmt: skip
    prompts = [form.prompt_ids(entry.prompt) for entry in entries]
    starts = [
        Start(prompt, int(digest([seed, entry.id, at])[:15], 16))
        for entry, prompt in zip(entries, prompts, strict=True)
        for at in range(samples)
    ]
    episodes = play(writer, form, agent.toolbox, starts, settings, context)
    by_entry = [episodes[at : at + samples] for at in range(0, len(episodes), samples)]
    scores = [
        [0.0 if one.answer is None else agent.task.score(one.answer, entry) for one in held]
        for entry, held in zip(entries, by_entry, strict=True)
    ]
    return {
        "success": fmean(fmean(of) for of in scores),
        "any": fmean(max(of) for of in scores),
        "answered": fmean(one.answer is not None for one in episodes),
        "calls": fmean(one.calls for one in episodes),
        "failed_calls": fmean(one.failures for one in episodes),
        "tokens": fmean(one.writers.count(POLICY) for one in episodes),
    }
