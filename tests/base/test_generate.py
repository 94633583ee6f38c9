"""Batched answers against one prompt at a time, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from micro import micro_model, micro_tokenizer
from skillweave.base import Sampling, generate, prompt_ids
from skillweave.base.generate import pad_left
from skillweave.errors import UserError

PROMPTS = ["a", "a much longer prompt than the first", "mid one", "a"]


@torch.no_grad()
def greedy_by_hand(prompt: str, tokens: int) -> str:
    """Argmax, one token at a time, without a cache."""
    model, tokenizer = micro_model(), micro_tokenizer()
    ids = prompt_ids(tokenizer, prompt)
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_greedy_batches_give_what_each_prompt_gives_alone() -> None:
    answers = generate(micro_model(), micro_tokenizer(), PROMPTS, Sampling(max_new_tokens=7, batch_size=3))
    assert answers == [[greedy_by_hand(prompt, 7)] for prompt in PROMPTS]


def test_sampling_repeats_with_its_seed_and_leaves_the_global_generator_alone() -> None:
    sampling = Sampling(max_new_tokens=5, temperature=1.0, samples=3, seed=4)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = generate(micro_model(), micro_tokenizer(), PROMPTS, sampling)
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert generate(micro_model(), micro_tokenizer(), PROMPTS, sampling) == first
    assert [len(texts) for texts in first] == [3] * 4
    assert len({text for texts in first for text in texts}) > 4
    assert generate(micro_model(), micro_tokenizer(), PROMPTS, Sampling(5, 1.0, samples=3, seed=5)) != first


def test_around_batch_names_the_prompt_behind_every_row() -> None:
    seen: list[int] = []

    @contextmanager
    def around(rows: list[int]):
        seen.extend(rows)
        yield

    generate(micro_model(), micro_tokenizer(), PROMPTS, Sampling(2, batch_size=2, samples=2), around_batch=around)
    assert sorted(seen) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_no_prompts_give_no_answers_and_the_context_is_kept() -> None:
    model, tokenizer = micro_model(context=32), micro_tokenizer()
    assert generate(model, tokenizer, []) == []
    (answer,) = generate(model, tokenizer, ["x" * 20], Sampling(max_new_tokens=100))[0]
    assert len(answer) <= 32 - len(prompt_ids(tokenizer, "x" * 20))
    with pytest.raises(UserError, match=r"prompt 2 has .* the model's context is 32"):
        generate(model, tokenizer, ["x", "x" * 40])


def test_padding_is_on_the_left() -> None:
    ids, mask = pad_left([[5], [6, 7, 8]], 0, "cpu")
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
