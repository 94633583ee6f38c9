"""Read the records of RLVR data as a stream: each becomes a prompt as one text, a gold answer and a source.

A record that cannot be read is returned as :class:`Malformed`, with its line and the reason. The lines of a JSONL file
are parsed one by one, so a bad one costs no other.
"""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from skillweave.errors import UserError, nearest, shown_value
from skillweave.files.parse_json import parse_json
from skillweave.files.read import is_file, is_folder
from skillweave.tasks.messages import parsed
from skillweave.tasks.readers import ENDINGS, LocatedRow, decoded_line, raw_lines, read_dataset, read_rows, wrapper_hint
from skillweave.tasks.row_forms import SHAREGPT, earlier_turns

CHUNK = 512
"""Records that one process gets at a time."""
LONGEST_PROMPT = 200_000
"""Characters of a prompt that are looked at. The audit counts the prompts that are longer, and says so."""
_LONGEST_TOOLS = LONGEST_PROMPT // 2
"""Characters of the descriptions of tools among them, so that no description hides the prompt behind it."""

_PROMPTS = ("prompt", "question", "problem", "instruction", "query", "input", "messages", "conversations")
_ANSWERS = (
    "answer",
    "reward_model.ground_truth",
    "ground_truth",
    "extra_info.ground_truth",
    "extra_info.answer",
    "solution",
    "final_answer",
    "label",
    "target",
    "completion",
    "response",
    "output",
    "chosen",
)
_SOURCES = ("source", "data_source", "dataset", "origin", "extra_info.source")
_OURS = ("prompt", "answer", "id", "source")
_ASSISTANT = frozenset(["bot", *(name for name, role in SHAREGPT.items() if role == "assistant")])
_TOOLS = ("tools", "functions")
_SCHEMA_WORDS = frozenset(
    [
        *("type", "function", "name", "description", "parameters", "arguments", "properties", "required", "items"),
        *("enum", "default", "anyOf", "oneOf", "allOf", "additionalProperties", "strict", "title", "const", "examples"),
        *("minimum", "maximum", "id", "index", "format", "$schema", "$defs", "$ref"),
    ]
)
_NO_TEXT_OF_TOOLS = frozenset(["type", "id", "index", "format", "$schema"])
_Keys = Literal["schema", "names", "arguments"]
"""What the keys of an object are: words of a schema, names of parameters, or anything, also further below."""
_DATASET_FILES = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True)
class AuditRow:
    """One record.

    - ``file``, ``line``: its place; the line, or the row of a table, counts from 1
    - ``id``: the record's own id, if it has one
    - ``prompt``: the prompt as one text; the contents of messages are joined by an empty line
    - ``answer``: the gold answer as a text; empty if the record has none
    - ``turns``: for messages, the start and the end of each in ``prompt``, and whether the assistant wrote it
    - ``asked_from``: where in ``prompt`` the description of the row's tools ends and what is asked begins
    - ``cut``: whether the end of a very long prompt was left out
    - ``other_parts``: how many parts of messages are no text, such as images
    - ``digest``: a digest of the line's bytes, without the line break; None for a row of a table
    """

    file: str
    line: int
    prompt: str
    answer: str
    id: str | None = None
    source: str | None = None
    turns: tuple[tuple[int, int, bool], ...] = ()
    asked_from: int = 0
    cut: bool = False
    other_parts: int = 0
    digest: str | None = None


@dataclass(frozen=True)
class Malformed:
    """A record that could not be read, and why."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Chunk:
    """Some records of one file that are not parsed yet: lines of JSONL, or rows of a table."""

    file: str
    first: int
    lines: list[bytes] = field(default_factory=list)
    rows: list[LocatedRow] = field(default_factory=list)


def has_splits(path: Path) -> bool:
    """Whether a path is the folder of a saved dataset with several splits."""
    return is_folder(path) and is_file(path / _DATASET_FILES[0])


def chunks(path: Path, split: str, size: int = CHUNK) -> Iterator[Chunk]:
    """Yield the records of a file, of a folder of files, or of a dataset folder, in order.

    Raises :class:`UserError` if there is no such data, or if a file as a whole cannot be read.
    """
    if is_folder(path) and any(is_file(path / name) for name in _DATASET_FILES):
        yield from _row_chunks(str(path), read_dataset(str(path), split, None), size)
        return
    for file in _files(path):
        if _is_jsonl(file):
            yield from _line_chunks(file, size)
        else:
            yield from _row_chunks(str(file), read_rows(file), size)


def parse_chunk(chunk: Chunk, columns: Mapping[str, str]) -> tuple[list[AuditRow], list[Malformed]]:
    """Return the records of a chunk, and those that could not be read; blank lines are neither."""
    records, malformed = [], []
    for number, item in enumerate(chunk.lines or chunk.rows, chunk.first):
        if isinstance(item, bytes) and not item.strip():
            continue
        where = f"{chunk.file}, line {number}"
        try:
            value = parse_json(decoded_line(item, where), where) if isinstance(item, bytes) else item[1]
            row = to_row(value, chunk.file, number, columns)
            records.append(replace(row, digest=line_digest(item)) if isinstance(item, bytes) else row)
        except UserError as error:
            malformed.append(Malformed(chunk.file, number, str(error).removeprefix(f"{where}: ")))
    return records, malformed


def line_digest(line: bytes) -> str:
    """Return a digest of a line of JSONL; line breaks and a byte order mark do not count."""
    return blake2b(line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n"), digest_size=8).hexdigest()


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise :class:`UserError` for a column that the audit does not know."""
    for name in columns:
        if name not in _OURS:
            raise UserError(f"columns: unknown name '{name}'; {nearest(name, _OURS)}")


