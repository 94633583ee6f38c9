"""What the words around a number say of it: that it is not the answer, the day of a date, or how sure the model is."""

from __future__ import annotations

import re
from itertools import pairwise

from skillweave.tasks.verifiers.reading import Item, Reader

_DENIALS = frozenset({"not", "never", "cannot", "no", "nor", "neither", "except", "nicht", "kein", "pas", "не"})
_DENY_GLUED = ("不是", "并非", "並非")  # Chinese, right before the number
_DENY_BEHIND = ("ではない", "ではありません", "じゃない", "가 아니", "이 아니", "가 아닙", "이 아닙")
_FILLERS = frozenset(
    [
        *("be", "equal", "to", "the", "a", "number", "value", "exactly", "simply", "just", "only", "is", "are", "it"),
        *("that", "think", "believe", "answer", "result", "actually", "es", "son", "est", "ist"),
        *("it's", "that's", "would", "will", "could", "necessarily"),
    ]
)
_OTHER_THAN = (("of", "instead"), ("than", "rather"), ("than", "other"))
_ALL_BUT = frozenset({"anything", "all", "everything"})
MORE = frozenset({"more", "less", "fewer", "greater", "larger", "smaller"})
_WITHOUT = frozenset({"no", "without", "beyond", "not", "any", "never", "little", "don't"})
_BEFORE_DOUBT = frozenset({"a", "the", "of", "shadow", "reasonable"})
_MARKUP = frozenset(["**", *"_*\"'`"])
_WORDS_BEFORE, _WORDS_BEHIND = 9, 6

