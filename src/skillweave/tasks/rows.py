"""Rows of a file -> entries of a task. Each row is checked; every error names the file and the line."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from skillweave.base.chat import Answer, Prompt, as_messages
from skillweave.base.thoughts import strip_thoughts
from skillweave.config import Config
from skillweave.errors import UserError
from skillweave.tasks.calls import JUDGES_OF_CALLS
from skillweave.tasks.messages import PREFIX, SWITCHES, THOUGHTS, read_messages
from skillweave.tasks.readers import LocatedRow
from skillweave.tasks.row_forms import Parts, read_parts
from skillweave.tasks.task import Entry, row_id
from skillweave.tasks.verifiers import Thoughts, VerifierName, gold_problem, options_for


def entries_from(
    rows: Iterable[LocatedRow],
    verifier: VerifierName,
    options: Mapping[str, Any] | None = None,
    *,
    columns: Mapping[Any, str | None] | None = None,
    system: str | None = None,
    thoughts: Thoughts = "strip",
) -> list[Entry]:
    """The entries of all rows, which must have the form of the first. Raises :class:`UserError` at the first mistake.

    * ``verifier``, ``options``: gold answers are checked as the verifier reads them; with ``options`` None only as far
      as all options agree
    * ``columns``: our names of keys -> the names in the rows
    * ``system``: a system prompt that is put before every prompt
    * ``thoughts``: with ``strip`` the thoughts of a gold answer are learnt and not judged
    """
    checked = None if options is None else options_for(verifier, dict(options))
    entries: list[Entry] = []
    first_form, first_where = "", ""
    for where, row in rows:
        parts = read_parts(row, where, columns or {}, system)
        form = "prompt/answer" if parts.form == "prompt/cases" else parts.form
        if not first_form:
            first_form, first_where = form, where
        elif form != first_form:
            raise UserError(f"{where}: has the form {form}, {first_where} has {first_form}: write all rows in one form")
        entries.append(_entry(parts, where, verifier, checked, thoughts))
    return entries


def _entry(parts: Parts, where: str, verifier: VerifierName, options: Config | None, thoughts: Thoughts) -> Entry:
    _check_prompt(parts.prompt, where)
    prompt: Prompt = parts.prompt
    if parts.tools:
        prompt = {"messages": as_messages(prompt), "tools": parts.tools}
    accepted = _accepted(parts.answer, where, verifier)
    metadata = {**parts.rest, **_unread(parts.answer, "answer"), **_unread(parts.rejected, "rejected"), "where": where}
    cases = parts.rest.get("cases")
    if verifier == "code" or not accepted:
        problem = gold_problem(verifier, cases if verifier == "code" else None, options, cases=cases)
        if problem:
            raise UserError(f"{where}: {problem}")
    for gold in accepted if verifier != "code" else ():
        _check_gold(gold, where, verifier, options, cases, thoughts)
    if len(accepted) > 1:
        metadata["answers"] = accepted
    if parts.rejected is not None:
        metadata["rejected"] = _one_answer(parts.rejected, where, "rejected", verifier, learnt=False)
        if any(_same_text(metadata["rejected"], gold) for gold in accepted):
            raise UserError(f"{where}: 'chosen' and 'rejected' are the same: nothing can be learnt from such a row")
    answer = accepted[0] if accepted else None
    return Entry(row_id(prompt, answer, metadata), prompt, answer, metadata)


def _accepted(value: Any, where: str, verifier: VerifierName) -> list[Answer]:
    """All answers that count as right, each once; the first one is learnt. The list is empty without an answer."""
    if value is None:
        return []
    if not isinstance(value, list):
        return [_one_answer(value, where, "the answer", verifier)]
    if not value:
        raise UserError(f"{where}: the list of answers is empty: give at least one")
    if all(isinstance(one, Mapping) and "role" in one for one in value):
        messages = read_messages(value, where, "completion")
        if len(messages) > 1 or messages[0]["role"] != "assistant":
            raise UserError(
                f"{where}: the answer must be one message of the assistant, found {len(messages)} messages: move those "
                "before it to the prompt"
            )
        return [_one_answer(messages[0], where, "the answer", verifier)]
    if verifier == "json" and not all(isinstance(one, str) for one in value):
        raise UserError(
            f"{where}: the answer is a list, which means several accepted answers. If one array is the "
            f"answer, write it as a text: {json.dumps(json.dumps(value, default=str))[:60]}"
        )
    accepted: list[Answer] = []
    for one in value:
        answer = _one_answer(one, where, "an answer of the list", verifier)
        if answer not in accepted:
            accepted.append(answer)
    return accepted


def _one_answer(value: Any, where: str, called: str, verifier: VerifierName, *, learnt: bool = True) -> Answer:
    """A gold answer as a text; numbers, true and false become JSON texts; a message with calls stays a message."""
    if isinstance(value, Mapping) and "role" in value:
        message = read_messages([value], where, "answer", learnt=learnt)[0]
        if message["role"] != "assistant":
            raise UserError(f"{where}: {called} is a message with the role '{message['role']}', not 'assistant'")
        more = [key for key in ("tool_calls", *THOUGHTS) if message.get(key)]
        if more:
            if not message["content"].strip() and "tool_calls" not in message:
                raise UserError(
                    f"{where}: the answer must be a text with something in it, in addition to its reasoning"
                )
            return {key: message[key] for key in ("role", "content", *more)}
        value = message["content"]
    if isinstance(value, Mapping) and verifier == "json":
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where}: {called} must be a text with something in it (or a number), found {value!r:.60}")
    return value


def _unread(answer: Any, called: str) -> dict[str, Any]:
    """The parts of an answer given as a message that neither a model nor a verifier sees, as ``answer.KEY``."""
    known = {"role", "content", "tool_calls", *THOUGHTS, PREFIX}
    messages = answer if isinstance(answer, list) else [answer]
    return {
        f"{called}.{key}": value
        for message in messages
        if isinstance(message, Mapping) and "role" in message
        for key, value in message.items()
        if key not in known and value and not (key in SWITCHES and (value == 1 or called == "rejected"))
    }


def _same_text(one: Answer, other: Answer) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    return one == other


def _check_gold(
    gold: Answer, where: str, verifier: VerifierName, options: Config | None, cases: Any, thoughts: Thoughts
) -> None:
    """Raise :class:`UserError` if the verifier cannot judge by this gold answer."""
    if not isinstance(gold, str) and "tool_calls" in gold:
        if verifier not in JUDGES_OF_CALLS:
            raise UserError(
                f"{where}: the answer is a tool call, which the verifier '{verifier}' cannot judge: choose "
                f"{' or '.join(JUDGES_OF_CALLS)}"
            )
        return
    text = gold if isinstance(gold, str) else gold["content"]
    if thoughts == "strip":
        text = strip_thoughts(text)
        if not text.strip():
            raise UserError(f"{where}: the answer has only thoughts: write the text after them, or set thoughts: keep")
    problem = gold_problem(verifier, text, options, cases=cases)
    if problem:
        raise UserError(f"{where}: {problem}")


def _check_prompt(prompt: Prompt, where: str) -> None:
    """Raise :class:`UserError` for a prompt without a message that a model could answer."""
    messages = as_messages(prompt)
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{where}: there is no message with the role 'user' to answer")
    if messages[-1]["role"] == "assistant":
        raise UserError(
            f"{where}: the prompt ends with the assistant's message; it must end with the message to answer"
        )
    if not str(messages[-1]["content"]).strip() and messages[-1]["role"] != "tool":
        raise UserError(f"{where}: the prompt is empty")
