"""A task whose answers have many right forms: a sum modulo 13 with worked steps, and models that learn it.

A prompt is four numbers. An answer takes two of the numbers that are left, writes them with their sum, and puts the sum
in their place, until one number is left: three steps of three tokens, with one of three signs between them. There are
more than a hundred right answers to most prompts, and all are equally long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from skillweave.micro import MicroShape, micro_model

MODULUS = 13
NUMBERS = 4
PAD, END, GO = 0, 1, 2
SIGNS = (3, 4, 5)
FIRST = 6
"""The token of the number 0; the others follow."""
LENGTH = 4 * (NUMBERS - 1)
"""The tokens of a right answer, with its end: three in each step, and one after it."""
LONGEST = LENGTH + 2
"""An answer is cut off after so many tokens."""

Numbers = tuple[int, ...]
Adder = Callable[[int, int, Random], int]
"""Two numbers -> what is written as their sum."""


def add(one: int, other: int, rng: Random) -> int:
    """The right sum."""
    return (one + other) % MODULUS


@dataclass(frozen=True)
class Misled:
    """An adder that is wrong in a systematic way: what the base has read, before it sees any clean answer.

    ``habits`` maps some pairs to a wrong sum, which is written with probability ``often``. Any other sum is a random
    number with probability ``noise``.
    """

    habits: dict[Numbers, int]
    often: float = 0.6
    noise: float = 0.05

    @classmethod
    def draw(cls, rng: Random, share: float = 0.3) -> Misled:
        """Habits for a ``share`` of all pairs."""
        pairs = [(one, other) for one in range(MODULUS) for other in range(one, MODULUS) if rng.random() < share]
        return cls({pair: (sum(pair) + rng.randrange(1, MODULUS)) % MODULUS for pair in pairs})

    def __call__(self, one: int, other: int, rng: Random) -> int:
        """What the base has read as the sum of two numbers."""
        habit = self.habits.get((min(one, other), max(one, other)))
        if habit is not None and rng.random() < self.often:
            return habit
        return rng.randrange(MODULUS) if rng.random() < self.noise else add(one, other, rng)


def draw(rng: Random, count: int, seen: set[Numbers]) -> list[Numbers]:
    """So many new prompts, which join ``seen``."""
    found: list[Numbers] = []
    while len(found) < count:
        numbers = tuple(rng.randrange(MODULUS) for _ in range(NUMBERS))
        if numbers not in seen:
            seen.add(numbers)
            found.append(numbers)
    return found


def worked(rng: Random, numbers: Numbers, adder: Adder = add) -> list[int]:
    """The tokens of one answer: a random order, a random sign between steps, sums used at once or at the end."""
    left = rng.sample(numbers, len(numbers))
    sign, at_once = rng.choice(SIGNS), rng.random() < 0.5
    tokens: list[int] = []
    while len(left) > 1:
        one, other, *left = left
        total = adder(one, other, rng)
        left = [total, *left] if at_once else [*left, total]
        tokens += [FIRST + one, FIRST + other, FIRST + total, sign]
    return [*tokens[:-1], END]


def wrong(rng: Random, numbers: Numbers) -> list[int]:
    """A worked answer with one wrong sum, which the later steps use."""
    slip, step = rng.randrange(NUMBERS - 1), iter(range(NUMBERS))
    return worked(
        rng,
        numbers,
        lambda one, other, rng: (one + other + (rng.randrange(1, MODULUS) if next(step) == slip else 0)) % MODULUS,
    )


def right(numbers: Numbers, answer: Sequence[int]) -> bool:
    """Whether an answer is right in any of the forms: every step has two numbers that are left, and their sum."""
    if len(answer) != LENGTH or answer[-1] != END:
        return False
    signs = {answer[at] for at in range(3, LENGTH - 1, 4)}
    if len(signs) != 1 or not signs <= set(SIGNS):
        return False
    left = Counter(numbers)
    for at in range(0, LENGTH, 4):
        one, other, total = (token - FIRST for token in answer[at : at + 3])
        for number in (one, other):
            if left[number] < 1:
                return False
            left[number] -= 1
        if total != (one + other) % MODULUS:
            return False
        left[total] += 1
    return True


# -- models ----------------------------------------------------------------------------------------------------------


def new_model(seed: int) -> LlamaForCausalLM:
    """A random micro model with about 0.1M parameters (two layers of 64)."""
    return micro_model(MicroShape(context=2 * (LONGEST + NUMBERS), kv_heads=4), seed)


def prompts(numbers: Sequence[Numbers]) -> Tensor:
    """The tokens of prompts, (B, NUMBERS + 1)."""
    return torch.tensor([[*(FIRST + number for number in one), GO] for one in numbers])


def padded(answers: Sequence[Sequence[int]]) -> Tensor:
    """Answers as (B, LONGEST) tokens."""
    return torch.tensor([[*answer, *[PAD] * (LONGEST - len(answer))] for answer in answers])


def log_probs(model: LlamaForCausalLM, asked: Tensor, answers: Tensor) -> Tensor:
    """The summed log-probability of each answer in nats, (B,)."""
    tokens = torch.cat([asked, answers], dim=1)[:, :-1]
    hidden = model.model(tokens, use_cache=False).last_hidden_state[:, asked.shape[1] - 1 :]
    each = model.lm_head(hidden).log_softmax(-1).gather(2, answers[:, :, None]).squeeze(2)
    return (each * (answers != PAD)).sum(dim=1)


@torch.no_grad()
def answer(model: LlamaForCausalLM, asked: Tensor, source: torch.Generator | None = None) -> list[list[int]]:
    """An answer to each prompt: drawn at temperature 1 with ``source``, or greedy without. It has END if it ended."""
    out = model(asked, use_cache=True)
    ended = torch.zeros(len(asked), dtype=torch.bool)
    tokens: list[Tensor] = []
    while True:
        logits = out.logits[:, -1]
        drawn = (
            logits.argmax(-1) if source is None else torch.multinomial(logits.softmax(-1), 1, generator=source)[:, 0]
        )
        tokens.append(drawn.masked_fill(ended, PAD))
        ended |= drawn == END
        if ended.all() or len(tokens) == LONGEST:
            break
        out = model(drawn[:, None], past_key_values=out.past_key_values, use_cache=True)
    rows = torch.stack(tokens, dim=1).tolist()
    return [row[: row.index(END) + 1] if END in row else row for row in rows]