_WRONG = re.compile(
    r"(?:is|was|isn't|wasn't|would be|must be|seems|looks|cannot be|can't be|can not be|could not be|couldn't be)"
    r"(?: (?:clearly|obviously|simply|definitely|also|just|a|an|the))*"
    r" (?:wrong|incorrect|false|impossible)\b"
    r"|(?:(?:is|was|would|can|could) not(?: be)?|(?:isn't|wasn't|cannot be|can't be|couldn't be|wouldn't be))"
    r"(?: the)? (?:answer|correct|right)\b"
)
_MONTHS = frozenset(
    [
        *("january", "february", "march", "april", "may", "june", "july", "august", "september", "october"),
        *("november", "december", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec"),
    ]
)
_BEFORE_DAY = frozenset({"on", "by", "until", "till", "since", "before", "after", "dated"})
_NO_NOUN = frozenset(
    [
        *("and", "or", "but", "is", "was", "are", "were", "has", "had", "the", "a", "an", "in", "at", "on", "by", "to"),
        *("for", "from", "of", "with", "when", "while", "until", "before", "after", "because", "since", "so", "as"),
        *("there", "he", "she", "it", "they", "we", "i", "you", "which", "who", "where"),
    ]
)
"""Words that may follow a year: others are what a number counts."""
_SURE = frozenset({"confident", "sure", "certain", "confidence"})


def is_denied(reader: Reader, item: Item) -> bool:
    """Return whether the text says that an item is not the answer: "not 3", "neither 3 nor 4", "3 is wrong"."""
    return _denied_before(reader, item.first) or _denied_behind(reader, item)


def _denied_before(reader: Reader, first: int) -> bool:
    at = first - 1
    words: list[str] = []
    while len(words) < _WORDS_BEFORE and (reader.kind(at) in ("space", "word") or reader.text(at) in _MARKUP):
        if reader.kind(at) == "word":
            words.append(reader.text(at).lower())
        at -= 1
    if tuple(words[:2]) in _OTHER_THAN or (words[:1] == ["but"] and words[1:2] and words[1] in _ALL_BUT):
        return True
    if words and first and reader.kind(first - 1) == "word" and words[0].endswith(_DENY_GLUED):
        return True
    for at, word in enumerate(words):
        if word == "no" and at == 0 and words[1:] and words[1] not in _FILLERS:
            return False  # bus no 42
        if word in _DENIALS or word.endswith("n't"):
            return not (word in ("can't", "cannot", "couldn't") and words[at - 1 : at] == ["believe"])
        if word == "doubt":
            return not _WITHOUT & set([one for one in words[at + 1 :] if one not in _BEFORE_DOUBT][:1])
        if word not in _FILLERS:
            return False
    return False


def _is_asked(reader: Reader, first: int) -> bool:
    """Whether a question is whether an item is the answer: ``42?``, ``Is it 42?``, not ``Can 5 divide 42?``."""
    before = [
        at for at in range(max(first - 6, 0), first) if reader.kind(at) != "space" and reader.text(at) not in _MARKUP
    ]
    if not before or reader.kind(before[-1]) in ("newline", "end"):
        return True
    return [reader.text(at).lower() for at in before[-2:]] in (
        ["is", "it"],
        ["it", "be"],
        ["the", "answer"],
        ["answer", "be"],
    )


def _denied_behind(reader: Reader, item: Item) -> bool:
    at = item.last + 1
    if reader.kind(at) == "word" and reader.text(at).startswith(_DENY_BEHIND):
        return True
    if reader.text(at) == "?" and _is_asked(reader, item.first):  # 3? No.
        no = reader.skip(at + 1)
        return reader.text(no).lower() in ("no", "nope") and reader.kind(no + 1) in ("", "end", "between", "newline")
    words: list[str] = []
    while len(words) < _WORDS_BEHIND and (reader.kind(at) in ("space", "word") or reader.text(at) in _MARKUP):
        if reader.kind(at) == "word":
            words.append(reader.text(at).lower())
        at += 1
    return _WRONG.match(" ".join(words)) is not None


def is_sureness(reader: Reader, item: Item) -> bool:
    """Return whether an item says how sure the model is: "confidence: 95%", "95% sure"."""
    behind = reader.text(reader.skip(item.last + 1)).lower()
    if item.number is not None and item.number.percent and behind in _SURE:
        return True
    near = [at for at in range(max(item.first - 6, 0), item.first) if reader.kind(at) != "space"]
    before = [reader.text(at).lower() for at in near if reader.text(at) not in _MARKUP]
    percent = item.number is not None and item.number.percent and "confidence" in before[-3:]
    return percent or (before[-2:-1] == ["confidence"] and before[-1] in (":", "is", "of"))


def is_bound(reader: Reader, first: int) -> bool:
    """Return whether an item is only what the answer differs from: ``more than 42``. ``No more than 42`` may be 42."""
    words: list[str] = []
    at = first
    while len(words) < 7 and reader.kind(at - 1) in ("space", "word"):
        at -= 1
        if reader.kind(at) == "word":
            words.append(reader.text(at).lower())
    denied = any(word in ("no", "not", "never", "cannot") or word.endswith("n't") for word in words[2:])
    return words[:1] == ["than"] and words[1:2] != [] and words[1] in MORE and not denied


def dates(reader: Reader, items: list[Item]) -> tuple[set[int], set[int]]:
    """Return the items that are part of a date with the name of its month, and those that are part of a whole date.

    A whole date ("May 5, 2024", "5th of May 2024") is not one number; of "May 2024" and "on May 5" the number may be
    the answer to a question for the year or the day, if the text has no other.
    """
    parts: set[int] = set()
    whole: set[int] = set()
    for at, item in enumerate(items):
        before = _word_before(reader, item.first)
        months = _is_month(reader, before)
        behind = items[at + 1] if at + 1 < len(items) else None
        if _is_day(reader, item):
            if behind is not None and _is_year(reader, behind):
                between = reader.tokens[item.last + 1 : behind.first]
                names = [token.text for token in between if token.kind == "word" and token.text.lower() != "of"]
                stops = [one.kind == "end" and other.text.lower() not in _MONTHS for other, one in pairwise(between)]
                kinds = {token.kind for token in between} - {"space", "between", "end"}
                if between[0].kind == "end" or any(stops):
                    kinds.add("end")
                named = len(names) == 1 and names[0].lower() in _MONTHS and names[0][0].isupper()
                if len(between) <= 8 and ((months and not kinds) or (named and kinds == {"word"})):
                    whole |= {at, at + 1}
            led = before if not months else _word_before(reader, before)
            day_of = months or _is_month(reader, reader.skip(item.last + 1))
            if day_of and reader.text(led).lower() in _BEFORE_DAY:  # on May 5, on 5 May
                parts.add(at)
        elif months and _is_year(reader, item):
            parts.add(at)
    return parts | whole, whole


def _word_before(reader: Reader, first: int) -> int:
    """Return the token before ``first``, without spaces and the full stop of an abbreviation; -1 if it is no word."""
    at = reader.skip(first - 1, -1)
    if reader.text(at) == ".":
        at -= 1
        if len(reader.text(at)) > 4 or reader.text(at).lower() in ("may", "june", "july"):
            return -1
    return at if reader.kind(at) == "word" else -1


def _is_month(reader: Reader, at: int) -> bool:
    return reader.text(at).lower() in _MONTHS and reader.text(at)[0].isupper()


def _is_day(reader: Reader, item: Item) -> bool:
    return reader.text(item.first).isdigit() and int(reader.text(item.first)[:4]) in range(1, 32)


def _is_year(reader: Reader, item: Item) -> bool:
    text = reader.text(item.first)
    if item.first != item.last or not text.isdigit() or not 1500 <= int(text[:5]) < 2100:
        return False
    behind = reader.text(item.first + 2) if reader.kind(item.first + 1) == "space" else ""
    return not (behind[:1].islower() and behind not in _NO_NOUN)
