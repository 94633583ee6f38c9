"""What experts did: traces read from a file, or written by a family's own scripted expert."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from skillweave.artefact import write_text
from skillweave.base.chat import Message, Prompt, as_messages
from skillweave.errors import UserError
from skillweave.tasks.agents.load import AgentTask
from skillweave.tasks.rows import read_jsonl
from skillweave.tasks.task import Entry, Task, prompt_id


@dataclass(frozen=True)
class Trace:
    """One expert's way to an answer. ``messages`` is the whole of it, ``prompt`` what it begins with.

    ``id`` is the prompt's :func:`prompt_id`. After the prompt come assistant messages with ``tool_calls``, each
    followed by one ``tool`` message a call, and last the assistant's answer.
    """

    id: str
    prompt: Prompt
    messages: list[Message]


def read_traces(path: str | Path) -> list[Trace]:
    """Traces of a JSONL file, a row ``{"messages": [...]}`` each, in the form that OpenAI's chat API writes.

    Arguments of calls may be objects or the JSON text of one. The prompt is everything up to the last message of the
    user before the first of the assistant. Raises :class:`UserError` that names file and line.
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
    """The traces of each train prompt by its id, and how many traces answer none.

    Raises :class:`UserError` where not one trace belongs to a train prompt.
    """
    known = {entry.id for entry in task.split("train")}
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        if trace.id in known:
            found.setdefault(trace.id, []).append(trace)
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


def _object(value: Any) -> Any:
    """Arguments as an object; OpenAI's API writes them as its JSON text."""
    return json.loads(value) if isinstance(value, str) else value


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Function(_Read):
    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)]


class _Call(_Read):
    id: str | None = None
    type: Literal["function"] = "function"
    function: _Function


class _Message(_Read):
    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None


class _Row(_Read):
    messages: list[_Message] = Field(min_length=1)


def _trace(row: Any, where: str) -> Trace:
    try:
        messages = _Row.model_validate(row).messages
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the row"
        raise UserError(f"{where}: {place}: {problem['msg']} (found {problem['input']!r:.60})") from error
    roles = [message.role for message in messages]
    begins = roles.index("assistant") if "assistant" in roles else len(roles)
    if "user" not in roles[:begins] or roles[begins - 1] != "user":
        raise UserError(f"{where}: the expert's first message must follow one of the user, found {' '.join(roles)}")
    _check_way(messages[begins:], where, begins)
    told = [_told(message) for message in messages]
    return Trace(prompt_id(told[:begins]), told[:begins], told)


def _check_way(messages: Sequence[_Message], where: str, begins: int) -> None:
    """Calls, one result for each of them, and so on; last an answer."""
    waiting: list[_Call] = []
    for number, message in enumerate(messages, begins + 1):
        place, last = f"{where}: message {number}", number == begins + len(messages)
        if message.role == "tool":
            if not waiting:
                raise UserError(f"{place} is a tool's result, but no call is waiting for one")
            call = waiting.pop(0)
            if call.id and message.tool_call_id and call.id != message.tool_call_id:
                raise UserError(f"{place} answers the call {message.tool_call_id}: write results in the calls' order")
            if message.content is None:
                raise UserError(f"{place} has no content: write what the tool gave")
        elif message.role != "assistant":
            raise UserError(f"{place} is the {message.role}'s: a trace answers one question, write one row each")
        elif waiting:
            raise UserError(f"{place}: {len(waiting)} calls before it have no result: write a 'tool' message for each")
        elif last and message.tool_calls:
            raise UserError(f"{place} is the last and calls a tool: a trace must end with the expert's answer")
        elif last and not (message.content or "").strip():
            raise UserError(f"{place} is the answer, and is empty")
        elif not last and not message.tool_calls:
            raise UserError(f"{place} calls no tool and is not the last: a turn without a call is the answer")
        else:
            waiting = list(message.tool_calls or [])
    if not messages or messages[-1].role != "assistant":
        raise UserError(f"{where}: a trace must end with the expert's answer")


def _told(message: _Message) -> Mapping[str, Any]:
    """The message with nothing but what a chat template needs."""
    calls = [
        {"type": "function", "function": {"name": call.function.name, "arguments": call.function.arguments}}
        for call in message.tool_calls or []
    ]
    told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    return {**told, "tool_calls": calls} if calls else told
