r"""Where in a text the answer stands: in ``\boxed{}``, after a mark, in the group of a pattern, first or last.

All of it works in time that is linear in the length of the text, but for ``answer_pattern``, which has a time limit.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, Self

from pydantic import field_validator, model_validator

from skillweave.config import Config
from skillweave.patterns import TooSlow, bounded_finditer, compiled
from skillweave.tasks.verifiers.told import told_once

Where = Literal["auto", "last", "first", "boxed", "whole"]


class Placed(Config):
    """Where the answer stands; each verifier says in its own words what ``auto``, the default, is."""

    answer_at: Where = "auto"
    r"""``first``, ``last``, ``boxed`` (the last ``\boxed{}``), ``whole`` (the text is nothing but the answer).

    Beside ``after`` or ``answer_pattern`` it says which match counts: ``first`` or ``last`` (which ``auto`` is)."""
    after: str | None = None
    """The answer is what follows this text, in either case, up to the end of that line (or of the next with text)."""
    answer_pattern: str | None = None
    """The answer is what the one group of this regular expression matches."""

    @field_validator("after")
    @classmethod
    def _says_something(cls, after: str | None) -> str | None:
        if after is not None and not after.strip():
            raise ValueError('a text such as "Answer:" is needed')
        return after

    @field_validator("answer_pattern")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            groups = compiled(pattern).groups
            if groups != 1:
                raise ValueError(f"it has {groups} groups, one is needed around the answer: (...), others as (?:...)")
        return pattern

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        if self.after is not None and self.answer_pattern is not None:
            raise ValueError("'after' and 'answer_pattern' both say where the answer stands: keep one of them")
        if self.marked and "answer_at" in self.model_fields_set and self.answer_at in ("boxed", "whole"):
            raise ValueError(
                f"answer_at: {self.answer_at} does not go with 'after' or 'answer_pattern': write first or last there"
            )
        return self

    @property
    def marked(self) -> bool:
        """Whether a mark or a pattern of one's own says where the answer stands."""
        return self.after is not None or self.answer_pattern is not None


class Part(NamedTuple):
    """A part of a text: ``text[start:end]`` with marks and braces, and what it holds."""

    start: int
    end: int
    content: str


def marked_part(text: str, options: Placed) -> str | None:
    """What stands at the mark or the pattern that the options name; None where the text does not have it."""
    first = options.answer_at == "first"
    if options.after is not None:
        places = [match.end() for match in re.finditer(re.escape(options.after), text, re.IGNORECASE)]
        return first_line(text[places[0 if first else -1] :]) if places else None
    assert options.answer_pattern is not None
    found = None
    try:
        for match in bounded_finditer(options.answer_pattern, text):
            found = match[1]
            if first:
                break
    except TooSlow as problem:
        told_once("answer_pattern", f"an answer was not judged and scores 0: {problem}")
        return None
    return found


def first_line(text: str) -> str:
    """The first line of a text that has more than white space, without the space around it."""
    return text.strip().partition("\n")[0].strip()


_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_EMPTY = ("", "...", r"\ldots", r"\dots", "answer", "your answer", r"\text{answer}", r"\text{your answer}", "X")
# What stands between the items of a list: no word but these, and no sign that equates or negates.
_BETWEEN = re.compile(r"(?:[\s,;|&$.()\[\]/\\]|\*\*|\band\b|\bor\b)*", re.IGNORECASE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*([^\n]*)$", re.MULTILINE)
# What a model goes on to invent where nothing stops it; a text that begins so is a question of the person.
# The space is taken as a whole (possessive), or a million empty lines would be split in every way.
_NEXT_QUESTION = re.compile(r"(?<=\S)(\s++)(?:Question|Q|Problem|Human|User)[ \t]*:")
_ANSWER_IS = re.compile(r"\banswer\b[^.\n:=]{0,60}?(?:\bis\b|\bare\b|[:=])(?:\*\*)?", re.IGNORECASE)


def boxes(text: str) -> list[Part]:
    r"""Every ``\boxed{...}`` that holds something, the outermost ones. One that is cut off holds ``""``."""
    found: list[Part] = []
    at = 0
    while (opened := _BOX.search(text, at)) is not None:
        depth, at = 1, len(text)
        content = ""
        for brace in _BRACE.finditer(text, opened.end()):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                content, at = text[opened.end() : brace.start()].strip(), brace.end()
                break
        if depth or content not in _EMPTY:
            found.append(Part(opened.start(), at, content))
    return found


def _tagged(text: str) -> list[Part]:
    """Every ``<answer>...</answer>``."""
    found: list[Part] = []
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened = tag
        elif opened is not None:
            found.append(Part(opened.start(), tag.end(), text[opened.end() : tag.start()].strip()))
            opened = None
    return found


def one_of(parts: list[Part], text: str, which: Literal["first", "last"] = "last") -> str | None:
    """The content of the first or last part; None where it is one of a list of different ones ("3 or 5")."""
    if not parts:
        return None
    at = 0 if which == "first" else len(parts) - 1
    for one, next_one in zip(parts[max(at - 1, 0) :], parts[max(at - 1, 0) + 1 : at + 2], strict=False):
        gap = text[one.end : next_one.start]
        listed = len(gap) <= 40 and _BETWEEN.fullmatch(gap) is not None
        if listed and "".join(one.content.split()) != "".join(next_one.content.split()):
            return None
    return parts[at].content


def boxed(text: str) -> str | None:
    r"""What the last ``\boxed{}`` holds; None without one, and where different ones stand in a list."""
    return one_of(boxes(text), text)


def own_words(text: str) -> str:
    """The text before a further question that the model asked itself."""
    starts = (match.start() for match in _NEXT_QUESTION.finditer(text) if "\n" in match[1])
    return text[: next(starts, len(text))]


def usual_part(text: str, holds_answer: re.Pattern[str]) -> tuple[bool, str | None]:
    r"""Whether one of the usual marks of an answer stands in ``text``, and what is marked (None: a list).

    In this order: ``\boxed{}`` (the last), ``<answer>`` (the last), a line ``#### 72`` (the first, GSM8K's mark).
    ``holds_answer`` tells such a line from a heading: it must match what follows the mark.
    """
    if found := boxes(text):
        return True, one_of(found, text)
    if tags := _tagged(text):
        return True, one_of(tags, text)
    lines = [Part(m.start(), m.end(), m[1].strip()) for m in _HASHES.finditer(text) if holds_answer.fullmatch(m[1])]
    if lines:
        return True, one_of(lines, text, "first")
    return False, None


def said_part(text: str) -> str | None:
    """What follows the last "answer is" or "Answer:"; None where the text does not have it."""
    ends = [match.end() for match in _ANSWER_IS.finditer(text)]
    return text[ends[-1] :] if ends else None
