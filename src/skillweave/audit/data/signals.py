"""The signals that need only the record itself: pure functions of a prompt and a gold answer. [ours]

Each returns a value (higher is more suspicious, NaN if it says nothing about this record) and the spans in the prompt
that it comes from. What each of them is worth is measured by ``benchmarks/audit/data.py``.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from skillweave.audit.data.lexicon import ACCEPTING, CONDITIONS, LONGEST_REFUSAL, QUANTITIES, REFUSAL, REFUSING
from skillweave.audit.data.parts import Clause, Prompt, Span, is_word

_NUMBER = re.compile(r"[-+$€£]?\s*\d[\d,.\s/%]*")
_MOST_COMPARED = 12
"""Demonstrations that are compared with each other."""
_CHOICES = frozenset(["yes", "no", "true", "false", "a", "b", "c", "d", "e"])


class Signal(NamedTuple):
    """The value of a signal, and the spans in the prompt that it comes from."""

    value: float
    spans: list[Span]


def requests(prompt: Prompt) -> Signal:
    """Return how many things the prompt asks for, beside its demonstrations and conditions."""
    found = prompt.requests
    return Signal(float(len(found)), [(c.start, c.end) for c in found] if len(found) > 1 else [])


def uncovered(prompt: Prompt, answer: str) -> Signal:
    """Return the share of the asked words that stand in requests which the gold answer does not fit.

    A gold number fits a request with a number or a word of quantity; other gold answers fit a request that holds one of
    their words; a yes, a no or a letter fits every question. If the answer fits no request, it is taken for the answer
    to the last one, which a final-answer verifier compares. NaN without a gold answer.
    """
    if not answer.strip():
        return Signal(math.nan, [])
    found = prompt.requests
    if len(found) < 2:
        return Signal(0.0, [])
    fits = _fits(prompt, found, answer)
    if not any(fits):
        fits[-1] = True
    sizes = [clause.last - clause.first for clause in found]
    rest = [clause for clause, fit in zip(found, fits, strict=True) if not fit]
    share = sum(clause.last - clause.first for clause in rest) / sum(sizes)
    return Signal(share, [(clause.start, clause.end) for clause in rest])


def conditions(prompt: Prompt) -> Signal:
    """Return how many conditions the prompt states (``if ...``, ``otherwise ...``) in its clauses."""
    count, spans = 0, []
    for clause in prompt.clauses:
        found = sum(token in CONDITIONS for token in prompt.tokens[clause.first : clause.last])
        if found:
            count += found
            spans.append((clause.start, clause.end))
    return Signal(float(count), spans)


def shots(prompt: Prompt) -> Signal:
    """Return how many demonstrations the prompt has."""
    return Signal(float(len(prompt.shots)), [(shot.asked[0], shot.answered[1]) for shot in prompt.shots])


def contrast(prompt: Prompt) -> Signal:
    """Return how nearly one demonstration's question is contained in another's that is answered differently; 0 to 1.

    A demonstration that shows when to refuse gives one request twice: alone, and with something beside it.
    """
    compared = prompt.shots[:_MOST_COMPARED]
    bags = [Counter(prompt.words(shot.asked)) for shot in compared]
    answers = [prompt.words(shot.answered) for shot in compared]
    best, spans = 0.0, []
    for at, one in enumerate(bags):
        for other in range(at):
            small = min(one.total(), bags[other].total())
            if small < 2 or answers[at] == answers[other]:
                continue
            share = (one & bags[other]).total() / small
            # Demonstrations of equal questions are alike because they ask the same; contained ones differ in length.
            longer = abs(one.total() - bags[other].total()) / max(one.total(), bags[other].total())
            if share * (0.5 + 0.5 * longer) > best:
                best = share * (0.5 + 0.5 * longer)
                spans = [(compared[i].asked[0], compared[i].answered[1]) for i in (other, at)]
    return Signal(best, spans)


def stances(prompt: Prompt, answer: str) -> Signal:
    """Return how many words of refusing and of accepting the prompt has, although its gold answer is no refusal.

    Both kinds together count more than many of one. NaN if the gold answer is a refusal.
    """
    if is_refusal(answer):
        return Signal(math.nan, [])
    spans: list[Span] = []
    counts = [0, 0]
    for at, token in enumerate(prompt.tokens):
        if token in REFUSING or token in ACCEPTING:
            counts[token in ACCEPTING] += 1
            spans.append((prompt.starts[at], prompt.ends[at]))
    return Signal(float(sum(counts) + 3 * min(counts)), spans)


def echoes(prompt: Prompt) -> Signal:
    """Return the share of word pairs that occurred in the prompt before, as they do in demonstrations."""
    seen: set[tuple[str, str]] = set()
    words = [token for token in prompt.tokens if is_word(token)]
    repeated = 0
    for pair in itertools.pairwise(words):
        repeated += pair in seen
        seen.add(pair)
    return Signal(repeated / max(1, len(words) - 1) if len(words) > 1 else 0.0, [])


def is_refusal(answer: str) -> bool:
    """Return whether a gold answer refuses: it is short and says so."""
    return len(answer) <= LONGEST_REFUSAL and REFUSAL.search(answer) is not None


def _fits(prompt: Prompt, clauses: Sequence[Clause], answer: str) -> list[bool]:
    """Whether the gold answer fits each of the clauses."""
    words = re.findall(r"\w+", answer.lower())
    asked = [prompt.words((clause.start, clause.end)) for clause in clauses]
    if _NUMBER.fullmatch(answer.strip()):
        return [any(word[0].isdigit() or word in QUANTITIES for word in found) for found in asked]
    if len(words) == 1 and words[0] in _CHOICES:
        return [clause.question or words[0] in found for clause, found in zip(clauses, asked, strict=True)]
    rare = {word for word in words if len(word) > 3} or set(words)
    return [not rare.isdisjoint(found) for found in asked]
