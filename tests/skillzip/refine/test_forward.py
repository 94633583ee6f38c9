"""Tokens with which all prompts begin are read once, and change neither logits nor gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from helpers.micro_families import FAMILIES, build
from skillweave.skillzip.refine import forward
from skillweave.skillzip.refine.forward import Row, answer_logits, common_start

START = [3, 9, 4, 7, 5]
SHARING = ("llama", "gpt2", "bloom", "qwen3", "olmoe", "opt", "deepseek_v3")
"""Some of the families whose caches hold nothing but keys and values."""
ROWS: list[Row] = [([*START, 8, 2, 6, 5], 7), ([*START, 4, 11, 9, 3, 2], 8), ([*START, 6], 5)]


def test_the_common_start_leaves_the_last_token_of_each_prompt() -> None:
    assert common_start(ROWS) == 4  # the third prompt ends with the fifth token
    assert common_start(ROWS[:2]) == 5
    assert common_start([([1, 2, 3], 3), ([1, 2, 3], 3)]) == 2
    assert common_start([([1, 2], 1), ([1, 2], 1)]) == 0
    assert common_start([([1, 5, 3, 2], 3), ([2, 5, 3, 2], 3)]) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_are_those_of_separate_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(family)
    wanted, by_rows = _found(model, lambda: torch.cat([answer_logits(model, [row]) for row in ROWS]))
    passed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: passed.append(args[0].numel()))
    monkeypatch.setattr(forward, "_WORTH_SHARING", 1)
    got, gradient = _found(model, lambda: answer_logits(model, ROWS))
    assert passed in ([4, 3 * 6], [3 * 10])  # the common start and what is behind it; or every row whole
    assert passed[0] == 4 or family not in SHARING
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, by_rows, atol=1e-3, rtol=1e-3)


def test_few_equal_tokens_are_not_worth_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("llama")
    passed: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, args, __: passed.append(args[0].numel()))
    answer_logits(model, ROWS)
    assert passed == [30]


def _found(model: Any, logits: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits, and the gradient of the embeddings under a weighted sum of them."""
    model.zero_grad()
    found = logits()
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (found * weights).sum().backward()
    return found.detach(), model.get_input_embeddings().weight.grad.clone()
