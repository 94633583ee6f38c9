"""Take a prompt apart: words with their places, clauses, demonstrations, and the clauses that ask for something."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from skillweave.audit.data.lexicon import ANSWER_LABELS, CONDITIONS, QUESTION_LABELS, REQUESTS

Span = tuple[int, int]

_EACH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"  # scripts without spaces: each character is a word
_TOKEN = re.compile(rf"[{_EACH}]|[^\W{_EACH}]+|[^\w\s]")
# A stranger writes the text, so no pattern may take time that grows with its square: runs of spaces and signs are taken
# whole and once, and the space before an arrow has a limit.
_STOP = r"(?:;(?=\s)|[；。！？]|(?<![.!?…])[.!?…]++(?=[\s\"')\]]|$))"
_BREAK = re.compile(rf"(?:(?:(?<!\s)\s++|(?!\s)){_STOP}|(?<!\s)\s*\n)\s*")
_LABEL = re.compile(r"\s*[\w# ]{1,24}?\s?[:：]\s*")
_ARROW = re.compile(r"^([^\n]+?)\s{0,200}+(?:->|=>|→|⇒|➜|⟶)[ \t]*([^\n]+)$", re.MULTILINE)
_ANSWERED = re.compile(
    rf"(?:^|(?<=[\s,;|]))(?:{ANSWER_LABELS})\s?\d*\s?[:：][ \t]*([^\n]*)", re.IGNORECASE | re.MULTILINE
)
_ASKED = re.compile(rf"(?:^|(?<=[\s,;|]))(?:{QUESTION_LABELS})\s?\d*\s?[:：][ \t]*", re.IGNORECASE | re.MULTILINE)
_LINE_LABEL = re.compile(r"^([^\W\d_][\w ]{0,20}?)\s?\d*\s?[:：][ \t]*([^\n]*)$", re.MULTILINE)
_MOST_SHOTS = 64


@dataclass(frozen=True)
class Clause:
    """A sentence, a line, or what stands between semicolons. ``first`` and ``last`` are indices of its tokens."""

    start: int
    end: int
    first: int
    last: int
    question: bool


@dataclass(frozen=True)
class Shot:
    """A demonstration: what is asked in it and what is answered, as spans."""

    asked: Span
    answered: Span


@dataclass(frozen=True)
class Prompt:
    """A prompt that was taken apart.

    - ``tokens``: words and signs in lower case; a word of digits is ``0``, so that templates are alike
    - ``starts``, ``ends``: the place of each token
    - ``requests``: the clauses that ask for something, without conditions and demonstrations; there is at least one
      if the prompt has a clause
    """

    text: str
    tokens: list[str]
    starts: list[int]
    ends: list[int]
    clauses: list[Clause]
    shots: list[Shot]
    requests: list[Clause]

    def words(self, span: Span) -> list[str]:
        """Return the words in a span, without signs. Digits are as they stand in the text."""
        first, last = bisect_left(self.starts, span[0]), bisect_left(self.starts, span[1])
        return [
            self.text[self.starts[at] : self.ends[at]].lower() if self.tokens[at] == "0" else self.tokens[at]
            for at in range(first, last)
            if is_word(self.tokens[at])
        ]


def is_word(token: str) -> bool:
    """Return whether a token is a word or a number, not a sign."""
    return token[0].isalnum() or token[0] == "_"


def take_apart(text: str, turns: Sequence[tuple[int, int, bool]] = (), asked_from: int = 0) -> Prompt:
    """Return the parts of a prompt. A pair of ``turns`` (the messages, as in ``AuditRow``) is a demonstration.

    Before ``asked_from`` tools are described, in clauses such as "Find a flight", which ask for nothing.
    """
    found = [(match.start(), match.end(), match.group().lower()) for match in _TOKEN.finditer(text)]
    starts, ends = [start for start, _, _ in found], [end for _, end, _ in found]
    tokens = ["0" if token[0].isdigit() else token for _, _, token in found]
    clauses = _clauses(text, starts)
    shots = demonstrations(text, turns)
    asking = [clause for clause in clauses if clause.start >= asked_from] or clauses
    return Prompt(text, tokens, starts, ends, clauses, shots, _requests(text, tokens, asking, shots))


def demonstrations(text: str, turns: Sequence[tuple[int, int, bool]] = ()) -> list[Shot]:
    """Return the demonstrations in a prompt, in the order of the text.

    They are earlier turns, lines with an arrow, a labelled answer after a question, or, whatever the language, two
    labels that alternate at the beginnings of lines.
    """
    shots = [Shot(before[:2], after[:2]) for before, after in itertools.pairwise(turns) if after[2] and not before[2]]
    shots += [Shot(match.span(1), match.span(2)) for match in _ARROW.finditer(text)]
    shots += _labelled(text)
    if not shots:
        shots = _alternating(text)
    return sorted(shots, key=lambda shot: shot.asked)[:_MOST_SHOTS]


def _labelled(text: str) -> list[Shot]:
    """Questions with a labelled answer. An answer without a text is the one that the policy is to give."""
    shots, end, read, label = [], 0, 0, 0
    for match in _ANSWERED.finditer(text):
        if not match[1].strip():
            continue
        begin = text.rfind("\n", 0, max(match.start() - 1, 0)) + 1
        for asks in _ASKED.finditer(text, read, match.start()):
            label = asks.end()
        read = match.start()
        begin = max(label if label > end else begin, end)
        asked = (begin, begin + len(text[begin : match.start()].rstrip(" \n,;|")))
        if asked[1] > asked[0]:
            shots.append(Shot(asked, match.span(1)))
            end = read = match.end()
    return shots


def _alternating(text: str) -> list[Shot]:
    lines = [(match[1].lower().strip(), match.span(2)) for match in _LINE_LABEL.finditer(text)]
    pairs = [(one, other) for one, other in itertools.pairwise(lines) if one[0] != other[0]]
    kinds: dict[tuple[str, str], list[Shot]] = {}
    for one, other in pairs:
        if one[1][1] > one[1][0] and other[1][1] > other[1][0]:
            kinds.setdefault((one[0], other[0]), []).append(Shot(one[1], other[1]))
    most = max(kinds.values(), key=len, default=[])
    return most if len(most) >= 2 else []


def _clauses(text: str, starts: list[int]) -> list[Clause]:
    clauses, at = [], 0
    for match in _BREAK.finditer(text):
        clauses.append((at, match.start(), "?" in match[0] or "？" in match[0]))
        at = match.end()
    clauses.append((at, len(text), False))
    return [
        Clause(start, end, first, last, question)
        for start, end, question in clauses
        if (first := bisect_left(starts, start)) < (last := bisect_left(starts, end))
    ]


def _requests(text: str, tokens: list[str], clauses: list[Clause], shots: list[Shot]) -> list[Clause]:
    """The clauses that ask: a question, a clause that begins as requests do, or one of a list with semicolons."""
    inside = sorted((shot.asked[0], shot.answered[1]) for shot in shots)
    free = [c for c in clauses if not any(start <= c.start < end or c.start < start < c.end for start, end in inside)]
    last_line = text.rfind("\n", 0, len(text.rstrip())) + 1
    listed = ";" in text[last_line:] or "；" in text[last_line:]
    found = []
    for clause in free:
        label = _LABEL.match(text, clause.start, clause.end)
        begin = clause.first
        if label is not None:
            while begin < clause.last - 1 and tokens[begin] not in (":", "："):
                begin += 1
            begin = min(begin + 1, clause.last - 1)
        head = [token for token in tokens[begin : begin + 3] if is_word(token)]
        if any(token in CONDITIONS for token in head[:2]) and not clause.question:
            continue
        if clause.question or (listed and clause.start >= last_line) or any(token in REQUESTS for token in head[:1]):
            found.append(clause)
    return found or free[-1:] or clauses[-1:]
