"""Expert traces as messages: read from a file, or made by a family's scripted expert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skillweave.artefact import write_json_lines
from skillweave.base.chat import Message, Prompt, as_messages
from skillweave.errors import UserError
from skillweave.tasks.readers import read_rows
from skillweave.tasks.task import Entry, Task, prompt_id
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools.trace import read_trace


@dataclass(frozen=True)
class Trace:
    """One expert's conversation, from the prompt to the answer.

    * ``id``: the prompt's :func:`prompt_id`, or the id of its entry in a task
    * ``prompt``: the messages before the expert's first
    * ``messages``: the whole conversation, unchanged: the prompt, then assistant messages with ``tool_calls``, each
      followed by one ``tool`` message for each call, and last the assistant's answer
    """

    id: str
    prompt: Prompt
    messages: list[Message]


def read_traces(path: str | Path) -> list[Trace]:
    """The traces in a data file with rows ``{"messages": [...]}``, in the form of OpenAI's chat API.

    The arguments of a call may be an object or its JSON text. The prompt is everything before the assistant's first
    message, which must follow a message of the user. Raises :class:`UserError` that names file and line.
    """
    traces = [_trace(row, where) for where, row in read_rows(Path(path))]
    if not traces:
        raise UserError(f'{path} is empty: write at least one row {{"messages": [...]}}')
    return traces


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write a file that :func:`read_traces` can read, atomically."""
    write_json_lines(path, ({"messages": trace.messages} for trace in traces))


def match_traces(traces: Sequence[Trace], task: Task) -> tuple[dict[str, list[Trace]], int]:
    """Id of a train entry -> the traces on its prompt, with that id; and how many traces are on no train prompt.

    Raises :class:`UserError` if no trace is on a train prompt.
    """
    entry_ids = {entry.prompt_id: entry.id for entry in reversed(task.split("train"))}  # the first entry of a prompt
    matched: dict[str, list[Trace]] = {}
    for trace in traces:
        if trace.id in entry_ids:
            entry = entry_ids[trace.id]
            matched.setdefault(entry, []).append(replace(trace, id=entry))
    if not matched:
        first = repr(as_messages(traces[0].prompt)[-1]["content"][:60]) if traces else "nothing"
        raise UserError(
            f"none of the {len(traces)} expert traces answers a train prompt of task '{task.name}'; the first asks "
            f"{first}. The messages before the expert's first must be the task's prompt, system message included"
        )
    return matched, len(traces) - sum(map(len, matched.values()))


def scripted_traces(agent: AgentTask, entries: Iterable[Entry]) -> list[Trace]:
    """The trace of the family's scripted expert for each entry; its tools are really called."""
    if agent.solve is None:
        raise UserError(
            f"task '{agent.task.name}' has no scripted expert: give a JSONL file of expert traces "
            "(only builtin:hops, builtin:steps and builtin:tables bring one)"
        )
    return [Trace(entry.id, entry.prompt, [*as_messages(entry.prompt), *agent.solve(entry)]) for entry in entries]


def _trace(row: Any, where: str) -> Trace:
    messages = row.get("messages") if isinstance(row, Mapping) else None
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise UserError(f'{where}: expected {{"messages": [...]}} with an object for each message, found {row!r:.60}')
    try:
        prompt, _ = read_trace(messages)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return Trace(prompt_id(prompt), prompt, messages)
