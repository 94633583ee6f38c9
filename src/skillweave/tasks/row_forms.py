"""The forms that a row of a data file may have, and the parts of a row: prompt, answer, tools.

* ``{"messages": [..., {"role": "assistant", "content": ANSWER}]}``
* ``{"conversations": [{"from": "human", "value": TEXT}, ..., {"from": "gpt", "value": ANSWER}]}`` (ShareGPT)
* ``{"instruction": TEXT, "input": TEXT, "output": ANSWER}`` (Alpaca; ``input``, ``history``, ``system`` optional)
* ``{"prompt": TEXT or messages, "chosen": ANSWER, "rejected": ANSWER}``, or two conversations that begin alike
* ``{"prompt": TEXT or messages, "completion": ANSWER}``
* ``{"prompt": TEXT or messages, "answer": ANSWER}``, for the verifier ``code`` with ``"cases": [...]``

``question`` may replace ``prompt``; any form may also have ``system`` and ``tools``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skillweave.base.chat import as_messages
from skillweave.errors import UserError
from skillweave.tasks.messages import parsed, read_messages, read_tools, text_of
from skillweave.tasks.readers import wrapper_hint

_FORMS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "output"),
    "chosen/rejected": ("chosen", "rejected"),
    "prompt/completion": ("prompt", "completion"),
    "prompt/answer": ("prompt", "answer"),
    "prompt/cases": ("prompt", "cases"),
}
_MAIN = ("messages", "conversations", "instruction", "chosen", "rejected", "completion", "answer", "prompt")
_REFUSED = {
    "functions": "write them as 'tools': [{'type': 'function', 'function': {...}}]",
    "chat_template_kwargs": "chat templates get only messages and tools: remove the key",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), "only text is trained on"),
}
SHAREGPT = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
    "system": "system",
}
"""Who speaks in ShareGPT's rows -> the role."""


@dataclass(frozen=True)
class Parts:
    """The parts of one row, whatever its form.

    * ``form``: the name of the form
    * ``prompt``: a text, or checked messages
    * ``answer``, ``rejected``: as they are in the row: a text, a message, a list ...
    * ``tools``: the tools that the prompt tells the model about
    * ``rest``: all other keys
    """

    form: str
    prompt: str | list[dict[str, Any]]
    answer: Any
    rejected: Any = None
    tools: list[dict[str, Any]] = field(default_factory=list)
    rest: dict[str, Any] = field(default_factory=dict)


def read_parts(row: Any, where: str, columns: Mapping[str, str | None], system: str | None) -> Parts:
    """The parts of a row.

    * ``where``: the place of the row, for errors
    * ``columns``: our names of keys -> the names in the row; None: the row has no such key
    * ``system``: the system prompt of the task

    Raises :class:`UserError` that names ``where`` and the key.
    """
    if not isinstance(row, Mapping):
        raise UserError(
            f"{where}: expected an object with keys, as {{'prompt': ..., 'answer': ...}}, found {row!r:.60}"
        )
    row = _renamed(row, where, columns)
    for key, hint in _REFUSED.items():
        if row.get(key):
            raise UserError(f"{where}: has '{key}', which is not supported: {hint}")
    form = _form(row, where)
    prompt, answer, rejected = _read(row, form, where)
    own = row.get("system") or None
    if own is not None and system is not None:
        raise UserError(f"{where}: has a 'system' prompt of its own, and the task has another: remove one of them")
    prompt = with_system(prompt, own if system is None else system, where)
    tools = row.get("tools")
    used = {*_FORMS[form], "prompt", "tools", "system"} | ({"input", "history"} if form == "instruction" else set())
    return Parts(
        form=form,
        prompt=prompt,
        answer=answer,
        rejected=rejected,
        tools=read_tools(tools, where) if tools else [],
        rest={key: value for key, value in row.items() if key not in used - {"cases"}},
    )


def with_system(prompt: Any, system: str | None, where: str) -> Any:
    """The prompt with a system message before it. Raises :class:`UserError` if it already has one."""
    if system is None:
        return prompt
    if not isinstance(system, str):
        raise UserError(f"{where}: 'system' must be a text, found {system!r:.60}")
    messages = as_messages(prompt)
    if any(message["role"] in ("system", "developer") for message in messages):
        raise UserError(
            f"{where}: the messages begin with a system prompt of their own, and another is set: remove one of them"
        )
    return [{"role": "system", "content": system}, *messages]