def to_row(row: Any, file: str, line: int, columns: Mapping[str, str]) -> AuditRow:
    """Return the record in one row of the data, whatever its layout. Raises :class:`UserError` with the reason."""
    if not isinstance(row, Mapping):
        raise UserError(f"expected an object with keys, found {shown_value(row)}")
    key, value = _first(row, columns, "prompt", _PROMPTS)
    if key is None:
        found = ", ".join(map(repr, islice(row, 12))) or "no keys"
        raise UserError(
            f"no prompt: expected one of {', '.join(_PROMPTS)}, found {found}; "
            f"name the column with --columns prompt=KEY{wrapper_hint(row)}"
        )
    messages = _messages(value, key)
    answer = _answer(row, columns, messages)
    other_parts = sum(message.other_parts for message in messages)
    is_text = not messages
    if len(messages) > 1 and messages[-1].assistant:
        messages = messages[:-1]
    if is_text:
        prompt = _text(value, key)
        extra = row.get("input") if key == "instruction" else None
        if isinstance(extra, str) and extra.strip():
            prompt = f"{prompt}\n\n{extra}"
        messages = [_Message(False, prompt, 0)]
        if key == "instruction":
            earlier = earlier_turns(row, "this record")
            messages = [*(_Message(turn["role"] == "assistant", turn["content"], 0) for turn in earlier), *messages]
    if not any(message.text.strip() for message in messages):
        raise UserError(f"the prompt ('{key}') is empty")
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        messages = [_Message(False, system, 0), *messages]
    described = "\n".join(_texts_in(next((row[key] for key in _TOOLS if row.get(key)), None)))
    tools = described[:_LONGEST_TOOLS].strip()
    if tools:
        messages = [_Message(False, tools, 0), *messages]
    prompt, turns = _joined(messages)
    turns = () if is_text and not any(message.assistant for message in messages) else turns
    cut = len(prompt) > LONGEST_PROMPT or len(described) > _LONGEST_TOOLS
    if cut:
        prompt = prompt[:LONGEST_PROMPT]
        turns = tuple(turn for turn in turns if turn[1] <= LONGEST_PROMPT)
    name, source = _first(row, columns, "id", ("id",))[1], _first(row, columns, "source", _SOURCES)[1]
    return AuditRow(
        file=file,
        line=line,
        prompt=prompt,
        answer=answer,
        id=None if name is None else str(name),
        source=None if source is None else str(source)[:200],
        turns=turns,
        asked_from=min(len(tools), len(prompt)),
        cut=cut,
        other_parts=other_parts,
    )


