"""What a model makes of known answers, by teacher forcing: one forward pass a batch tells all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from skillweave.base.batching import TokenRow, by_length, padded
from skillweave.methods.cku.knowledge.facts import Fact, fact_rows
from skillweave.methods.cku.knowledge.metrics import exact_memorisation, extraction_strength, min_k, truth_ratio

Row = dict[str, list[int]]
"""``input_ids`` and ``labels`` (-100 on the prompt), both (T,); ``end``: [1] where the last label is an end token."""


@dataclass(frozen=True)
class Reading:
    """One value a row, in the order of the rows.

    All figures are of the answer's own tokens. The token that ends a turn or a text does not count: it is no part of
    what is known, and a model that says the whole answer and then goes on knows all of it. ``log_prob``: of the whole
    answer, nats; ``tokens``: of the answer; ``strength`` and ``memorised``: extraction strength and exact memorisation,
    in [0, 1]; ``min_k``: mean log-probability of the least likely fifth of the tokens.
    """

    log_prob: list[float]
    tokens: list[int]
    strength: list[float]
    memorised: list[float]
    min_k: list[float]

    @property
    def per_token(self) -> list[float]:
        """Mean log-probability of a token of each answer, nats."""
        return [total / count for total, count in zip(self.log_prob, self.tokens, strict=True)]

    @property
    def probability(self) -> list[float]:
        """Each answer's probability to the power 1/|y|, as TOFU has it."""
        return [math.exp(value) for value in self.per_token]

    def means(self) -> dict[str, float]:
        """What is shown of it."""
        return {
            "strength": fmean(self.strength),
            "memorised": fmean(self.memorised),
            "probability": fmean(self.probability),
            "log_prob": fmean(self.per_token),
        }


def split_row(row: Row) -> TokenRow:
    """A row as its prompt and its answer."""
    start = row["labels"].count(-100)
    return row["input_ids"][:start], row["input_ids"][start:]


def known_tokens(rows: Sequence[Row], pad: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """The rows as :func:`padded` has them, labelled on what is known: not on the token that ends a turn or text."""
    inputs = padded([split_row(row) for row in rows], pad, device)
    for number, row in enumerate(rows):
        if row.get("end", [0])[0]:
            inputs["labels"][number, len(row["input_ids"]) - 1] = -100
    return inputs


@torch.no_grad()
def read_rows(model: Any, rows: Sequence[Row], pad: int, *, batch_size: int, bf16: bool) -> Reading:
    """Read all answers with a model that bears a scoring head (:func:`install_scoring_head`); at least one row."""
    found: dict[int, tuple[float, int, float, float, float]] = {}
    was_training = model.training
    model.eval()
    for piece in by_length([len(row["input_ids"]) for row in rows], batch_size):
        inputs = known_tokens([rows[index] for index in piece], pad, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            out = model(**inputs, fused_lm_head=True)
        mask, log_probs = out.label_mask, out.log_probs.float()
        values = zip(
            (log_probs * mask).sum(dim=1).tolist(),
            mask.sum(dim=1).tolist(),
            extraction_strength(out.is_top1.bool(), mask).tolist(),
            exact_memorisation(out.is_top1.bool(), mask).tolist(),
            min_k(log_probs, mask).tolist(),
            strict=True,
        )
        found.update(zip(piece, values, strict=True))
    model.train(was_training)
    columns = zip(*(found[index] for index in range(len(rows))), strict=True)
    return Reading(*(list(column) for column in columns))


def truth_ratios(
    model: Any, tokenizer: Any, facts: Sequence[Fact], max_length: int, *, batch_size: int, bf16: bool
) -> list[float]:
    """The truth ratio of every fact that has wrong answers, against its paraphrased answer where it has one.

    Facts of which an answer does not fit ``max_length`` are passed over, as are plain texts.
    """
    rows: list[Row] = []
    groups: list[int] = []  # how many answers each fact has, the right one first
    for fact in facts:
        if fact.prompt is None or not fact.wrong:
            continue
        answers = [fact.paraphrased or fact.answer, *fact.wrong]
        made, left_out = fact_rows(tokenizer, [_answered(fact, answer) for answer in answers], max_length)
        if not left_out:
            rows += made
            groups.append(len(made))
    if not rows:
        return []
    values = read_rows(model, rows, tokenizer.pad_token_id, batch_size=batch_size, bf16=bf16).per_token
    ratios, start = [], 0
    for size in groups:
        right, wrong = values[start], values[start + 1 : start + size]
        ratios.append(float(truth_ratio(torch.tensor([right]), torch.tensor([wrong]))))
        start += size
    return ratios


def _answered(fact: Fact, answer: str) -> Fact:
    return Fact(id=fact.id, prompt=fact.prompt, answer=answer, paraphrased=None, wrong=(), where=fact.where)
