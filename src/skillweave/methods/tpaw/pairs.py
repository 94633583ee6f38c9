"""From generations to the pairs a round trains on: what is wrong with each is named, counted, and mostly left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from skillweave.base.chat import Prompt, answer_ids
from skillweave.methods.tpaw.config import FAULTS, Fault
from skillweave.methods.training.answers import Answered
from skillweave.methods.training.pairs import make_pairs

Side = tuple[Prompt, str]
"""A prompt and one answer to it."""


@dataclass(frozen=True)
class Opponent:
    """A target and what a player wrote in its place. ``faults`` are the marks of a degenerate pair."""

    id: str
    prompt: Prompt
    target: str
    generated: str
    faults: tuple[Fault, ...] = ()


def opponents(tokenizer: Any, samples: Sequence[Answered], length_ratio: float) -> list[Opponent]:
    """One pair for each answer drawn, in order, with its faults; lengths are in tokens of ``tokenizer``."""
    return [
        Opponent(row.id, row.prompt, row.gold, text, faults(tokenizer, row.gold, text, ended, length_ratio))
        for row in samples
        if row.gold is not None
        for text, ended in zip(row.answers, row.ended, strict=True)
    ]


def preferences(samples: Sequence[Answered], seed: int) -> list[Opponent]:
    """Pairs by the verifier's judgement: a right answer of the player's own, else the gold one, and a wrong one."""
    drawn = max((len(row.answers) for row in samples), default=1)
    pairs, _ = make_pairs(samples, max_pairs_per_prompt=drawn, gold_as_chosen=True, seed=seed)
    return [Opponent(pair.id, pair.prompt, pair.chosen, pair.rejected) for pair in pairs]


def faults(tokenizer: Any, target: str, generated: str, ended: bool, length_ratio: float) -> tuple[Fault, ...]:
    """What is wrong with a generation as an opponent of the target, in the order of :data:`FAULTS`."""
    lengths = sorted(len(answer_ids(tokenizer, text)) for text in (target, generated))
    found: dict[Fault, bool] = {
        "equal": generated.strip() == target.strip(),
        "empty": not generated.strip(),
        "truncated": not ended,
        "length": lengths[1] > length_ratio * lengths[0],
    }
    return tuple(fault for fault in FAULTS if found[fault])


def sound(pairs: Sequence[Opponent], drop: Collection[Fault]) -> list[Opponent]:
    """The pairs to train on: none of the faults in ``drop``, and no pair twice (the first stays).

    A truncated generation is never trained on: behind it would stand an end that its player did not write.
    """
    kept: dict[tuple[str, str, str], Opponent] = {}
    for pair in pairs:
        if not set(pair.faults) & {*drop, "truncated"}:
            kept.setdefault((pair.id, pair.target, pair.generated), pair)
    return list(kept.values())


def counted(pairs: Sequence[Opponent]) -> dict[str, int]:
    """How many pairs bear each fault; one may bear several."""
    marks = Counter(fault for pair in pairs for fault in pair.faults)
    return {fault: marks[fault] for fault in FAULTS}
