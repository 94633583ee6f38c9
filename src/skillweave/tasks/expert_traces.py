"""What experts did: traces read from a file, or written by a family's own scripted expert."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from skillweave.artefact import write_text
from skillweave.base.chat import Message, Prompt, as_messages
from skillweave.errors import UserError
from skillweave.tasks.readers import read_jsonl
from skillweave.tasks.task import Entry, Task, prompt_id
from skillweave.tasks.with_tools import AgentTask
from skillweave.tools.trace import read_trace


@dataclass(frozen=True)
class Trace:
    """One expert's way to an answer. ``messages`` is the whole of it, ``prompt`` what it begins with.

    ``id`` is the prompt's :func:`prompt_id`, or the id of its entry in a task. After the prompt come assistant messages
    with ``tool_calls``, each followed by one ``tool`` message a call, and last the assistant's answer. The messages are
    kept as they were given.
    """

    id: str
    prompt: Prompt
    messages: list[Message]


def read_traces(path: str | Path) -> list[Trace]:
    """Traces of a JSONL file, a row ``{"messages": [...]}`` each, in the form that OpenAI's chat API writes.

    Arguments of calls may be objects or the JSON text of one. The prompt is everything before the assistant's first
    message, which must follow one of the user. Raises :class:`UserError` that names file and line.
    """
    traces = [_trace(row, where) for where, row in read_jsonl(Path(path))]
    if not traces:
        raise UserError(f'{path} is empty: write at least one row {{"messages": [...]}}')
    return traces


def write_traces(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write what :func:`read_traces` reads, atomically."""
    rows = [json.dumps({"messages": trace.messages}, ensure_ascii=False) for trace in traces]
    write_text(path, "".join(f"{row}\n" for row in rows))


def match_traces(traces: Sequence[Trace], task: Task) -> tuple[dict[str, list[Trace]], int]:
    """The traces of each train prompt by the id of its entry (theirs from here on), and how many answer none.

    Raises :class:`UserError` where not one trace belongs to a train prompt.
    """
    known = {entry.prompt_id: entry.id for entry in reversed(task.split("train"))}  # of several the first
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        if trace.id in known:
            entry = known[trace.id]
            found.setdefault(entry, []).append(replace(trace, id=entry))
    if not found:
        asked = repr(as_messages(traces[0].prompt)[-1]["content"][:60]) if traces else "nothing"
        raise UserError(
            f"none of the {len(traces)} expert traces answers a train prompt of task '{task.name}'; the first asks "
            f"{asked}. The messages before the expert's first must be the task's prompt, system message included"
        )
    return found, len(traces) - sum(map(len, found.values()))


def scripted_traces(agent: AgentTask, entries: Iterable[Entry]) -> list[Trace]:
    """The way of the family's scripted expert for each entry, its tools really called."""
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
