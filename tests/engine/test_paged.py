"""What is added to transformers' continuous batching, and what of the library it rests on."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch.nn.functional import softmax
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.cache_allocators import full_attention
from transformers.generation.continuous_batching.continuous_api import (
    ContinuousBatchingManager,
    ContinuousBatchProcessor,
)

from helpers.micro_families import build, tune
from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.base.precision import multiply_in_float32
from skillweave.delta import Delta
from skillweave.engine import AsyncEngine
from skillweave.engine.paged import PagedRow
from skillweave.engine.paged_attention import _decoded, _packed
from skillweave.engine.prefix_cache import Readers
from skillweave.engine.sampler import RowSampler
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import Weave

PACKS = [None, "a", "b", "c"]


@pytest.fixture(scope="module")
def weave(micro_base: Path) -> Weave:
    base = open_base(micro_base)
    packs = {name: random_pack(base.model, base.fingerprint, name=name, seed=ord(name)) for name in "abc"}
    return Weave.of(base, packs, unpacked_packs=3)


def row(pack: str | None, base_tokens: int = 0) -> PagedRow:
    sampler = RowSampler(temperature=0, top_p=1, seed=0, vocabulary=1, device="cpu")
    return PagedRow("r", pack, base_tokens, sampler)


# -- packs and prefixes ----------------------------------------------------------------------------------------------


def run(weave: Weave, work: Any, **options: Any) -> Any:
    async def main() -> Any:
        async with AsyncEngine(weave, **options) as engine:
            return await work(engine)

    return asyncio.run(asyncio.wait_for(main(), 60))


def test_packs_with_the_same_prompt_do_not_share_its_keys_and_values(weave: Weave) -> None:
    """Without the reader in the hash, the second pack would read what the first one wrote."""
    prompt = "the same long prompt for all of the packs, " * 4

    async def work(engine: AsyncEngine) -> tuple[list[str], int, int]:
        texts = [(await engine.submit(prompt, pack, Sampling(12)).reply()).text for pack in PACKS]
        first = engine.counters().step_tokens
        again = [(await engine.submit(prompt, pack, Sampling(12)).reply()).text for pack in PACKS]
        assert again == texts
        return texts, first, engine.counters().step_tokens - first

    texts, first, second = run(weave, work)
    assert texts == [weave.generate([prompt], pack, Sampling(12))[0].text for pack in PACKS]
    assert len(set(texts)) == len(PACKS)
    # The same pack does share it: all whole blocks of 32 tokens before the last token are read from the cache.
    prompt_tokens = len(prompt) + 3
    assert first == 4 * (prompt_tokens + 11)
    assert second == first - 4 * ((prompt_tokens - 1) // 32 * 32)


def test_a_request_of_one_token_leaves_its_prompt_for_the_next(weave: Weave) -> None:
    prompt = "a prompt of more than one block of the cache: " * 2

    async def work(engine: AsyncEngine) -> tuple[str, int]:
        await engine.submit(prompt, "a", Sampling(1)).reply()
        before = engine.counters().step_tokens
        text = (await engine.submit(prompt, "a", Sampling(4)).reply()).text
        return text, engine.counters().step_tokens - before

    text, tokens = run(weave, work)
    assert text == weave.generate([prompt], "a", Sampling(4))[0].text
    assert tokens == len(prompt) + 3 + 3 - (len(prompt) + 2) // 32 * 32


def test_a_pack_that_was_forgotten_shares_no_prefix_with_its_namesake(weave: Weave) -> None:
    prompt = "a prompt of more than one block of the cache: " * 2

    async def work(engine: AsyncEngine) -> int:
        for forget in (False, True):
            await engine.submit(prompt, "a", Sampling(3)).reply()
            before = engine.counters().step_tokens
            if forget:
                engine.forget("a")
        await engine.submit(prompt, "a", Sampling(3)).reply()
        return engine.counters().step_tokens - before

    assert run(weave, work) == len(prompt) + 3 + 2


def test_ids_of_readers_never_collide() -> None:
    readers = Readers(100)
    rows = [row(None), row("a"), row("b"), row("a", base_tokens=2)]
    found = [readers.ids([1, 99, 5], one) for one in rows]
    assert found[0] == [1, 99, 5]
    assert found[3] is not None
    assert found[1] is not None
    assert found[3] == [1, 99, found[1][2]]
    plain = [tuple(ids) for ids in found[:3] if ids is not None]
    assert len({one for ids in plain for one in ids}) == 9
    readers.forget("a")
    assert not set(readers.ids([1, 99, 5], rows[1]) or []) & {one for ids in plain for one in ids}
    few = Readers(2**30)  # int32 has room for four readers
    ids = [few.ids([2**30 - 1], row(name)) for name in "abcd"]
    assert ids[3] is None
    assert all(-(2**31) <= one[0] < 2**31 for one in ids if one is not None)
    assert len({one[0] for one in ids if one is not None}) == 3
    assert few.ids([1], None) is None


def test_fifty_mixed_requests_that_join_and_leave_get_what_they_get_alone(weave: Weave) -> None:
    rng = Random(0)
    shared = "every pack reads this same beginning of a prompt, and then "
    asked = [
        (rng.choice([shared, ""]) + "x" * rng.randrange(1, 90), rng.choice(PACKS), rng.randrange(1, 24))
        for _ in range(50)
    ]

    async def one(engine: AsyncEngine, prompt: str, pack: str | None, room: int, wait: float) -> str:
        await asyncio.sleep(wait)
        return (await engine.submit(prompt, pack, Sampling(room)).reply()).text

    async def work(engine: AsyncEngine) -> list[str]:
        others = [engine.submit("y" * 50, "a", Sampling(200)) for _ in range(2)]
        texts = await asyncio.gather(*(one(engine, *ask, rng.random() / 3) for ask in asked))
        for other in others:
            other.cancel()
        return texts

    wanted = [weave.generate([prompt], pack, Sampling(room))[0].text for prompt, pack, room in asked]
    # A small budget of tokens splits prompts over steps, and a small cache takes requests back.
    for options in ({}, {"step_tokens": 40, "max_requests": 8}, {"cache_tokens": 700}):
        assert run(weave, work, **options) == wanted


# -- attention -------------------------------------------------------------------------------------------------------


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention of one sequence, token by token in float64: (heads, q, d), (kv heads, k, d) -> (q, heads, d)."""
    heads, own, size = query.shape
    share = heads // key.shape[0]
    rows = []
    for at in range(own):
        seen = key.shape[1] - own + at + 1
        one = [
            softmax(key[head // share, :seen].double() @ query[head, at].double() / size**0.5, -1)
            @ value[head // share, :seen].double()
            for head in range(heads)
        ]
        rows.append(torch.stack(one))
    return torch.stack(rows)


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_packed_sequences_attend_to_their_own_keys(heads: tuple[int, int]) -> None:
    source = torch.Generator().manual_seed(0)
    lengths = [(1, 1), (5, 5), (1, 7), (3, 9), (2, 2)]  # queries and keys: new prompts, decoding, the rest of a prompt
    query = torch.randn(1, heads[0], sum(q for q, _ in lengths), 8, generator=source)
    key, value = torch.randn(2, 1, heads[1], sum(k for _, k in lengths), 8, generator=source)
    ends = [torch.tensor([0, *one]).cumsum(0).tolist() for one in zip(*lengths, strict=True)]
    found = _packed(query, key, value, None, *ends)[0]
    for index in range(len(lengths)):
        q, k = (slice(*one[index : index + 2]) for one in ends)
        expected = by_hand(query[0, :, q], key[0, :, k], value[0, :, k])
        assert torch.allclose(found[q].double(), expected, atol=1e-5)


def test_decoding_reads_and_writes_the_pages_that_are_named() -> None:
    source = torch.Generator().manual_seed(1)
    page, lengths = 4, torch.tensor([1, 4, 5, 11])
    table = torch.tensor([[7, -1, -1], [2, -1, -1], [5, 1, -1], [3, 6, 4]], dtype=torch.int32)
    k_cache, v_cache = torch.randn(2, 9, page, 2, 8, generator=source)
    query, key, value = (torch.randn(1, heads, 4, 8, generator=source) for heads in (6, 2, 2))
    before = k_cache.clone()
    cu = torch.tensor([0, *lengths.tolist()]).cumsum(0).int()
    found = _decoded(query, key, value, 8**-0.5, block_table=table, k_cache=k_cache, v_cache=v_cache, cu_seq_lens_k=cu)
    written = torch.zeros(9, page, dtype=torch.bool)
    for index, length in enumerate(lengths.tolist()):
        at = int(table[index, (length - 1) // page]), (length - 1) % page
        written[at] = True
        assert torch.equal(k_cache[at], key[0, :, index])
        pages = table[index, : -(-length // page)].long()
        keys, values = (kept[pages].flatten(0, 1)[:length].transpose(0, 1) for kept in (k_cache, v_cache))
        expected = by_hand(query[0, :, index : index + 1], keys, values)[0]
        assert torch.allclose(found[0, index].double(), expected, atol=1e-5)
    assert torch.equal(k_cache[~written], before[~written])


# -- models ----------------------------------------------------------------------------------------------------------


def opened(family: str, folder: Path) -> Any:
    build(family).save_pretrained(folder)
    micro_tokenizer().save_pretrained(folder)
    return open_base(folder, dtype="float32")


@pytest.mark.parametrize("family", ["gpt2", "gpt_oss", "gemma3_text", "opt", "qwen3"])
def test_fine_tunes_of_everything_answer_in_shared_steps_as_they_do_alone(family: str, tmp_path: Path) -> None:
    """Norms, embeddings, positions and heads change too; some need steps of their own."""
    base, packs = opened(family, tmp_path), {}
    before = base.model.state_dict()
    for seed, name in enumerate("ab", start=1):
        after = tune(build(family), seed).state_dict()
        delta = Delta({key: after[key] - before[key] for key in before}, base_fingerprint=base.fingerprint)
        packs[name] = zip_delta(delta, base, None, ZipConfig(budget="8MB", bits=8), name=name)
    weave = Weave.of(base, packs)
    asked = [("hello you", "a"), ("hello you", None), ("what", "b"), ("what is it then", "a")]

    async def work(engine: AsyncEngine) -> list[str]:
        generations = [engine.submit(prompt, pack, Sampling(6)) for prompt, pack in asked]
        return [(await one.reply()).text for one in generations]

    alone = [weave.generate([prompt], pack, Sampling(6))[0].text for prompt, pack in asked]
    assert run(weave, work) == alone
    assert [weave.generate([prompt], pack, Sampling(6))[0].text for prompt, pack in asked] == alone


def test_weights_in_bfloat16_that_are_multiplied_in_float32_are_served(micro_base: Path) -> None:
    base = open_base(micro_base, dtype="bfloat16")
    multiply_in_float32(base.model)
    weave = Weave.of(base, {"a": random_pack(base.model, base.fingerprint, name="a")})

    async def work(engine: AsyncEngine) -> list[int]:
        generations = [engine.submit("hello", pack, Sampling(6)) for pack in (None, "a")]
        return [(await one.reply()).completion_tokens for one in generations]

    assert run(weave, work) == [6, 6]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("bloom", "does not compute .* as the model itself does"),
        ("falcon", "does not"),
        ("mamba", "cannot run .*Invalid"),
    ],
)
def test_a_model_that_steps_would_answer_wrongly_is_refused(family: str, message: str, tmp_path: Path) -> None:
    weave = Weave.of(opened(family, tmp_path))
    with pytest.raises(UserError, match=message):
        run(weave, lambda engine: engine.submit("x", None, Sampling(2)).reply())


# -- the library -----------------------------------------------------------------------------------------------------


def test_the_library_still_has_what_is_extended() -> None:
    """If this fails after an update of transformers, read engine/paged.py against the new version."""
    for owner, names in {
        ContinuousBatchingManager: "_create_batch_processor _generation_loop_body _generation_step add_request "
        "cancel_request stop is_running start switch_to_cb_friendly_attn",
        ContinuousBatchProcessor: "handle_batch_error fail_all_requests update_batch",
        PagedAttentionCache: "search_prefix_match mark_complete_blocks update",
    }.items():
        assert not [name for name in names.split() if not hasattr(owner, name)], owner
    for function, wanted in {
        PagedAttentionCache.search_prefix_match: "self request_id prompt_ids",
        PagedAttentionCache.mark_complete_blocks: "self state complete_blocks",
        full_attention.FullAttentionCacheAllocator.mark_complete_blocks: "self request_id token_ids new_new_blocks",
        ContinuousBatchingManager._generation_loop_body: "self batch_processor bootstrapping",
    }.items():
        assert list(inspect.signature(function).parameters) == wanted.split()
    # A block's hash reads the ids as int32, which the numbers of readers rely on.
    assert 'array("i", tokens)' in inspect.getsource(inspect.getmodule(full_attention.CacheAllocator))  # type: ignore[arg-type]
