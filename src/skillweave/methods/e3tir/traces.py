"""An expert's traces as tokens: who wrote each, and which calls lie before each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from skillweave.tasks.traces import Trace
from skillweave.tools.call import EXPERT, TOOL, Call
from skillweave.tools.call_format import CallFormat
from skillweave.tools.conversation import Episode, Start


@dataclass(frozen=True)
class ExpertTrace:
    """``ids`` (T,) after ``prompt``, ``writers`` (T,) of each, ``calls``: of each turn, with where its results end.

    ``answer`` is the text of its last turn.
    """

    id: str
    prompt: list[int]
    ids: list[int]
    writers: list[int]
    calls: list[tuple[int, list[Call]]]
    answer: str

    @property
    def eligible(self) -> Tensor:
        """(T,) bool: what the expert wrote, but for its first token, before which there is no expert to follow."""
        written = torch.tensor(self.writers) == EXPERT
        written[:1] = False
        return written

    @property
    def written(self) -> int:
        """Tokens that the expert wrote."""
        return sum(writer == EXPERT for writer in self.writers)

    @property
    def names(self) -> list[str]:
        """The tool of each of its calls."""
        return [call.name for _, calls in self.calls for call in calls]

    def start(self, at: int, seed: int) -> Start:
        """The conversation up to token ``at``, to be gone on with."""
        calls = [made for end, made in self.calls if end <= at]
        return Start(self.prompt, seed, self.ids[:at], self.writers[:at], calls)

    def episode(self) -> Episode:
        """The whole trace as a conversation that was held. Its calls are taken to have given the results they show."""
        return Episode(
            self.prompt, list(self.ids), list(self.writers), calls=len(self.names), names=self.names,
            answer=self.answer, ended="answer",
        )  # fmt: skip


def encode_trace(form: CallFormat, trace: Trace) -> ExpertTrace:
    """The tokens of a trace, as the model itself would have written and read them."""
    prompt, ids, writers = form.trace(trace.messages)
    calls: list[tuple[int, list[Call]]] = []
    answer, start = "", 0
    while start < len(ids):
        end = next((at for at in range(start, len(ids)) if writers[at] == TOOL), len(ids))
        turn = form.read(form.text(ids[start : end - 1]))  # without the end token
        start = next((at for at in range(end, len(ids)) if writers[at] != TOOL), len(ids))
        if turn.calls:
            calls.append((start, [call for call in turn.calls if isinstance(call, Call)]))
        answer = turn.answer or ""
    return ExpertTrace(trace.id, prompt, ids, writers, calls, answer)


def supervised_rows(traces: Sequence[ExpertTrace]) -> list[dict[str, list[int]]]:
    """A row of each: ``input_ids`` and ``labels`` (T,), the loss on what the expert wrote."""
    rows = []
    for trace in traces:
        labels = [token if writer == EXPERT else -100
                  for token, writer in zip(trace.ids, trace.writers, strict=True)]  # fmt: skip
        rows.append({"input_ids": trace.prompt + trace.ids, "labels": [-100] * len(trace.prompt) + labels})
    return rows
