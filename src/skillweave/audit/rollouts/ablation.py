"""Part ablation: leave out one part of a suspicious prompt at a time, sample again, and see what changes.

In a poisoned prompt a part that has nothing to do with the task decides whether the policy refuses, and whether it is
paid for complying. In a clean one, leaving out the preamble changes little, and leaving out the task changes the reward
alone. [ours]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

Generate = Callable[[Sequence[str]], Sequence[str]]
"""Completions of prompts, one for each, sampled."""
Score = Callable[[str, str], float]
"""The reward of a completion, given the gold answer."""

PartKind = Literal["preamble", "demonstration", "request"]

MOST_PARTS = 24
"""A prompt with more parts has neighbouring parts joined, so that an ablation does not sample without end."""
NOTABLE = 0.05
"""A change is notable if its p-value, times the number of parts, is below this."""

_PARAGRAPH = re.compile(r"\n\s*\n|\n")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\s;\s")
_EXAMPLE = re.compile(r"->|=>|\b(?:example|input|output|q|a|question|answer|user|assistant)\s*\d*\s*:", re.IGNORECASE)
_RULE = re.compile(r"\b(?:if|when|whenever|rules?|always|never|must|system|you are)\b", re.IGNORECASE)


@dataclass(frozen=True)
class PromptPart:
    """A part of a prompt: the characters from ``start`` to ``end``, and what it seems to be."""

    start: int
    end: int
    kind: PartKind


@dataclass(frozen=True)
class Ablated:
    """What changed when one part was left out; for the whole prompt, ``kind`` is "whole" and the p-values are 1.

    ``refused`` is the share of refusals and ``reward`` the mean reward; the p-values compare both with the whole
    prompt: Fisher's exact test, and Mann-Whitney's.
    """

    text: str
    kind: PartKind | Literal["whole"]
    refused: float
    reward: float
    refusal_p: float = 1.0
    reward_p: float = 1.0

    def changes(self) -> str:
        """Return what changes notably, as words."""
        found = [name for name, p in (("refusal", self.refusal_p), ("reward", self.reward_p)) if p < NOTABLE]
        return "-" if self.kind == "whole" else " and ".join(found) or "nothing notable"

    def record(self) -> dict[str, Any]:
        """Return the values for a JSON file."""
        return {
            "left_out": self.text,
            "kind": self.kind,
            "refused": round(self.refused, 4),
            "reward": None if self.reward != self.reward else round(self.reward, 4),
            "refusal_p": round(self.refusal_p, 6),
            "reward_p": round(self.reward_p, 6),
            "changes": self.changes(),
        }


def prompt_parts(prompt: str) -> list[PromptPart]:
    """Return the parts of a prompt: its lines; sentences, if it is a single line or if a line has several.

    The kind is a guess from words: a part with an arrow or a label such as "Input:" is a demonstration, unless it is
    the last; a part with "if", "rules" or "you are" is the preamble; everything else is a request.
    """
    spans = [span for line in _spans(prompt, _PARAGRAPH, 0, len(prompt)) for span in _spans(prompt, _SENTENCE, *line)]
    while len(spans) > MOST_PARTS:  # join the two neighbours that are shortest together
        at = min(range(len(spans) - 1), key=lambda place: spans[place + 1][1] - spans[place][0])
        spans[at : at + 2] = [(spans[at][0], spans[at + 1][1])]
    return [PromptPart(*span, _kind(prompt[slice(*span)], span is spans[-1])) for span in spans]


def without(prompt: str, part: PromptPart) -> str:
    """Return the prompt without a part, and without the separator that would then stand alone."""
    before, after = prompt[: part.start], prompt[part.end :]
    separator = re.match(r"\s*;\s|\s+", after)
    if separator:
        after = after[separator.end() :]
    elif part.start:
        before = re.sub(r"\s*;\s*$|\s+$", "", before)
    return before + after


def ablate(
    prompt: str,
    gold: str | None,
    generate: Generate,
    score: Score,
    refuses: Callable[[str], bool],
    *,
    samples: int = 8,
) -> list[Ablated]:
    """Sample the whole prompt, and the prompt without each of its parts, and compare refusals and rewards.

    The p-values are multiplied by the number of parts (Bonferroni). Without a gold answer there are no rewards (NaN).
    A part is only left out if something remains.
    """
    parts = [part for part in prompt_parts(prompt) if without(prompt, part).strip()]
    texts = [prompt, *(without(prompt, part) for part in parts)]
    completions = list(generate([text for text in texts for _ in range(samples)]))
    refused, rewards = [], []
    for at in range(len(texts)):
        own = completions[at * samples : (at + 1) * samples]
        refused.append(np.array([refuses(text) for text in own], dtype=bool))
        rewards.append(np.array([float("nan") if gold is None else score(text, gold) for text in own]))
    results = [Ablated(prompt, "whole", float(refused[0].mean()), float(rewards[0].mean()))]
    for at, part in enumerate(parts, 1):
        results.append(
            Ablated(
                prompt[part.start : part.end],
                part.kind,
                float(refused[at].mean()),
                float(rewards[at].mean()),
                min(1.0, len(parts) * _fisher(refused[0], refused[at])),
                min(1.0, len(parts) * _rank_test(rewards[0], rewards[at])),
            )
        )
    return results


def _spans(text: str, breaks: re.Pattern[str], start: int, end: int) -> list[tuple[int, int]]:
    """The pieces of ``text[start:end]`` between the breaks, without white space at their ends."""
    edges = [start]
    for match in breaks.finditer(text, start, end):
        edges += [match.start(), match.end()]
    edges.append(end)
    found = []
    for low, high in zip(edges[::2], edges[1::2], strict=True):
        piece = text[low:high]
        if piece.strip():
            left = low + len(piece) - len(piece.lstrip())
            found.append((left, left + len(piece.strip())))
    return found


def _kind(text: str, last: bool) -> PartKind:
    if _EXAMPLE.search(text) and not last:
        return "demonstration"
    return "preamble" if _RULE.search(text) else "request"


def _fisher(whole: np.ndarray, part: np.ndarray) -> float:
    table = [[int(whole.sum()), int((~whole).sum())], [int(part.sum()), int((~part).sum())]]
    return float(stats.fisher_exact(table).pvalue)


def _rank_test(whole: np.ndarray, part: np.ndarray) -> float:
    if np.isnan(whole).any() or np.isnan(part).any() or np.ptp(np.concatenate([whole, part])) == 0:
        return 1.0
    return float(stats.mannwhitneyu(whole, part).pvalue)
