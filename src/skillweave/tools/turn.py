"""Read one turn of a model: find the calls in its text, or the answer."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

from skillweave.base.thoughts import strip_thoughts
from skillweave.tools.call import Call, Outcome
from skillweave.tools.forms import (
    Schemas,
    Unreadable,
    arguments_of,
    calls_of,
    is_bare_call,
    is_plain,
    malformed,
    names_of,
    read_pairs,
    read_parameters,
)
from skillweave.tools.lenient import read_json
from skillweave.tools.python_form import BEGINS, python_calls

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_CLOSE_OF = {
    OPEN: CLOSE,  # Hermes, Qwen, SmolLM3, Granite
    "<tool_calls>": "</tool_calls>",  # Jamba
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4 mini; Granite, which writes no end
    "[TOOL_CALLS]": "",  # Mistral
    "<|python_tag|>": "",  # Llama 3.1
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
}
"""The marks before calls, and the marks after them; empty if there is none."""

BEGINNINGS = (*_CLOSE_OF, "<function=")
"""What a call may begin with, unless the whole turn is its JSON or its Python, or that in a code fence."""

FENCE = re.compile(r"```(?:json|python|py|tool_code|tool_call)?[ \t]*+\n")
"""The line that opens a code fence around a call, as Gemma writes it. A fence with other text around is only shown."""

_FUNCTION = r"<function=(?P<function>[^<>\n]{1,200})>(?=\s*+(?:\{|<parameter=|</function>))"
_BEGIN = re.compile("|".join([*map(re.escape, _CLOSE_OF), _FUNCTION]))
_NAMED_MARKS = "|".join(map(re.escape, [*_CLOSE_OF, *filter(None, _CLOSE_OF.values())]))
_MARK = re.compile(f"{_NAMED_MARKS}|{_FUNCTION}")
_TEXT_OR_MARK = re.compile(
    r"""(?P<quote>\"""|'''|["'])(?:[^\\"']|\\.|(?!(?P=quote))["'])*+(?:(?P=quote)|\\?\Z)"""
    rf"|(?P<mark>{_MARK.pattern})",
    re.DOTALL,
)
"""A text of Python, or a mark: a mark inside a text is part of that text."""
_STRING_OR_MARK = re.compile(
    rf'"(?:[^"\\\n]|\\.|\n(?![ \t]*+(?:{_NAMED_MARKS}|<function=)))*+"?'
    rf"|(?:(?<=[\[{{:,])|(?<=[\[{{:,] ))'(?:[^'\\\n]|\\.)*+'|(?P<mark>{_MARK.pattern})",
    re.DOTALL,
)
"""A string of JSON, or a mark: a mark inside a string is part of that string. A string without an end goes on to the
end of the text, but no string goes on before a line that begins with a mark. A single quote begins a string only where
a value or a key may begin (it may be an apostrophe), and if it ends on the same line."""

_TURN_END = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|eom_id|end|call|endoftext|end_of_text)\|>|</s>|<end_of_turn>))+\s*\Z"
)
_END_LENGTH = 100
_SPACE = re.compile(r"\s*+")
_FENCE = re.compile(r"```\w*+\s*+")
_NEXT = re.compile(r"\s*+[,;]?\s*+(?=[{\[])")
_LEFT_OVER = re.compile(r"[\s}\]`]*+")
"""What may follow the JSON of a call: white space, extra brackets, the end of a code fence."""

_NAMED = re.compile(r"(?P<name>[\w.-]{1,200})\s*+(?:\[CALL_ID\][\w-]{0,100})?+(?:\[ARGS\])?+\s*+(?=\{)")
_PAIRS = re.compile(r"(?P<name>[\w.-]{1,200})\s*+(?=<arg_key>|(?P<none></tool_call>))")

Thoughts = Literal["strip", "keep"]


@dataclass(frozen=True)
class Turn:
    """What a model wrote until its end token.

    - ``calls``: in their order in the text; an :class:`Outcome` with the fault "malformed" replaces an unreadable call
    - ``answer``: the text of a turn without calls, else None
    - ``other_forms``: the number of calls in another form than :func:`call_text` writes
    """

    text: str
    calls: tuple[Call | Outcome, ...]
    answer: str | None
    other_forms: int = 0


