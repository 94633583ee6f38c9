"""Rows that a person wrote, as entries: three forms, each checked, every error naming the file and the line.

* ``{"messages": [..., {"role": "assistant", "content": ANSWER}]}``
* ``{"prompt": TEXT or messages, "completion": TEXT or one assistant message}``
* ``{"prompt": TEXT or messages, "answer": TEXT}``, for the verifier ``code`` with ``"cases": [...]``, answer optional

``question`` may stand for ``prompt``. Further keys of a row are kept in ``Entry.metadata``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from skillweave.base.chat import Prompt, as_messages
from skillweave.config import Config
from skillweave.errors import UserError, nearest
from skillweave.tasks.task import Entry, prompt_id
from skillweave.tasks.verifiers import VerifierName, gold_problem, options_for

Row = tuple[str, Any]
"""Where a row stands ("data.jsonl, line 3") and what was read there."""


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file, read line by line; blank lines are passed over."""
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {number}", json.loads(line)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: name a JSONL file (looked in {Path.cwd()})") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder: name a JSONL file, or use source: dataset for a saved dataset") from None
    except json.JSONDecodeError as error:
        hint = "" if number > 1 else "; JSONL holds one object a line"
        raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}){hint}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} after line {number})") from error


def read_dataset(path: str, split: str, subset: str | None) -> Iterator[Row]:
    """The rows of a Hugging Face dataset: of a folder where there is one of that name, else of the hub."""
    import datasets  # seconds to import, and most tasks need it not

    if Path(path).is_dir():
        try:
            loaded = datasets.load_from_disk(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} is no dataset folder: write one with dataset.save_to_disk ({error})") from error
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise UserError(f"{path} has no split '{split}'; {nearest(split, loaded)}")
            loaded = loaded[split]
    else:
        try:
            loaded = datasets.load_dataset(path, subset, split=split)
        except (OSError, ValueError) as error:
            raise UserError(
                f"could not load dataset '{path}' (split '{split}'): {error}. It is no folder here; "
                "for a hub dataset check its id, split and the network"
            ) from error
    for number, row in enumerate(loaded, 1):
        yield f"{path}, row {number}", row


def entries_from(rows: Iterable[Row], verifier: VerifierName, options: Mapping[str, Any] | None = None) -> list[Entry]:
    """All rows as entries; the first mistake is a :class:`UserError`. All rows have the form of the first.

    Gold answers are checked as the verifier with these ``options`` reads them; None: only what every setting asks for.
    """
    checked = None if options is None else options_for(verifier, dict(options))
    entries: list[Entry] = []
    first_form, first_where = "", ""
    for where, given in rows:
        row = _with_prompt(given)
        form = _form(row, where)
        if not first_form:
            first_form, first_where = form, where
        elif form != first_form:
            raise UserError(f"{where}: has the form {form}, {first_where} has {first_form}: write all rows in one form")
        entries.append(_entry(row, form, where, verifier, checked))
    return entries


def _with_prompt(row: Any) -> Any:
    """The row with its ``question`` as its prompt, where it has no other."""
    if not isinstance(row, Mapping) or "question" not in row or any(row.get(key) for key in ("messages", "prompt")):
        return row
    return {
        "prompt": row["question"],
        **{key: value for key, value in row.items() if key not in ("question", "prompt")},
    }


def _form(row: Any, where: str) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object with keys, found {type(row).__name__}")
    present = {key for key in ("messages", "prompt", "completion", "answer", "cases") if row.get(key) is not None}
    if "messages" in present:
        if "prompt" in present:
            raise UserError(f"{where}: has both 'messages' and 'prompt': keep one of them")
        return "messages"
    if "prompt" not in present:
        raise UserError(f"{where}: found {', '.join(map(repr, row)) or 'no keys'}; a row needs 'messages' or 'prompt'")
    if {"completion", "answer"} <= present:
        raise UserError(f"{where}: has both 'completion' and 'answer': keep one of them")
    if "completion" in present:
        return "prompt/completion"
    if present & {"answer", "cases"}:
        return "prompt/answer"
    raise UserError(f"{where}: has a 'prompt' but neither 'completion' nor 'answer'")


def _entry(row: Mapping[str, Any], form: str, where: str, verifier: VerifierName, options: Config | None) -> Entry:
    answer: Any
    if form == "messages":
        messages = _messages(row["messages"], where, "messages")
        if messages[-1]["role"] != "assistant":
            raise UserError(f"{where}: the last message must be the assistant's, it is the answer")
        prompt, answer = messages[:-1], messages[-1]["content"]
    else:
        prompt = row["prompt"]
        if not isinstance(prompt, str):
            prompt = _messages(prompt, where, "prompt")
        answer = row.get("completion" if form == "prompt/completion" else "answer")
        if form == "prompt/completion" and isinstance(answer, list) and len(answer) == 1:
            answer = _messages(answer, where, "completion")[0]["content"]
    _check_prompt(prompt, where)
    if answer is not None and (not isinstance(answer, str) or not answer.strip()):
        raise UserError(f"{where}: the answer must be a text with something in it, found {answer!r:.60}")
    cases = row.get("cases")
    problem = gold_problem(verifier, cases if verifier == "code" else answer, options, cases=cases)
    if problem:
        raise UserError(f"{where}: {problem}")
    rest = {key: value for key, value in row.items() if key not in ("messages", "prompt", "completion", "answer")}
    return Entry(prompt_id(prompt), prompt, answer, {**rest, "where": where})


def _messages(value: Any, where: str, key: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: '{key}' must be a list of messages, found {value!r:.60}")
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise UserError(f"{where}: {key}, message {number} must have the texts 'role' and 'content'")
    return [dict(message) for message in value]


def _check_prompt(prompt: Prompt, where: str) -> None:
    messages = as_messages(prompt)
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{where}: there is no message with the role 'user' to answer")
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{where}: the prompt ends with the assistant's message; it must end with what is to answer")
    if not str(messages[-1]["content"]).strip():
        raise UserError(f"{where}: the prompt is empty")
