"""Facts to forget and to retain: read from data files, checked against each other, and turned into rows of tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from skillweave.base.chat import Prompt, as_messages, plain_ids
from skillweave.errors import UserError
from skillweave.files.hashes import digest
from skillweave.methods.training.sft import encode
from skillweave.tasks.readers import read_rows, say_unread_keys
from skillweave.tasks.rows import entries_from
from skillweave.tasks.task import Entry, near_id, normal_text

FactRow = dict[str, list[int]]
"""One training example.

- ``input_ids`` (T,): the tokens of prompt and answer, or of a piece of text
- ``labels`` (T,): the same tokens, -100 on the prompt
- ``end``: [1] if the last label is the end token of a turn or a text, else [0]
"""

_KEYS = ("messages", "prompt", "question", "text")
"""The keys that tell in which format a row is written; the first one present counts."""
_READ = {"where", "paraphrased_answer", "perturbed_answer"}
"""What a question has beside prompt and answer."""


@dataclass(frozen=True)
class Fact:
    """One thing that a model may know."""

    id: str
    """Digest of the question (or of the text), ignoring case and white space"""
    prompt: Prompt | None
    """None for a plain text, which is stored in ``answer``"""
    answer: str
    paraphrased: str | None
    """The answer in other words"""
    wrong: tuple[str, ...]
    """Wrong answers of the same form"""
    where: str
    """File and line that the fact was read from"""


@dataclass(frozen=True)
class UnlearningSets:
    """The sets of one unlearning. ``retain`` is trained on; ``held_out`` is from the same files and only evaluated."""

    name: str
    forget: list[Fact]
    retain: list[Fact]
    held_out: list[Fact]
    unseen: list[Fact]

    @property
    def key(self) -> str:
        """A digest of all facts of the sets."""
        sides = (self.forget, self.retain, self.held_out, self.unseen)
        return digest([[[fact.id, fact.prompt, fact.answer] for fact in facts] for facts in sides])


def read_sets(
    forget: Sequence[Path], retain: Sequence[Path], unseen: Sequence[Path] | None, held_out: int
) -> UnlearningSets:
    """Return the sets in these files; at most ``held_out`` retain facts, and at most a quarter, are held out.

    Raises :class:`UserError` if a fact is in two of the sets, and for fewer than four facts to retain.
    """
    facts = {"forget": read_facts(forget), "retain": read_facts(retain), "unseen": read_facts(unseen or [])}
    for one, other in combinations(facts, 2):
        check_disjoint(facts[one], facts[other], one, other)
    if len(facts["retain"]) < 4:
        raise UserError(
            f"{retain[0]}: {len(facts['retain'])} facts to retain; at least 4 are needed, because a quarter is held out"
        )
    # Sorted by id and not in the order of the file: a file may be sorted by topic, and a part must represent it all.
    sorted_forget, sorted_retain = (sorted(facts[side], key=lambda fact: fact.id) for side in ("forget", "retain"))
    count = min(held_out, len(sorted_retain) // 4)
    return UnlearningSets(
        name=Path(forget[0]).stem,
        forget=sorted_forget,
        retain=sorted_retain[count:],
        held_out=sorted_retain[:count],
        unseen=facts["unseen"],
    )


def read_facts(paths: Sequence[Path]) -> list[Fact]:
    """Return the facts of one or several data files, in order.

    Each file is in one of these formats:

    - ``{"question", "answer"}`` (TOFU's own), ``{"prompt", "answer"}``, ``{"prompt", "completion"}`` or
      ``{"messages"}``, each with optional ``"paraphrased_answer": TEXT`` and ``"perturbed_answer": [TEXT, ...]``
    - ``{"text"}``

    Raises :class:`UserError`, with file and line, for an empty file, for a row in another format, and for a question or
    text that occurs twice.
    """
    known: dict[str, Fact] = {}
    for path in paths:
        for fact in _facts_of_file(path):
            if fact.id in known:
                raise UserError(f"{fact.where}: the same as {known[fact.id].where}: {_excerpt(fact)}. Keep one of them")
            known[fact.id] = fact
    return list(known.values())


def check_disjoint(facts: Sequence[Fact], others: Sequence[Fact], one: str, other: str) -> None:
    """Raise :class:`UserError` if a question or a text is in both sets; ``one`` and ``other`` are the sets' names."""
    known = {fact.id: fact for fact in others}
    both = [fact for fact in facts if fact.id in known]
    if both:
        raise UserError(
            f"{len(both)} of the {one} facts are in {other} too. The first: {_excerpt(both[0])} "
            f"({both[0].where} and {known[both[0].id].where}). Remove them from one of the two sets"
        )


def fact_rows(tokenizer: Any, facts: Sequence[Fact], max_length: int) -> tuple[list[FactRow], int]:
    """Return the rows of the facts, in order, and the number of facts that gave no row.

    - A question gives one row, labelled on its answer and the end of its turn. It is left out if it is longer than
      ``max_length`` tokens.
    - A text, followed by ``eos_token``, is cut into pieces of at most ``max_length`` tokens, one row each. Every token
      of a piece has a label except the first, which nothing predicts. A piece with no other token of the text than
      that is dropped.
    """
    of_facts = [
        _text_pieces(tokenizer, fact.answer, max_length)
        if fact.prompt is None
        else [{**row, "end": [1]} for row in encode(tokenizer, [(fact.prompt, fact.answer)], max_length)]
        for fact in facts
    ]
    return [row for rows in of_facts for row in rows], sum(not rows for rows in of_facts)


def rows_of_set(tokenizer: Any, facts: Sequence[Fact], max_length: int, called: str) -> tuple[list[FactRow], int]:
    """:func:`fact_rows` of a set. Raises :class:`UserError`, naming the set as ``called``, if there is no row."""
    rows, left_out = fact_rows(tokenizer, facts, max_length)
    if not rows:
        raise UserError(
            f"all facts of {called} are longer than {max_length} tokens (max_length, or the base's context): "
            "raise max_length or shorten them"
        )
    return rows, left_out


def _text_pieces(tokenizer: Any, text: str, length: int) -> list[FactRow]:
    ids = [*plain_ids(tokenizer, text), tokenizer.eos_token_id]
    pieces = [(ids[start : start + length], int(start + length >= len(ids))) for start in range(0, len(ids), length)]
    return [
        {"input_ids": piece, "labels": [-100, *piece[1:]], "end": [end]}
        for piece, end in pieces
        if len(piece) - end > 1
    ]


def _facts_of_file(path: Path) -> list[Fact]:
    rows = list(read_rows(path))
    if not rows:
        raise UserError(f"{path} is empty: write at least one fact, one JSON object per line")
    keys = [_key_of_format(*row) for row in rows]
    for (where, _), key in zip(rows, keys, strict=True):
        if key != keys[0]:
            raise UserError(f"{where}: has '{key}', {rows[0][0]} has '{keys[0]}': write all rows in one format")
    if keys[0] == "text":
        facts = [_text_fact(*row) for row in rows]
        unread = Counter(key for _, row in rows for key in row.keys() - {"text"})
    else:
        entries = entries_from(rows, "exact")
        facts = [_question_fact(entry) for entry in entries]
        unread = Counter(key for entry in entries for key in entry.metadata.keys() - _READ)
    say_unread_keys(path, unread, len(rows))
    return facts


def _key_of_format(where: str, row: Any) -> str:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: expected an object with keys, found {type(row).__name__}")
    key = next((key for key in _KEYS if row.get(key) is not None), None)
    if key is None:
        present = ", ".join(map(repr, row)) or "no keys"
        raise UserError(f"{where}: found {present}; a fact needs 'question', 'prompt', 'messages' or 'text'")
    return key


def _text_fact(where: str, row: Mapping[str, Any]) -> Fact:
    text = row["text"]
    if not _is_text(text):
        raise UserError(f"{where}: 'text' must be a text that is not empty, found {text!r:.60}")
    return Fact(digest(normal_text(text)), None, text, None, (), where)


def _question_fact(entry: Entry) -> Fact:
    where, answer = entry.metadata["where"], entry.answer
    if not isinstance(answer, str) or len(entry.accepted) > 1:
        raise UserError(f"{where}: a fact has one answer, a text; found {entry.accepted!r:.60}")
    paraphrased, wrong = entry.metadata.get("paraphrased_answer"), entry.metadata.get("perturbed_answer")
    if paraphrased is not None and not _is_text(paraphrased):
        raise UserError(f"{where}: 'paraphrased_answer' must be a text that is not empty, found {paraphrased!r:.60}")
    if wrong is None:
        wrong = []
    elif not isinstance(wrong, list) or not all(map(_is_text, wrong)):
        raise UserError(f"{where}: 'perturbed_answer' must be a list of texts (wrong answers), found {wrong!r:.60}")
    for text in wrong:
        if text.strip() in (answer.strip(), (paraphrased or answer).strip()):
            raise UserError(f"{where}: 'perturbed_answer' contains a right answer, {text!r:.60}: remove it")
    return Fact(near_id(entry.prompt), entry.prompt, answer, paraphrased, tuple(wrong), where)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _excerpt(fact: Fact) -> str:
    """The beginning of the question or of the text, for a message."""
    if fact.prompt is None:
        return repr(fact.answer[:60])
    return repr(str(as_messages(fact.prompt)[-1]["content"])[:60])