def _renamed(row: Mapping[str, Any], where: str, columns: Mapping[str, str | None]) -> dict[str, Any]:
    """The row with our names for its keys. A name with dots (``answers.text``) goes into nested objects."""
    named = {ours: _at(row, theirs, where) for ours, theirs in columns.items() if theirs is not None}
    gone = {*columns, *(theirs for theirs in columns.values() if theirs is not None)}
    others = {key: value for key, value in row.items() if key not in gone}
    if "question" in others and not any(key in named or others.get(key) for key in ("messages", "prompt")):
        others.pop("prompt", None)
        named = {"prompt": others.pop("question"), **named}
    return {**named, **others}


def _at(row: Mapping[str, Any], name: str, where: str) -> Any:
    """The value of a column; dots in ``name`` go into nested objects."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{where}: has no column '{name}' (set in columns); it has {', '.join(map(repr, row))}")
        value = value[part]
    return value


def _form(row: Mapping[str, Any], where: str) -> str:
    """The name of the row's form. Raises :class:`UserError` if it has none, or keys of two."""
    present = {key for key in (*_MAIN, "output", "cases") if row.get(key) is not None}
    form = next((form for form, keys in _FORMS.items() if present.issuperset(keys)), None)
    if form is not None:
        spare = next((key for key in _MAIN if key in present and key not in (*_FORMS[form], *_also(form))), None)
        if spare is not None:
            raise UserError(
                f"{where}: has both '{_FORMS[form][-1]}' and '{spare}': keep one of them, or set "
                f"columns: {{{spare}: null}} in the task's settings to ignore the other"
            )
        return form
    lone = {"chosen": "rejected", "rejected": "chosen", "instruction": "output"}
    half = next((key for key in lone if key in present), None)
    if half is not None:
        nothing = f" (its '{lone[half]}' is empty)" if lone[half] in row else ""
        raise UserError(f"{where}: has '{half}' but no '{lone[half]}'{nothing}")
    if "prompt" in present:
        void = next((f" ('{key}' is empty)" for key in ("answer", "completion") if key in row), None)
        others = [repr(key) for key in row if key not in _MAIN]
        hint = f"; where one of {', '.join(others)} is it, set columns: {{answer: KEY}}" if others else ""
        raise UserError(f"{where}: has a 'prompt' but neither 'completion' nor 'answer'{void or hint}")
    void = next((key for key in _MAIN if key in row and row[key] is None), None)
    if void is not None:
        raise UserError(f"{where}: '{void}' is empty: give it a value, or remove the row")
    keys = ", ".join(map(repr, row)) or "no keys"
    raise UserError(
        f"{where}: found {keys}; a row needs 'messages' or 'prompt' (or 'conversations', 'instruction', 'chosen'). "
        f"Where other keys mean the same, name them: columns: {{prompt: KEY, answer: KEY}}{wrapper_hint(row)}"
    )


def _also(form: str) -> tuple[str, ...]:
    return {"chosen/rejected": ("prompt",)}.get(form, ())


def _read(row: Mapping[str, Any], form: str, where: str) -> tuple[Any, Any, Any]:
    """Prompt, answer and rejected answer of a row with this form."""
    if form in ("messages", "conversations"):
        return (*_last(_conversation(row, form, where), where), None)
    if form == "instruction":
        return _alpaca(row, where), row["output"], None
    if form == "chosen/rejected":
        return _preference(row, where)
    if form == "prompt/completion" and isinstance(row.get("label"), bool):
        raise UserError(
            f"{where}: has a 'label' that is true or false beside the 'completion'. Such labels are not used, so "
            "bad answers would be learnt. Keep the good rows and remove the key, or pair them as "
            "'chosen' and 'rejected'"
        )
    return _prompt(row["prompt"], where), row.get("completion" if form == "prompt/completion" else "answer"), None