def call_text(call: Call) -> str:
    """A call as a model writes it: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``."""
    body = json.dumps({"name": call.name, "arguments": dict(call.arguments)}, ensure_ascii=False)
    return f"{OPEN}{body}{CLOSE}"


def read_turn(text: str, tools: Schemas = (), *, thoughts: Thoughts = "strip") -> Turn:
    """Find the calls in a turn. Never raises; the time is linear in the length of the text.

    It reads the forms that models are trained on: JSON in ``<tool_call>`` (for its keys see
    :func:`~skillweave.tools.forms.calls_of`), in Mistral's ``[TOOL_CALLS]``, after Llama's ``<|python_tag|>``;
    ``<function=name>`` with JSON or with ``<parameter=key>``; GLM's ``<arg_key>``. The end mark may be missing at the
    end of the turn, and the JSON may have small errors (:func:`~skillweave.tools.lenient.read_json`).

    ``tools`` are the schemas of the tools that the model was told about. They give values their types, in the forms
    that write all values as text. With them, a turn without any mark is also a call if it is only a JSON object with
    the name of one of these tools and its arguments, as Llama 3.1 writes it, or only calls in Python
    (:func:`~skillweave.tools.python_form.python_calls`); a code fence may be around either.

    The thoughts of a reasoning model are not part of the turn: a call that it drafts there is not made. With
    ``thoughts="keep"`` they are read like the rest.
    """
    visible = strip_thoughts(text) if thoughts == "strip" else text
    # An end token may still be in the text, because special tokens are kept if marks of calls are special tokens.
    if end := _TURN_END.search(visible, max(0, len(visible) - _END_LENGTH)):
        visible = visible[: end.start()]
    # First as a whole: a mark in a text of such a call is an argument, as of a tool that writes a file.
    calls = _bare_calls(visible, tools)
    other_forms, at = len(calls), len(visible) if calls else 0
    end_of_text = len(visible.rstrip())
    while begin := _BEGIN.search(visible, at):
        if calls and begin[0] == OPEN and begin.end() >= end_of_text and not visible[:at].rstrip().endswith(CLOSE):
            break  # small models write the opening mark instead of the closing one
        read, plain, at = _read_at(visible, begin, tools)
        calls += read
        other_forms += 0 if plain else sum(isinstance(call, Call) for call in read)
    if not calls and CLOSE in visible:
        calls = [malformed(f"{CLOSE} without {OPEN}")]
    return Turn(text, tuple(calls), None if calls else visible.strip(), other_forms)


def _read_at(text: str, begin: re.Match[str], tools: Schemas) -> tuple[list[Call | Outcome], bool, int]:
    """The calls after a mark, whether they are in the form of :func:`call_text`, and the index to continue at."""
    mark = begin[0]
    start = _skip(_SPACE, text, begin.end())
    try:
        if begin["function"]:
            call, at = _read_function(text, begin, tools)
            return [call], False, at
        if mark in (OPEN, "<|python_tag|>") and (inner := _BEGIN.match(text, start)) and inner["function"]:
            start = inner.end()
            call, at = _read_function(text, inner, tools)
            return [call], False, _behind(CLOSE, text, at)
        named = _PAIRS.match(text, start) if mark == OPEN else None
        if named and (not named["none"] or named["name"] in names_of(tools)):
            call, at = read_pairs(text, named.end(), named["name"], tools)
            return [call], False, _behind(CLOSE, text, at)
        if mark == "[TOOL_CALLS]" and (named := _NAMED.match(text, start)):
            value, at, _ = read_json(text, named.end())
            return [Call(named["name"], arguments_of(value))], False, at
        if mark != "[TOOL_CALLS]" and BEGINS.match(text, start):
            return _read_python(text, start, mark, tools)
        return _read_values(text, start, mark)
    except Unreadable as problem:
        return _unread(problem, text, start)
    except (ValueError, RecursionError) as problem:
        reason = getattr(problem, "msg", "it cannot be read")
        return _unread(f"no valid JSON ({reason})", text, start)


def _read_python(text: str, start: int, mark: str, tools: Schemas) -> tuple[list[Call | Outcome], bool, int]:
    """As :func:`_read_at`, for a mark that is followed by calls in Python."""
    another = next((found for found in _TEXT_OR_MARK.finditer(text, start) if found["mark"]), None)
    end = another.start() if another else len(text)
    try:
        calls: list[Call | Outcome] = [*python_calls(text[start:end], tools)]
    except Unreadable as problem:
        calls = [malformed(problem)]
    return calls, False, _behind(_CLOSE_OF[mark], text, end)


