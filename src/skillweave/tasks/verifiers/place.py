r"""Find the answer in a text: in ``\boxed{}``, after a marker, in the group of a pattern, first or last.

The time is linear in the length of the text, except for ``answer_pattern``, which has a time limit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from skillweave.config import Config
from skillweave.patterns import TooSlow, bounded_finditer, compiled
from skillweave.tasks.verifiers.warn import warn_once

Where = Literal["auto", "last", "first", "boxed", "whole"]


class PlaceOptions(Config):
    """Options for the place of the answer in a text. Each verifier documents what ``auto``, the default, means."""

    answer_at: Where = Field(
        default="auto",
        description="`first`, `last`, `boxed` (the last `\\boxed{}`) or `whole` (the text is only the answer). "
        "With `after` or `answer_pattern` it says which match counts: `first` or `last` (`auto` means "
        "`last`).",
    )
    after: str | None = Field(
        default=None,
        description="the answer follows this text, in upper or lower case, to the end of the line (or of the next "
        "line with text)",
    )
    answer_pattern: str | None = Field(
        default=None, description="The answer is what the only group of this regular expression matches."
    )

    @field_validator("after")
    @classmethod
    def _check_after(cls, after: str | None) -> str | None:
        if after is not None and not after.strip():
            raise ValueError('it is empty: write a text such as "Answer:"')
        return after

    @field_validator("answer_pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            groups = compiled(pattern).groups
            if groups != 1:
                raise ValueError(
                    f"it has {groups} groups, but needs exactly one, around the answer: (...); write others as (?:...)"
                )
        return pattern

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.after is not None and self.answer_pattern is not None:
            raise ValueError("'after' and 'answer_pattern' both say where the answer is: keep one of them")
        if self.marked and "answer_at" in self.model_fields_set and self.answer_at in ("boxed", "whole"):
            raise ValueError(
                f"answer_at: {self.answer_at} does not go with 'after' or 'answer_pattern': write first or last"
            )
        return self

    @property
    def marked(self) -> bool:
        """Whether ``after`` or ``answer_pattern`` says where the answer is."""
        return self.after is not None or self.answer_pattern is not None


class TextSpan(NamedTuple):
    """A part of a text: ``text[start:end]`` includes markers and braces, ``content`` does not."""

    start: int
    end: int
    content: str


def marked_part(text: str, options: PlaceOptions) -> str | None:
    """Return the text at the marker or the pattern of the options; None if the text does not have it."""
    first = options.answer_at == "first"
    if options.after is not None:
        places = [match.end() for match in re.finditer(re.escape(options.after), text, re.IGNORECASE)]
        return _behind_mark(text, places[0 if first else -1]) if places else None
    assert options.answer_pattern is not None
    answer = None
    try:
        for match in bounded_finditer(options.answer_pattern, text):
            answer = match[1]
            if first:
                break
    except TooSlow as problem:
        warn_once("answer_pattern", f"an answer was not judged and scores 0: {problem}")
        return None
    return answer


def _behind_mark(text: str, end: int) -> str:
    """Return the line after a mark that ends at ``end``, without bold type that was opened at the mark or before it."""
    if not _BOLD_IS_OPEN.search(text, max(end - _HEADING, 0), end):
        return first_line(text[end:])
    behind = text[end:]
    if behind.lstrip(" \t").startswith("**"):  # **Answer:** 4
        return first_line(behind.lstrip(" \t").removeprefix("**"))
    return first_line(behind).removesuffix("**").rstrip()  # **Answer: 4**


def first_line(text: str) -> str:
    """Return the first line of a text that is not empty, without the white space around it."""
    return text.strip().partition("\n")[0].strip()


_HEADING = 100
_BOLD_IS_OPEN = re.compile(r"(?<![^\s])\*\*[^\s*][^*\n]*\Z")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_EMPTY = ("", "...", r"\ldots", r"\dots", "answer", "your answer", r"\text{answer}", r"\text{your answer}", "X")
# What is between the items of a list: no other words than these, and no sign that equates or negates.
_BETWEEN = re.compile(
    r"(?:[\s,;|&$.()\[\]/\\]|\*\*|\b(?:and|or|else|maybe|perhaps|possibly|alternatively|vs)\b"
    r"|\n[ \t]*(?:[-*+\N{BULLET}]|[0-9]{1,2}[.)])[ \t])*",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:\b(?<!\bor\s)(?<!\bwhy\s)not|\b(?:never|cannot|neither|nor|except|(?:anything|all|everything)\s+but)|n't"
    r"|\b(?:instead\s+of|(?:rather|other)\s+than)(?![\s*_]+(?:this|that)[\s*_]*:))"
    r"[\s*_}:]*(?:(?:be|this|that|it|is|think|believe|equal\s+to|the\s+(?:answer|value|result))\b[\s*_:]*)*(?:`{1,3}(?:json)?\s*)?$",
    re.IGNORECASE,
)
"""What denies the value behind it. In "valid or not: {...}" and "instead of that: {...}" the value is the answer."""
_ENDS = r"(?=[\s*_]*(?:[.,;!)\n]|$|\b(?:because|since|but|and|so)\b))"
_CALLED_WRONG = re.compile(
    r"[`\s*_]*(?:(?:is|was|would\s+be)\s+(?:clearly\s+|obviously\s+|also\s+|simply\s+|just\s+|definitely\s+)?"
    rf"(?:wrong|incorrect|false|invalid{_ENDS}|not\s+(?:the\s+)?(?:answer|correct|right|valid{_ENDS}))"
    rf"|(?:isn|wasn)['\N{{RIGHT SINGLE QUOTATION MARK}}]t\s+(?:the\s+)?(?:answer|correct|right|valid{_ENDS})"
    r"|\(\s*(?:wrong|incorrect|invalid)\s*\)|\?\s{1,3}(?:no|nope)\s?(?:[.,;!\n]|$))",
    re.IGNORECASE,
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HASHES = re.compile(r"^[ \t]*####[ \t]*([^\n]*)$", re.MULTILINE)
# What a model invents if it does not stop after its answer. A text that starts so is a question of the user.
# The white space is matched possessively; otherwise a million empty lines would be split in every possible way.
_NEXT_QUESTION = re.compile(r"(?<=\S)(\s++)(?:Question|Q|Problem|Human|User)[ \t]*:")
_STOP = r"(?=\s{0,3}(?:[,.:;!\N{EM DASH}-]|\Z))"
_IS = r"(?:['\N{RIGHT SINGLE QUOTATION MARK}]s|\s(?:is|was|should\sbe|must\sbe))"
_ONE_NUMBER = (
    r"(?:\*\*|\$|\\boxed\{)?[-\N{MINUS SIGN}]?[$€£]?[0-9]{1,40}(?:[.,][0-9]{1,40}){0,9}(?:/[0-9]{1,40})?\s?%?[$}]?"
    r"(?:\s[A-Za-z]{1,20})?[*_)]{0,3}"
    r"(?:[ \t]{0,3}(?:\n|\Z)|[.!?;:](?:\s|\Z)|,\s(?!\s?[0-9])|\s?\N{EM DASH}|\s(?:because|since|not|instead)\b|\s\()"
)
_CORRECTION = re.compile(
    # A correction begins a sentence, or follows a comma or a dash.
    r"(?:\A|[!;.\n(}\N{EM DASH}]|(?P<asked>\?)|,(?=\s)|\s[-\N{EN DASH}](?=\s))[\s*_]{0,3}"
    r"(?:(?:oh|ah|um|uh|but|sorry),?\s)?(?:"
    r"(?:(?:wait|hold\son)[\s,.:!\N{EM DASH}-]{1,5}|(?(asked)(?!)|(?:hmm|oops|actually)[\s,.:!\N{EM DASH}-]{1,5}))"
    rf"(?:wait[\s,.!]{{1,3}})?(?:no\b|(?:that|this|it){_IS}\s(?:wrong|incorrect|not\s(?:right|correct))\b){_STOP}"
    rf"|no[,\s]{{1,3}}wait{_STOP}|(?:scratch|strike)\sthat\b{_STOP}"
    # These count only if one number follows, and nothing else.
    r"|(?:(?:wait|actually|sorry|oops|my\smistake|my\sbad|on\ssecond\sthought|correction|my\sapologies"
    r"|i\sapologi[sz]e(?:\sfor\s(?:the|my|that)\s(?:mistake|error|confusion))?"
    r"|let\sme\s(?:re-?check|re-?calculate|correct)(?:\s(?:that|this|it|myself))?)\s?[,:.!\N{EM DASH}]\s{0,3}"
    r"|(?(asked)(?!)|no\s?[,:\N{EM DASH}]\s{0,3}(?=it|that|the))|(?=i\smeant\s))"
    rf"(?=(?:(?:it|that|this|the\s(?:correct\s|right\s|final\s|actual\s)?answer){_IS}\s|i\smeant\s(?:to\ssay\s)?)?"
    rf"{_ONE_NUMBER}))",
    re.IGNORECASE,
)
"""The words with which a model takes back what it said before, or corrects it with a number."""
_ANSWER_IS = re.compile(r"\banswer\b[^.\n:=]{0,60}?(?:\bis\b|\bare\b|[:=])(?:\*\*)?", re.IGNORECASE)


def boxes(text: str) -> list[TextSpan]:
    r"""Return every outermost ``\boxed{...}`` that is not empty. The content of one that is cut off is ``""``."""
    found: list[TextSpan] = []
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
            found.append(TextSpan(opened.start(), at, content))
    return found


def tagged_answers(text: str) -> list[TextSpan]:
    """Return every ``<answer>...</answer>``."""
    found: list[TextSpan] = []
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened = tag
        elif opened is not None:
            found.append(TextSpan(opened.start(), tag.end(), text[opened.end() : tag.start()].strip()))
            opened = None
    return found


def one_of(parts: list[TextSpan], text: str, which: Literal["first", "last"] = "last") -> str | None:
    """Return the content of the first or last part; None if it is in a list of different ones ("3 or 5")."""
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
    r"""Return the content of the last ``\boxed{}``; None without one, and if it is in a list of different ones."""
    return one_of(boxes(text), text)


def has_denial(text: str, start: int, end: int) -> bool:
    """Whether what is around a value denies it: ``not {"a": 1}``, ``{"a": 1} is wrong``, ``~~{"a": 1}~~``."""
    if text.startswith("~~", max(start - 2, 0)) and text.startswith("~~", end):
        return True
    return bool(_DENIED.search(text, max(start - 40, 0), start) or _CALLED_WRONG.match(text, end, end + 60))


def own_words(text: str) -> str:
    """Return the text before a further question that the model asked itself, and after its last correction.

    "The answer is 40. Wait, no: 41" is read from the 41 on. Nothing is left of "The answer is 40. Wait, that is wrong."
    """
    starts = (match.start() for match in _NEXT_QUESTION.finditer(text) if "\n" in match[1])
    text = text[: next(starts, len(text))]
    corrected = [match.end() for match in _CORRECTION.finditer(text)]
    return text[corrected[-1] :] if corrected else text


def usual_part(text: str, holds_answer: Callable[[str, bool], object]) -> tuple[bool, str | None]:
    r"""Return whether ``text`` has one of the usual markers of an answer, and what is marked (None: a list).

    The markers are tried in this order: the last ``\boxed{}``, the last ``<answer>``, the first line ``#### 72``
    (GSM8K's marker). ``holds_answer`` distinguishes such a line from a heading: it gets what follows the marker, and
    whether it is the last line of the text.
    """
    if found := boxes(text):
        return True, one_of(found, text)
    if tags := tagged_answers(text):
        return True, one_of(tags, text)
    end = len(text.rstrip())
    lines = [
        TextSpan(m.start(), m.end(), m[1].strip()) for m in _HASHES.finditer(text) if holds_answer(m[1], m.end() >= end)
    ]
    if lines:
        return True, one_of(lines, text, "first")
    return False, None


def said_part(text: str) -> str | None:
    """Return what follows the last "answer is" or "Answer:"; None if the text does not have it."""
    ends = [match.end() for match in _ANSWER_IS.finditer(text)]
    return text[ends[-1] :] if ends else None
