"""Remove the thoughts of a reasoning model from its answers.

A thought is enclosed by two markers. Some models' markers are special tokens. Decoding without special tokens removes
them, and then the thought cannot be told from the answer. So decode with special tokens for such models
(:func:`template_thought_markers` returns the markers that a model's template knows).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MARK_TOKENS = 32
"""If a prompt opens a thought, the opening marker is within this many tokens of its end."""

Markers = Sequence[tuple[str, str]]
"""Pairs of an opening and a closing marker."""

KNOWN: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"),  # DeepSeek-R1, QwQ, Qwen3, Phi-4-reasoning, SmolLM3, Kimi K2, MiniMax, GLM
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    ("◁think▷", "◁/think▷"),  # Kimi-VL
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss (harmony)
)

_TURN_ENDS = ("<|end|>",)  # closing markers that also end turns: without an opening marker they close no thought

# gpt-oss also names the channel of the answer. Without special tokens, only the names of the channels are left.
_HARMONY_HEAD = re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>")
_HARMONY_TAIL = re.compile(r"<\|(?:return|end)\|>\s*\Z")
_HARMONY_WORDS = re.compile(r"\Aanalysis.*assistantfinal", re.DOTALL)


def strip_thoughts(text: str, markers: Markers = KNOWN) -> str:
    """Return the text without its thoughts, stripped of white space; a text without thoughts is returned unchanged.

    * A thought extends from an opening marker to its closing marker.
    * A closing marker without an opening one ends a thought that the prompt opened: everything before it is removed.
    * An opening marker at the start of a line (or of the text) without a closing one begins a thought that was cut off:
      everything after it is removed. An answer that is only such a thought becomes ``""``.
    * A marker counts as ordinary text inside a fenced block of the answer, and between double quotes or backticks on
      one line (a JSON string, inline code).

    The time is linear in the length of the text. The function never raises.
    """
    answer = _outside_thoughts(text, markers)
    if words := _HARMONY_WORDS.match(answer):
        answer = answer[words.end() :]
    if _HARMONY_HEAD.search(answer):
        answer = _HARMONY_TAIL.sub("", _HARMONY_HEAD.sub("", answer))
    return text if answer == text else answer.strip()


def template_thought_markers(tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """Return those of :data:`KNOWN` that occur in the tokenizer's chat template; ``()`` without a template."""
    templates = getattr(tokenizer, "chat_template", None)
    text = "\n".join(map(str, templates.values())) if isinstance(templates, dict) else str(templates or "")
    return tuple(
        (opening, closing)
        for opening, closing in KNOWN
        if opening in text or (closing in text and closing not in _TURN_ENDS)
    )


def opened_thought(prompt: str, markers: Markers = KNOWN) -> str:
    """Return the opening marker that a rendered prompt ends with, or ``""``.

    Templates such as DeepSeek-R1's open the thought themselves. If the answer to such a prompt is cut off inside the
    thought, it contains no marker: put this one before the answer, then call :func:`strip_thoughts`.
    """
    end = prompt.rstrip()
    return next((opening for opening, _ in markers if end.endswith(opening)), "")


def _outside_thoughts(text: str, markers: Markers) -> str:
    """Return the parts of ``text`` outside all thoughts, joined."""
    if not any(marker in text for pair in markers for marker in pair):
        return text
    closing_of = dict(markers)
    parts: list[str] = []  # the answer so far
    at = 0  # the text before this position is already in parts, or removed
    closing = ""  # the closing marker of the current thought; "" outside of thoughts
    line = 0  # where the line begins, or the rest of it after a marker
    quotes: set[str] = set()  # the quotes that are open on this line
    fence_end = 0  # tokens before this position are inside a fenced block; -1: no later fence is closed
    for match in _tokens(tuple(markers)).finditer(text):
        token, start, end = match[0], match.start(), match.end()
        if start < fence_end:
            continue
        if token == "\n":
            line = end
            quotes.clear()
        elif match.lastgroup == "quote":
            quotes ^= {token[0]}
        elif match.lastgroup == "fence":
            if not closing and fence_end >= 0:
                close = text.find("\n```", end)
                fence_end = close + 4 if close >= 0 else -1
        elif not _enclosed(text, end, quotes):
            if closing:
                if token != closing:
                    continue
                closing = ""
            elif token in closing_of:
                at_line_start = start - line < 200 and not text[line:start].strip()
                if not at_line_start and text.rfind(closing_of[token], end) < 0:
                    continue
                parts.append(text[at:start])
                closing = closing_of[token]
            elif token in _TURN_ENDS:
                continue
            else:  # it closes a thought that the prompt opened
                parts.clear()
            at = line = end
            quotes.clear()
    if not closing:
        parts.append(text[at:])
    return "".join(parts)


@lru_cache(maxsize=32)
def _tokens(markers: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """Return a pattern for all that :func:`strip_thoughts` reacts to: fences, line ends, quotes, and markers.

    Longer markers come first.
    """
    longest_first = sorted({marker for pair in markers for marker in pair}, key=len, reverse=True)
    alternatives = "|".join(re.escape(marker) for marker in longest_first)
    return re.compile(rf"(?m)(?P<fence>^[ \t]*```)|\n|(?P<quote>(?<!\\)\"|`+)|(?P<marker>{alternatives})")


def _enclosed(text: str, end: int, quotes: set[str]) -> bool:
    """Return whether one of the open ``quotes`` is closed after ``end`` on the same line."""
    if not quotes:
        return False
    line_end = text.find("\n", end)
    return any(text.find(quote, end, line_end if line_end >= 0 else len(text)) >= 0 for quote in quotes)