def _read_values(text: str, start: int, mark: str) -> tuple[list[Call | Outcome], bool, int]:
    """As :func:`_read_at`, for a mark that is followed by JSON. Raises ``ValueError`` if it is not JSON."""
    close = _CLOSE_OF[mark]
    begin = _skip(_FENCE, text, start)
    # The end is found by reading the JSON, because a text in it may hold the closing mark.
    value, end, strict = read_json(text, begin, close)
    values = [value]
    while another := _NEXT.match(text, end):
        value, end, also_strict = read_json(text, another.end(), close)
        values.append(value)
        strict = strict and also_strict
    at = _skip(_LEFT_OVER, text, end)
    closed = bool(close) and text.startswith(close, at)
    if close and len(text) - at < len(close) and close.startswith(text[at:]):  # the closing mark is cut off, or missing
        at = len(text)
    if close and not closed and at < len(text) and not _BEGIN.match(text, at):
        return _unread(f"{close} must follow the JSON", text, end)
    calls = [call for one in values for call in calls_of(one)]
    plain = (mark, closed, strict, begin) == (OPEN, True, True, start) and not text[end:at].strip()
    return calls, plain and all(map(is_plain, values)), at + len(close) if closed else at


def _read_function(text: str, begin: re.Match[str], tools: Schemas) -> tuple[Call, int]:
    """The call of ``<function=name>``, with arguments as JSON or ``<parameter=key>``, and the index to continue at."""
    name, start = begin["function"].strip(), _skip(_SPACE, text, begin.end())
    if text.startswith("{", start):
        value, at, _ = read_json(text, start, "</function>")
        call = Call(name, arguments_of(value))
    else:
        call, at = read_parameters(text, start, name, tools)
    end = _behind("</function>", text, at)
    if end == at and _SPACE.fullmatch(text, at) is None and not text.startswith(CLOSE, _skip(_SPACE, text, at)):
        raise Unreadable("</function> is missing")
    return call, end


def _bare_calls(text: str, tools: Schemas) -> list[Call | Outcome]:
    """The calls of a turn that is nothing else, in JSON or Python; [] for any other turn.

    They may be in a code fence, or have a closing mark.
    """
    known = names_of(tools)
    text = text.strip().removesuffix(CLOSE).rstrip().removesuffix(";")
    if (opening := FENCE.match(text)) and text.endswith("```"):
        text = text[opening.end() : -3].strip()
    if known and BEGINS.match(text):
        try:
            calls = python_calls(text, tools)
        except Unreadable:
            return []
        return [*calls] if all(call.name in known for call in calls) else []
    if not known or not text.startswith(("{", "[")):
        return []
    values, end = [], 0
    try:
        while another := _NEXT.match(text, end):
            value, end, _ = read_json(text, another.end())
            values.append(value)
    except (ValueError, RecursionError):
        return []
    if _skip(_LEFT_OVER, text, end) < len(text) or not all(is_bare_call(value, known) for value in values):
        return []
    return [call for value in values for call in calls_of(value)]


def _unread(problem: object, text: str, start: int) -> tuple[list[Call | Outcome], bool, int]:
    """As :func:`_read_at`, for a call that cannot be read: go on after its closing mark, or at an opening mark before.

    A mark inside a string is part of it: a call that is only quoted must not run because the JSON around it is broken.
    """
    found = next((found for found in _STRING_OR_MARK.finditer(text, start) if found["mark"]), None)
    at = len(text)
    if found is not None:
        at = found.end() if found["mark"] in _CLOSE_OF.values() else found.start()
    if _BEGIN.search(text, start, at):
        problem = f"{problem}; another call in it or behind it, on the same line, counts as quoted and was not made"
    return [malformed(problem)], False, at


def _behind(mark: str, text: str, at: int) -> int:
    """The index after white space and this mark, or ``at`` if the mark is not there."""
    start = _skip(_SPACE, text, at)
    return start + len(mark) if text.startswith(mark, start) else at


def _skip(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.match(text, at)
    return found.end() if found else at