def _files(path: Path) -> list[Path]:
    """The data files at ``path``: the file itself, or all in the folder whose endings are known."""
    if not is_folder(path):
        return [path]
    found = sorted(file for file in path.rglob("*") if is_file(file) and file.name.lower().endswith(tuple(ENDINGS)))
    found = [file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not found:
        raise UserError(
            f"{path} holds no data file ({', '.join(ENDINGS)}) and is no folder of save_to_disk: name the data"
        )
    return found


def _is_jsonl(file: Path) -> bool:
    """Whether a file holds an object a line, which a file named .json with more than one line may do too."""
    name = file.name.lower()
    if name.endswith((".json", ".json.gz")):
        first = list(islice((line.strip() for line in raw_lines(file) if line.strip()), 2))
        return len(first) == 2 and first[0].startswith(b"{") and first[0].endswith(b"}")
    return not any(name.endswith(ending) for ending in ENDINGS if not ending.startswith(".jsonl"))


def _line_chunks(file: Path, size: int) -> Iterator[Chunk]:
    lines, first = raw_lines(file), 1
    while batch := list(islice(lines, size)):
        yield Chunk(str(file), first, lines=batch)
        first += len(batch)


def _row_chunks(name: str, rows: Iterator[LocatedRow], size: int) -> Iterator[Chunk]:
    first = 1
    while batch := list(islice(rows, size)):
        yield Chunk(name, first, rows=batch)
        first += len(batch)


def _first(
    row: Mapping[str, Any], columns: Mapping[str, str], ours: str, names: Sequence[str]
) -> tuple[str | None, Any]:
    """The name and the value of the first column of ``names`` that the row has, or of the one in ``columns``."""
    wanted = (columns[ours],) if ours in columns else names
    for name in wanted:
        value = row[name] if name in row else _below(row, name)
        if value is not None:
            return name, value
    return None, None


def _below(row: Mapping[str, Any], name: str) -> Any:
    """The value at a name with dots. An object on the way may be a JSON text, as some tables store it."""
    value: Any = row
    for part in name.split(".") if "." in name else ():
        if isinstance(value, str) and value.startswith("{"):
            value = parse_json(value, name)
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if value is row else value


class _Message(NamedTuple):
    """A message of a prompt: whether the assistant wrote it, its text, and how many of its parts are no text."""

    assistant: bool
    text: str
    other_parts: int


def _messages(value: Any, key: str) -> list[_Message]:
    """The messages in a prompt; empty if the prompt is a text."""
    if isinstance(value, str) and key in ("messages", "conversations"):
        value = parsed(value, "", key)
    if not isinstance(value, list):
        return []
    found = []
    for number, message in enumerate(value, 1):
        where = f"'{key}', message {number}"
        if not isinstance(message, Mapping):
            raise UserError(f"{where}: expected an object with role and content, found {shown_value(message)}")
        role = message.get("role", message.get("from"))
        if not isinstance(role, str):
            raise UserError(f"{where}: has no role")
        content = message.get("content", message.get("value"))
        called = message.get("tool_calls") or message.get("function_call")
        calls = _texts_in(called)
        text, other_parts = _content("" if content is None and called else content, where)
        text = "\n".join([*([text] if text else []), *calls])
        found.append(_Message(role.lower() in _ASSISTANT, text, other_parts))
    return found


def _texts_in(value: Any) -> list[str]:
    """The texts in descriptions of tools or in calls, in their order: names, values, and what is said of them.

    Words of a JSON schema are left out. Arguments of a call, and names of parameters, may be such words and are not.
    """
    with contextlib.suppress(UserError):  # a text that is no JSON is a description as it is
        value = parsed(value, "", "tools")
    texts: list[str] = []
    left: list[tuple[Any, _Keys]] = [(value, "schema")]
    while left:
        inner, keys = left.pop()
        if isinstance(inner, str):
            texts.append(inner)
        elif isinstance(inner, list):
            left.extend((item, keys) for item in reversed(inner))
        elif isinstance(inner, Mapping):
            for key, item in reversed(list(inner.items())):
                schema = keys == "schema"
                below: _Keys = "arguments" if keys == "arguments" or (schema and key == "arguments") else "schema"
                if schema and key == "properties":
                    below = "names"
                if not schema or key not in _NO_TEXT_OF_TOOLS or not isinstance(item, str):
                    left.append((item, below))
                    left.extend([] if schema and key in _SCHEMA_WORDS else [(str(key), keys)])
    return texts


def _content(content: Any, where: str) -> tuple[str, int]:
    """The text of a message, and how many of its parts are no text: an image must not hide the text beside it."""
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        raise UserError(f"{where}: expected a text or a list of parts as content, found {shown_value(content)}")
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known), len(texts) - len(known)


def _joined(messages: Sequence[_Message]) -> tuple[str, tuple[tuple[int, int, bool], ...]]:
    """The contents of messages as one text, and the place of each in it."""
    turns, at = [], 0
    for assistant, text, _ in messages:
        turns.append((at, at + len(text), assistant))
        at += len(text) + 2
    return "\n\n".join(message.text for message in messages), tuple(turns)


def _answer(row: Mapping[str, Any], columns: Mapping[str, str], messages: Sequence[_Message]) -> str:
    """The gold answer: of its column, else the last message if the assistant wrote it; empty without one."""
    key, value = _first(row, columns, "answer", _ANSWERS)
    if key is None:
        return messages[-1].text if len(messages) > 1 and messages[-1].assistant else ""
    if isinstance(value, list) and value:
        value = value[-1] if key in ("chosen", "completion") else value[0]
    if isinstance(value, Mapping) and isinstance(value.get("content"), str):
        value = value["content"]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any, key: str) -> str:
    if isinstance(value, str):
        return value
    raise UserError(f"the prompt ('{key}') must be a text or a list of messages, found {shown_value(value)}")
