"""How well a model knows given answers, by teacher forcing: one forward pass per batch gives all figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from skillweave.base.batching import TokenRow, by_length, padded
from skillweave.methods.cku.knowledge.facts import Fact, FactRow, fact_rows
from skillweave.methods.cku.knowledge.metrics import exact_memorisation, extraction_strength, min_k, truth_ratio


@dataclass(frozen=True)
class Reading:
    """The figures of some answers: one value per row, in the order of the rows.

    All figures are over the answer's own tokens. The token that ends a turn or a text does not count: it is not part of
    the knowledge, and a model that says the whole answer and then continues knows all of it.
    """

    log_prob: list[float]
    """Log-probability of the whole answer, nats"""
    tokens: list[int]
    """Number of tokens of the answer"""
    strength: list[float]
    """Extraction strength, in [0, 1]"""
    memorised: list[float]
    """Exact memorisation, in [0, 1]"""
    min_k: list[float]
    """Mean log-probability of the least likely fifth of the tokens, nats"""

    @property
    def per_token(self) -> list[float]:
        """Mean log-probability per token of each answer, nats."""
        return [total / count for total, count in zip(self.log_prob, self.tokens, strict=True)]

    @property
    def probability(self) -> list[float]:
        """Each answer's probability to the power 1/|y|, as in TOFU."""
        return [math.exp(value) for value in self.per_token]

    def means(self) -> dict[str, float]:
        """The means over the rows that a run reports."""
        return {
            "strength": fmean(self.strength),
            "memorised": fmean(self.memorised),
            "probability": fmean(self.probability),
            "log_prob": fmean(self.per_token),
        }


def split_row(row: FactRow) -> TokenRow:
    """Return the tokens of a row's prompt and of its answer."""
    start = row["labels"].count(-100)
    return row["input_ids"][:start], row["input_ids"][start:]


def answer_batch(rows: Sequence[FactRow], pad: int, device: torch.device | str = "cpu") -> dict[str, torch.Tensor]:
    """Return the rows as a batch of :func:`padded`, with labels on the answers but not on their end tokens."""
    inputs = padded([split_row(row) for row in rows], pad, device)
    for number, row in enumerate(rows):
        if row.get("end", [0])[0]:
            inputs["labels"][number, len(row["input_ids"]) - 1] = -100
    return inputs


@torch.no_grad()
def read_rows(model: Any, rows: Sequence[FactRow], pad: int, *, batch_size: int, bf16: bool) -> Reading:
    """Return the figures of all rows, of which there must be at least one.

    ``model`` must have a scoring head (:func:`~skillweave.methods.training.head.install_scoring_head`).
    ``bf16``: whether to compute under autocast.
    """
    figures: dict[int, tuple[float, int, float, float, float]] = {}
    was_training = model.training
    model.eval()
    for batch in by_length([len(row["input_ids"]) for row in rows], batch_size):
        inputs = answer_batch([rows[index] for index in batch], pad, model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            out = model(**inputs, fused_lm_head=True)
        mask, log_probs, is_top = out.label_mask, out.log_probs.float(), out.is_top1.bool()
        values = zip(
            (log_probs * mask).sum(dim=1).tolist(),
            mask.sum(dim=1).tolist(),
            extraction_strength(is_top, mask).tolist(),
            exact_memorisation(is_top, mask).tolist(),
            min_k(log_probs, mask).tolist(),
            strict=True,
        )
        figures.update(zip(batch, values, strict=True))
    model.train(was_training)
    columns = zip(*(figures[index] for index in range(len(rows))), strict=True)
    return Reading(*(list(column) for column in columns))


def truth_ratios(
    model: Any, tokenizer: Any, facts: Sequence[Fact], max_length: int, *, batch_size: int, bf16: bool
) -> list[float]:
    """Return the truth ratio of every fact that has wrong answers, against its paraphrased answer if it has one.

    Plain texts are skipped, and so are facts with an answer that does not fit into ``max_length`` tokens.
    """
    rows: list[FactRow] = []
    answers_per_fact: list[int] = []  # the right answer comes first
    for fact in facts:
        if fact.prompt is None or not fact.wrong:
            continue
        answers = [fact.paraphrased or fact.answer, *fact.wrong]
        rows_of_fact, left_out = fact_rows(tokenizer, [_with_answer(fact, answer) for answer in answers], max_length)
        if not left_out:
            rows += rows_of_fact
            answers_per_fact.append(len(rows_of_fact))
    if not rows:
        return []
    values = read_rows(model, rows, tokenizer.pad_token_id, batch_size=batch_size, bf16=bf16).per_token
    ratios, start = [], 0
    for count in answers_per_fact:
        right, wrong = values[start], values[start + 1 : start + count]
        ratios.append(float(truth_ratio(torch.tensor([right]), torch.tensor([wrong]))))
        start += count
    return ratios


def _with_answer(fact: Fact, answer: str) -> Fact:
    return Fact(id=fact.id, prompt=fact.prompt, answer=answer, paraphrased=None, wrong=(), where=fact.where)
