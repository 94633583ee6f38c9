"""What a reasoning model thinks before it answers, and how it is taken out of a text.

A thought stands between two marks. Decoding without special tokens removes the marks that are special tokens of the
tokenizer; such a thought can no longer be told from the answer, so decode with them where a model has such marks
(:func:`template_thought_markers` says which the model's template knows).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

MARK_TOKENS = 32
"""The last tokens of a prompt in which the mark of a thought that it opens stands."""

Markers = Sequence[tuple[str, str]]

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

_TURN_ENDS = ("<|end|>",)  # closing marks that end a turn too: without an opening mark they close no thought

# gpt-oss names the channel of the answer too. Without its special tokens only the words of the channels are left.
_HARMONY_HEAD = re.compile(r"(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>")
_HARMONY_TAIL = re.compile(r"<\|(?:return|end)\|>\s*\Z")
_HARMONY_WORDS = re.compile(r"\Aanalysis.*assistantfinal", re.DOTALL)


def strip_thoughts(text: str, markers: Markers = KNOWN) -> str:
    """The text without its thoughts; a text without any is returned as it is, else white space around is removed.

    * A thought runs from an opening mark to its closing mark.
    * A closing mark without an opening one ends a thought that the prompt had opened: all before it is removed.
    * An opening mark at the start of a line (or of the text) without a closing one is a thought that was cut off: all
      after it is removed. An answer that is nothing but such a thought is ``""``.
    * A mark is text, not a mark, inside a fenced block of the answer, and where double quotes or backticks of the same
      line enclose it (a JSON string, inline code).

    The time is linear in the length of the text. Never raises.
    """
    answer = _outside(text, markers)
    if words := _HARMONY_WORDS.match(answer):
        answer = answer[words.end() :]
    if _HARMONY_HEAD.search(answer):
        answer = _HARMONY_TAIL.sub("", _HARMONY_HEAD.sub("", answer))
    return text if answer == text else answer.strip()


def template_thought_markers(tokenizer: Any, markers: Markers = KNOWN) -> tuple[tuple[str, str], ...]:
    """Those of ``markers`` that the tokenizer's chat template writes or looks for; () without a template."""
    templates = getattr(tokenizer, "chat_template", None)
    text = "\n".join(map(str, templates.values())) if isinstance(templates, dict) else str(templates or "")
    return tuple(
        (opening, closing) for opening, closing in markers
        if opening in text or (closing in text and closing not in _TURN_ENDS)
    )  # fmt: skip


def opened_thought(prompt: str, markers: Markers = KNOWN) -> str:
    """The opening mark that a rendered prompt ends with, or ``""``.

    Templates such as DeepSeek-R1's open the thought themselves. An answer to such a prompt that is cut off within its
    thought holds no mark at all: put this in front of the answer before :func:`strip_thoughts`.
    """
    end = prompt.rstrip()
    return next((opening for opening, _ in markers if end.endswith(opening)), "")


def _outside(text: str, markers: Markers) -> str:
    """What stands in ``text`` outside of all thoughts."""
    if not any(mark in text for pair in markers for mark in pair):
        return text
    closing = dict(markers)
    kept: list[str] = []
    at = 0  # what stands before it is kept or removed already
    wanted = ""  # the closing mark of the thought we are in
    line = 0  # where the line begins, or what is left of it
    quotes: set[str] = set()  # the quotes that are open on this line
    behind_fence = 0
    for token in _tokens(tuple(markers)).finditer(text):
        found, start, end = token[0], token.start(), token.end()
        if start < behind_fence:
            continue
        if found == "\n":
            line = end
            quotes.clear()
        elif token.lastgroup == "quote":
            quotes ^= {found[0]}
        elif token.lastgroup == "fence":
            if not wanted and behind_fence >= 0:
                close = text.find("\n```", end)
                behind_fence = close + 4 if close >= 0 else -1  # -1: no fence is closed from here on
        elif not _enclosed(text, end, quotes):
            if wanted:
                if found != wanted:
                    continue
                wanted = ""
            elif found in closing:
                at_line_start = start - line < 200 and not text[line:start].strip()
                if not at_line_start and text.rfind(closing[found], end) < 0:
                    continue
                kept.append(text[at:start])
                wanted = closing[found]
            elif found in _TURN_ENDS:
                continue
            else:
                kept.clear()
            at = line = end
            quotes.clear()
    if not wanted:
        kept.append(text[at:])
    return "".join(kept)


@lru_cache(maxsize=32)
def _tokens(markers: tuple[tuple[str, str], ...]) -> re.Pattern[str]:
    """All that :func:`strip_thoughts` looks at: fences, line ends, quotes, and the marks, longer ones first."""
    marks = sorted({mark for pair in markers for mark in pair}, key=len, reverse=True)
    alternatives = "|".join(re.escape(mark) for mark in marks)
    return re.compile(rf"(?m)(?P<fence>^[ \t]*```)|\n|(?P<quote>(?<!\\)\"|`+)|(?P<mark>{alternatives})")


def _enclosed(text: str, end: int, quotes: set[str]) -> bool:
    """Whether a quote that was opened before on this line closes behind ``end``."""
    if not quotes:
        return False
    line_end = text.find("\n", end)
    return any(text.find(quote, end, line_end if line_end >= 0 else len(text)) >= 0 for quote in quotes)