def _prompt(value: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return value
    if (
        isinstance(value, list)
        and value
        and all(isinstance(p, Mapping) and "role" not in p and "type" in p for p in value)
    ):
        return text_of(value, f"{where}: the prompt")
    if not isinstance(value, list) or not any(isinstance(part, Mapping) for part in value):
        raise UserError(f"{where}: 'prompt' must be a text or a list of messages, found {value!r:.60}")
    return read_messages(value, where, "prompt")


def _conversation(row: Mapping[str, Any], form: str, where: str) -> list[dict[str, Any]]:
    value = parsed(row[form], where, form)
    if form == "conversations" and isinstance(value, list):
        value = [_from_sharegpt(turn, f"{where}: {form}, message {at}") for at, turn in enumerate(value, 1)]
    return read_messages(value, where, form)


def _from_sharegpt(turn: Any, where: str) -> Any:
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    if not isinstance(turn["from"], str) or turn["from"] not in SHAREGPT:
        raise UserError(f"{where} is from {turn['from']!r:.60}, which is unknown; known: {', '.join(SHAREGPT)}")
    if "value" not in turn:
        raise UserError(f"{where} has no 'value', found {', '.join(map(repr, turn))}")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    message = {"role": SHAREGPT[turn["from"]], "content": turn.get("value"), **rest}
    if turn["from"] != "function_call":
        return message
    calls = parsed(turn.get("value"), where, "value")
    return {**message, "content": None, "tool_calls": calls if isinstance(calls, list) else [calls]}


def _last(messages: list[dict[str, Any]], where: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The messages before the last one, and the last one, which must be the assistant's."""
    if messages[-1]["role"] != "assistant":
        raise UserError(f"{where}: the last message must be the assistant's, it is the answer")
    return messages[:-1], messages[-1]


def _alpaca(row: Mapping[str, Any], where: str) -> str | list[dict[str, Any]]:
    """The prompt of an Alpaca row: earlier turns, then the instruction and, after an empty line, the input if any."""
    instruction, text = row["instruction"], row.get("input") or ""
    if not isinstance(instruction, str) or not isinstance(text, str):
        raise UserError(f"{where}: 'instruction' and 'input' must be texts, found {instruction!r:.60} and {text!r:.60}")
    prompt = f"{instruction}\n\n{text}" if text.strip() else instruction
    turns = earlier_turns(row, where)
    return [*turns, {"role": "user", "content": prompt}] if turns else prompt


def earlier_turns(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The messages of an Alpaca row's ``history``, ``[[question, answer], ...]``. Raises :class:`UserError`."""
    history = parsed(row.get("history") or [], where, "history")
    if not isinstance(history, list):
        raise UserError(f"{where}: 'history' must be a list of [question, answer], found {history!r:.60}")
    turns = []
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise UserError(f"{where}: 'history' must be a list of [question, answer], found {turn!r:.60}")
        turns += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    return turns


def _preference(row: Mapping[str, Any], where: str) -> tuple[Any, Any, Any]:
    """Prompt, chosen and rejected answer of a preference row of TRL.

    The row has a 'prompt', or both conversations begin with it.
    """
    prompt = None if row.get("prompt") is None else _prompt(row["prompt"], where)
    sides: list[Any] = []
    beginnings: list[list[dict[str, Any]]] = []
    for key in ("chosen", "rejected"):
        if not isinstance(row[key], list):
            sides.append(row[key])
            beginnings.append([])
            continue
        if not any(isinstance(part, Mapping) for part in row[key]):
            raise UserError(f"{where}: '{key}' must be one answer (a text, or a conversation), found {row[key]!r:.60}")
        before, answer = _last(read_messages(row[key], where, key, learnt=key == "chosen"), where)
        sides.append(answer)
        beginnings.append(before)
    if prompt is None:
        if not beginnings[0] or beginnings[0] != beginnings[1]:
            raise UserError(
                f"{where}: without a 'prompt', 'chosen' and 'rejected' must be conversations that differ only in "
                "their last message: otherwise write the messages before the answers as 'prompt'"
            )
        return beginnings[0], *sides
    for key, before in zip(("chosen", "rejected"), beginnings, strict=True):
        if before and before != as_messages(prompt):
            raise UserError(f"{where}: '{key}' begins with other messages than the 'prompt': give only the answer")
    return prompt, *sides
