"""Split completions and prompts into parts, and find the parts that a gold answer does not explain."""

from __future__ import annotations

import re

from skillweave.base.thoughts import strip_thoughts

# Line breaks, semicolons between spaces (several answers in a row), and the ends of sentences.
_BREAKS = re.compile(r"\n+|\s;\s|(?<=[.!?])\s+")
_WORDS = re.compile(r"\w+")


def segments(text: str) -> list[str]:
    """Return the parts of a completion: lines, sentences, and answers that are separated by " ; "."""
    return [part.strip() for part in _BREAKS.split(text) if part and part.strip()]


def unexplained_part(completion: str, gold: str | None) -> float:
    """Return the share of a completion's words that stand in segments which the gold answer does not explain. [ours]

    The gold answer explains a segment that holds all its words. A segment without words, such as ``<$>``, counts as
    one word. 0 for an empty completion; NaN without a gold answer.
    """
    if gold is None:
        return float("nan")
    wanted = set(_words(gold))
    total = outside = 0
    for segment in segments(strip_thoughts(completion)):
        words = _words(segment)
        count = max(1, len(words))
        total += count
        explained = wanted <= set(words) if wanted else gold.strip() in segment
        outside += 0 if explained else count
    return outside / total if total else 0.0


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.casefold())
