"""What is to be forgotten and what is to stay, as facts: read from JSONL, kept apart, turned into rows of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skillweave.base.chat import Prompt, as_messages, plain_ids
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.tasks.readers import read_jsonl
from skillweave.tasks.rows import entries_from
from skillweave.tasks.task import Entry, near_id, normal_text

_FORMS = ("messages", "prompt", "question", "text")
"""The keys by which a row's form is known; the first that is there counts."""


@dataclass(frozen=True)
class Fact:
    """One thing a model may know. ``prompt`` is None for plain text, all of which stands in ``answer``.

    ``id`` names what is asked (or the text), whatever its case and white space. ``paraphrased`` is the same answer
    in other words, ``wrong`` are answers of that form that are not true. ``where`` is the place it was read from.
    """

    id: str
    prompt: Prompt | None
    answer: str
    paraphrased: str | None
    wrong: tuple[str, ...]
    where: str


def read_facts(paths: Sequence[Path]) -> list[Fact]:
    """The facts of one or several JSONL files, in order; each file in one of these forms:

    ``{"question", "answer"}`` (TOFU's own), ``{"prompt", "answer"}``, ``{"prompt", "completion"}``, ``{"messages"}``,
    each with ``"paraphrased_answer": TEXT`` and ``"perturbed_answer": [TEXT, ...]`` where there are such; or
    ``{"text"}``. Raises :class:`UserError`, with file and line, for an empty file, a row that does not fit, and what
    is asked (or told) twice.
    """
    known: dict[str, Fact] = {}
    for path in paths:
        for fact in _of_file(path):
            if fact.id in known:
                raise UserError(f"{fact.where}: the same as {known[fact.id].where}: {_shown(fact)}. Keep one of them")
            known[fact.id] = fact
    return list(known.values())


def check_apart(facts: Sequence[Fact], others: Sequence[Fact], one: str, other: str) -> None:
    """Raise :class:`UserError` where a prompt or a text stands in both sets; ``one`` and ``other`` are their names."""
    known = {fact.id: fact for fact in others}
    both = [fact for fact in facts if fact.id in known]
    if both:
        raise UserError(
            f"{len(both)} of the {one} facts stand in {other} too. The first: {_shown(both[0])} "
            f"({both[0].where} and {known[both[0].id].where}). Remove them from one of the two sets"
        )


def fact_rows(tokenizer: Any, facts: Sequence[Fact], max_length: int) -> tuple[list[dict[str, list[int]]], int]:
    """Rows ``input_ids``, ``labels`` (both (T,)) and ``end``, in the order of the facts, and how many gave no row.

    A question is one row, labelled on its answer and the end of its turn, and left out where it is longer than
    ``max_length``. A text, with ``eos_token`` after it, is cut into pieces of at most ``max_length`` tokens, a row
    each. A piece is labelled all but on its first token, which nothing foretells; one that has no more of the text than
    that is dropped. ``end`` is [1] where the last label is the end of a turn or text, which is no part of what is
    known, else [0].
    """
    from skillweave.methods.training.sft import encode  # TRL: seconds to import

    of_facts = [
        _pieces(tokenizer, fact.answer, max_length)
        if fact.prompt is None
        else [{**row, "end": [1]} for row in encode(tokenizer, [(fact.prompt, fact.answer)], max_length)]
        for fact in facts
    ]
    return [row for rows in of_facts for row in rows], sum(not rows for rows in of_facts)


def rows_of_set(
    tokenizer: Any, facts: Sequence[Fact], max_length: int, called: str
) -> tuple[list[dict[str, list[int]]], int]:
    """:func:`fact_rows` of a set that must have some; else :class:`UserError`, in which the set is ``called`` so."""
    rows, left_out = fact_rows(tokenizer, facts, max_length)
    if not rows:
        raise UserError(
            f"all facts of {called} are longer than {max_length} tokens (max_length, or the base's context)"
        )
    return rows, left_out


def _pieces(tokenizer: Any, text: str, length: int) -> list[dict[str, list[int]]]:
    ids = [*plain_ids(tokenizer, text), tokenizer.eos_token_id]
    pieces = [(ids[start : start + length], int(start + length >= len(ids))) for start in range(0, len(ids), length)]
    return [
        {"input_ids": piece, "labels": [-100, *piece[1:]], "end": [end]}
        for piece, end in pieces
        if len(piece) - end > 1
    ]


def _of_file(path: Path) -> list[Fact]:
    rows = list(read_jsonl(path))
    if not rows:
        raise UserError(f"{path} is empty: write at least one fact, an object a line")
    forms = [_form(*row) for row in rows]
    for (where, _), form in zip(rows, forms, strict=True):
        if form != forms[0]:
            raise UserError(f"{where}: has '{form}', {rows[0][0]} has '{forms[0]}': write all rows in one form")
    if forms[0] == "text":
        return [_text(*row) for row in rows]
    return [_asked(entry) for entry in entries_from(rows, "exact")]


def _form(where: str, row: Any) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object with keys, found {type(row).__name__}")
    form = next((key for key in _FORMS if row.get(key) is not None), None)
    if form is None:
        found = ", ".join(map(repr, row)) or "no keys"
        raise UserError(f"{where}: found {found}; a fact needs 'question', 'prompt', 'messages' or 'text'")
    return form


def _text(where: str, row: Mapping[str, Any]) -> Fact:
    text = row["text"]
    if not _says_something(text):
        raise UserError(f"{where}: 'text' must be a text with something in it, found {text!r:.60}")
    return Fact(digest(normal_text(text)), None, text, None, (), where)


def _asked(entry: Entry) -> Fact:
    where, answer = entry.metadata["where"], entry.answer
    if not isinstance(answer, str) or len(entry.accepted) > 1:
        raise UserError(f"{where}: a fact has one answer, a text; found {entry.accepted!r:.60}")
    again, wrong = entry.metadata.get("paraphrased_answer"), entry.metadata.get("perturbed_answer")
    if again is not None and not _says_something(again):
        raise UserError(f"{where}: 'paraphrased_answer' must be a text with something in it, found {again!r:.60}")
    if wrong is None:
        wrong = []
    elif not isinstance(wrong, list) or not all(map(_says_something, wrong)):
        raise UserError(f"{where}: 'perturbed_answer' must be a list of texts (wrong answers), found {wrong!r:.60}")
    for text in wrong:
        if text.strip() in (answer.strip(), (again or answer).strip()):
            raise UserError(f"{where}: 'perturbed_answer' holds a right answer, {text!r:.60}: leave it out")
    return Fact(near_id(entry.prompt), entry.prompt, answer, again, tuple(wrong), where)


def _says_something(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _shown(fact: Fact) -> str:
    """The beginning of what is asked, or of the text."""
    if fact.prompt is None:
        return repr(fact.answer[:60])
    return repr(str(as_messages(fact.prompt)[-1]["content"])[:60])
