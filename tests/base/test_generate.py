"""Batched answers against one prompt at a time, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from micro import micro_model, micro_tokenizer
from skillweave.base import Sampling, generate, prompt_ids
from skillweave.base.generate import batch_rows, pad_left, stop_tokens
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


def test_a_prompt_near_the_end_of_the_context_does_not_cut_short_its_neighbours() -> None:
    prompts = ["x", "x" * 20]  # together in a batch, the first would have to stop where the second must
    model, tokenizer = micro_model(context=34), micro_tokenizer()
    together = generate(model, tokenizer, prompts, Sampling(max_new_tokens=24))
    assert together == [generate(model, tokenizer, [prompt], Sampling(max_new_tokens=24))[0] for prompt in prompts]
    assert batch_rows([0, 1, 2, 2], lengths=[3, 9, 3], room=[5, 2, 5], batch_size=2) == [[1], [0, 2], [2]]


def test_the_generation_config_adds_its_stop_tokens_and_nothing_else() -> None:
    model, tokenizer = micro_model(), micro_tokenizer()
    plain = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=7))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.num_beams = 3
    assert generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=7)) == plain
    model.generation_config.eos_token_id = [1, 40]
    assert stop_tokens(model, tokenizer) == [1, 40]
    model.generation_config.eos_token_id = None
    assert stop_tokens(model, tokenizer) == [1]


def test_padding_is_on_the_left() -> None:
    ids, mask = pad_left([[5], [6, 7, 8]], 0, "cpu")
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]
