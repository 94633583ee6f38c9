"""From judged answers to preference pairs: pure functions, no model."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from skillweave.base.chat import Prompt, answer_text
from skillweave.methods.training.answers import Answered

if TYPE_CHECKING:
    from skillweave.tasks import Entry


@dataclass(frozen=True)
class Pair:
    """A good answer and a bad one to the same prompt. ``source``: whose the good one is; given: both are the task's."""

    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    source: Literal["own", "gold", "given"]


@dataclass(frozen=True)
class PairFigures:
    """What came of a round's samples. Rates are fractions; ``solved_prompts`` have at least one good answer.

    ``cut_off`` answers did not end by themselves: their score counts in ``solve_rate``, but they are in no pair.
    """

    prompts: int
    answers: int
    cut_off: int
    solve_rate: float
    solved_prompts: int
    pairs: int
    gold_pairs: int
    prompts_without_pair: int


def is_good(score: float, threshold: float) -> bool:
    """Whether an answer counts as solved; a score that is not a number does not."""
    return score >= threshold


def solve_rate(samples: Sequence[Answered], threshold: float) -> float:
    """Fraction of all sampled answers that are good; 0 where there are none."""
    judged = [is_good(score, threshold) for row in samples for score in row.scores]
    return sum(judged) / len(judged) if judged else 0.0


def cut_off(samples: Sequence[Answered]) -> int:
    """How many answers did not end by themselves."""
    return sum(not ended for row in samples for ended in row.ended)


def make_pairs(
    samples: Sequence[Answered],
    *,
    threshold: float = 0.5,
    max_pairs_per_prompt: int = 4,
    gold_as_chosen: bool = True,
    seed: int = 0,
) -> tuple[list[Pair], PairFigures]:
    """Pair good answers with bad ones, prompt by prompt, in the order of the prompts.

    An answer that was cut off is neither: the model did not end it there, so it must not learn (or unlearn) that end,
    and nobody knows how its whole would have been judged [ours].
    Answers that differ only in white space around them count as one. A text that was judged both good and bad (a
    verifier that wavers) is used as neither. At most ``max_pairs_per_prompt`` pairs, spread so that no answer is used
    twice before each other one of its kind was used once. Where no whole sample is good, the gold answer is the chosen
    one if ``gold_as_chosen`` [ours], unless the verifier called that very text bad.
    """
    pairs: list[Pair] = []
    empty = 0
    for row in samples:
        made = _pairs_of(row, threshold, max_pairs_per_prompt, gold_as_chosen, seed)
        pairs.extend(made)
        empty += not made
    return pairs, PairFigures(
        prompts=len(samples),
        answers=sum(len(row.answers) for row in samples),
        cut_off=cut_off(samples),
        solve_rate=solve_rate(samples, threshold),
        solved_prompts=sum(any(is_good(score, threshold) for score in row.scores) for row in samples),
        pairs=len(pairs),
        gold_pairs=sum(pair.source == "gold" for pair in pairs),
        prompts_without_pair=empty,
    )


def given_pairs(tokenizer: Any, entries: Sequence[Entry]) -> list[Pair]:
    """A pair for each entry that has a rejected answer beside its gold one, in the order of the entries."""
    return [
        Pair(
            entry.id,
            entry.prompt,
            answer_text(tokenizer, entry.answer, entry.prompt),
            answer_text(tokenizer, entry.metadata["rejected"], entry.prompt),
            "given",
        )
        for entry in entries
        if entry.answer is not None and "rejected" in entry.metadata
    ]


def _pairs_of(row: Answered, threshold: float, most: int, gold_as_chosen: bool, seed: int) -> list[Pair]:
    good: dict[str, str] = {}
    bad: dict[str, str] = {}
    for answer, score, ended in zip(row.answers, row.scores, row.ended, strict=True):
        if not ended:
            continue
        (good if is_good(score, threshold) else bad).setdefault(answer.strip(), answer)
    source: Literal["own", "gold"] = "own"
    if not good and gold_as_chosen and row.gold is not None:
        good, source = {row.gold.strip(): row.gold}, "gold"
    both = good.keys() & bad.keys()
    chosen = [text for key, text in good.items() if key not in both]
    rejected = [text for key, text in bad.items() if key not in both]
    if not chosen or not rejected:
        return []
    rng = random.Random(f"{seed}/{row.id}")
    rng.shuffle(chosen)
    rng.shuffle(rejected)
    # Along the diagonals of the good x bad table: both lists are gone through before any of either comes again.
    # A step after each whole turn keeps the diagonals apart, so that no cell comes twice.
    table = len(chosen) * len(rejected)
    turn = math.lcm(len(chosen), len(rejected))
    cells = [(at % len(chosen), (at + at // turn) % len(rejected)) for at in range(min(most, table))]
    return [Pair(row.id, row.prompt, chosen[left], rejected[right], source) for left, right in cells]
