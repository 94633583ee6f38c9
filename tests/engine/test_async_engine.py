"""Many callers share the batches of one model, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from helpers.chat_families import FAMILIES, family_tokenizer, micro_llama, teach
from helpers.micro_families import build, tune
from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.base.open import Base
from skillweave.delta import Delta
from skillweave.engine import AsyncEngine, CountedReply, Generation, RequestCancelled
from skillweave.errors import UserError
from skillweave.methods.training.sft import encode
from skillweave.micro import micro_tokenizer
from skillweave.skillzip import ZipConfig, zip_delta
from skillweave.weave import AUTO, Weave, fit_router

PROMPTS = ["hello", "What is 2 + 2?", "a b c d e f g", "z", "the quick brown fox jumps over the dog", "1 2 3 4 5 6"]
PACKS = [None, "a", "b"]
NORM = "model.norm.weight"


@pytest.fixture(scope="module")
def base(micro_base: Path) -> Base:
    return open_base(micro_base)


@pytest.fixture(scope="module")
def weave(base: Base) -> Weave:
    packs = {
        name: random_pack(base.model, base.fingerprint, name=name, seed=seed, difference=(NORM,) * seed)
        for seed, name in enumerate("ab")
    }
    broken = random_pack(base.model, base.fingerprint, name="broken", whole=(NORM,))
    broken.tensors[NORM].fill_(torch.nan)
    return Weave.of(base, {**packs, "broken": broken})


def opened(weave: Weave, work: Callable[[AsyncEngine], Awaitable[Any]], **options: Any) -> Any:
    """What ``work`` returns. Nothing may hang: after a minute the test fails. The worker thread must have ended."""

    async def main() -> Any:
        async with AsyncEngine(weave, **options) as engine:
            return await work(engine)

    async def limited() -> Any:
        return await asyncio.wait_for(main(), 60)

    try:
        return asyncio.run(limited())
    finally:
        assert not [thread for thread in threading.enumerate() if "generation_loop" in thread.name]


async def replies(generations: list[Generation]) -> list[CountedReply]:
    return await asyncio.gather(*(generation.reply() for generation in generations))


def alone(weave: Weave, prompt: str, pack: str | None, room: int) -> str:
    return weave.generate([prompt], pack, Sampling(room))[0].text


# -- the answers -----------------------------------------------------------------------------------------------------


def test_greedy_requests_get_what_they_get_alone_whatever_shares_their_batch(weave: Weave) -> None:
    asked = [(prompt, pack, 4 + 3 * index) for index, prompt in enumerate(PROMPTS) for pack in PACKS]

    async def work(engine: AsyncEngine) -> list[CountedReply]:
        greedy, drawn = [], []
        for seed, (prompt, pack, room) in enumerate(asked):
            greedy.append(engine.submit(prompt, pack, Sampling(room)))
            drawn.append(engine.submit(prompt, pack, Sampling(9, temperature=1.5, top_p=0.9, seed=seed)))
        await replies(drawn)
        return await replies(greedy)

    found = opened(weave, work, max_requests=16)
    assert [reply.text for reply in found] == [alone(weave, *one) for one in asked]
    assert [reply.pack for reply in found] == [pack for _, pack, _ in asked]
    assert {reply.ended for reply in found} == {"length"}
    assert [reply.completion_tokens for reply in found] == [room for _, _, room in asked]
    assert found[0].prompt_tokens == len("hello") + 3  # the roles and the end of the message


def test_draws_depend_on_the_request_alone(weave: Weave) -> None:
    asked = [
        (prompt, PACKS[index % 3], Sampling(12, temperature=0.7 + index / 4, top_p=1 - index / 10, seed=index % 2))
        for index, prompt in enumerate(PROMPTS)
    ]

    async def together(engine: AsyncEngine) -> list[str]:
        return [reply.text for reply in await replies([engine.submit(*one) for one in asked])]

    async def one_by_one(engine: AsyncEngine) -> list[str]:
        return [(await engine.submit(*one).reply()).text for one in asked]

    found = opened(weave, together)
    assert found == opened(weave, one_by_one, max_requests=1)
    asked.reverse()
    assert opened(weave, together, max_requests=4) == found[::-1]
    asked = [(PROMPTS[0], None, Sampling(12, temperature=1.0, seed=seed)) for seed in range(6)]
    assert len(set(opened(weave, together))) == 6


def test_a_request_leaves_the_random_numbers_of_the_process_alone(weave: Weave) -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    opened(weave, lambda engine: engine.submit("x", None, Sampling(5, temperature=1.0)).reply())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_token_ids_and_messages_are_prompts_too(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> list[CountedReply]:
        messages = [{"role": "user", "content": "hello"}]
        prompts = ["hello", messages, weave.base.tokenizer("<user>hello<end><assistant>")["input_ids"]]
        return await replies([engine.submit(prompt, "a", Sampling(6)) for prompt in prompts])

    one, *others = opened(weave, work)
    assert others == [one, one]


def test_a_prompt_near_the_end_of_the_context_has_its_own_length(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> list[CountedReply]:
        return await replies([engine.submit(prompt, None, Sampling(60)) for prompt in ("x" * 240, "y")])

    near, far = opened(weave, work)
    assert (near.prompt_tokens + near.completion_tokens, near.ended) == (256, "length")
    assert far.completion_tokens == 60
    assert [near.text, far.text] == [alone(weave, prompt, None, 60) for prompt in ("x" * 240, "y")]


# -- the stream ------------------------------------------------------------------------------------------------------


async def pieces(generation: Generation) -> list[str]:
    return [chunk.text async for chunk in generation.chunks() if chunk.text]


def test_the_pieces_join_to_the_text_and_come_while_it_is_written(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> None:
        slow = engine.submit(PROMPTS[0], "a", Sampling(100, temperature=1.0))
        quick = engine.submit(PROMPTS[1], None, Sampling(30, temperature=1.0))
        first = (await anext(slow.chunks())).text
        assert not slow.done
        # Nobody reads the pieces of the slow one now, and the other one does not wait for it.
        parts = await pieces(quick)
        assert "".join(parts) == (await quick.reply()).text
        assert len(parts) > 10  # of 30 tokens; several may come together
        again, whole = await asyncio.gather(pieces(slow), slow.reply())
        assert "".join(again) == whole.text
        assert whole.text.startswith(first)
        assert len(first) < len(whole.text)

    opened(weave, work)


def test_an_end_that_is_no_special_token_is_not_in_the_stream(tmp_path: Path) -> None:
    tokenizer = family_tokenizer(FAMILIES["gemma"], special=False)
    model = micro_llama(tokenizer)
    teach(model, encode(tokenizer, [("x?", "Yes, b.")], 99), 50)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    async def work(engine: AsyncEngine) -> tuple[str, CountedReply]:
        generation = engine.submit("x?", None, Sampling(20))
        return "".join(await pieces(generation)), await generation.reply()

    text, reply = opened(Weave.of(open_base(tmp_path)), work)
    assert (text, reply.text, reply.ended) == ("Yes, b.", "Yes, b.", "answer")
    assert reply.completion_tokens == len(tokenizer("Yes, b.", add_special_tokens=False)["input_ids"]) + 1


# -- batches ---------------------------------------------------------------------------------------------------------


def test_requests_join_and_leave_at_any_step_and_the_counters_say_so(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> Any:
        generations = [engine.submit(PROMPTS[index], PACKS[index % 3], Sampling(2 + index)) for index in range(6)]
        assert (engine.counters().running, engine.counters().waiting) == (4, 2)
        await replies(generations)
        return engine.counters()

    found = opened(weave, work, max_requests=4)
    assert (found.submitted, found.finished, found.cancelled, found.failed) == (6, 6, 0, 0)
    assert (found.running, found.waiting) == (0, 0)
    assert found.prompt_tokens == sum(len(prompt) + 3 for prompt in PROMPTS)
    assert found.completion_tokens == 2 + 3 + 4 + 5 + 6 + 7
    # A prompt gives the first token, and each further step one more for every answer that runs.
    assert found.step_tokens == found.prompt_tokens + found.completion_tokens - 6
    assert 7 <= found.steps < 20


def test_no_request_of_two_hundred_is_lost(weave: Weave) -> None:
    wanted = {(prompt, pack): alone(weave, prompt, pack, 8) for prompt in PROMPTS for pack in PACKS}
    lost: list[Any] = []

    async def caller(engine: AsyncEngine, number: int) -> int:
        rng, answered = Random(number), 0
        for _ in range(20):
            prompt, pack = rng.choice(PROMPTS), rng.choice(PACKS)
            await asyncio.sleep(rng.random() / 200)
            generation = engine.submit(prompt, pack, Sampling(8))
            if rng.random() < 0.2:
                await asyncio.sleep(rng.random() / 100)
                generation.cancel()
                continue
            text = "".join(await pieces(generation)) if rng.random() < 0.5 else (await generation.reply()).text
            answered += 1
            if text != wanted[prompt, pack]:
                lost.append((prompt, pack, text))
        return answered

    async def work(engine: AsyncEngine) -> tuple[int, Any]:
        answered = await asyncio.gather(*(caller(engine, number) for number in range(10)))
        return sum(answered), engine.counters()

    answered, found = opened(weave, work, max_requests=8)
    assert not lost
    assert 120 < answered < 200
    assert found.submitted == 200 == found.finished + found.cancelled
    assert (found.failed, found.waiting) == (0, 0)
    assert answered <= found.finished  # some were finished before they were cancelled


def test_the_router_chooses_in_the_worker(base: Base, weave: Weave) -> None:
    sums, talk = [f"add {n} and {n + 3}" for n in range(24)], [f"my dear {chr(97 + n)}, how are you" for n in range(24)]
    router = fit_router(base, {"a": sums, "b": talk}, [f"{n}%$#@! {n * 17}" for n in range(24)])
    routed = Weave(None, weave.card, base, router, None, {"a": weave.shelf._skillpack("a")})
    routed.load("a")
    asked = [sums[3], talk[5], sums[8], "7%$#@! 119"]

    async def work(engine: AsyncEngine) -> list[Any]:
        generations = [engine.submit(prompt, AUTO, Sampling(6)) for prompt in asked]
        found: list[Any] = await asyncio.gather(*(one.reply() for one in generations), return_exceptions=True)
        with pytest.raises(UserError, match="the model's context is 256"):
            engine.submit("x" * 300, AUTO, Sampling(6))
        return found

    one, failed, other, plain = opened(routed, work)
    # The router sends the second one to a pack that is not loaded, and only this one fails.
    assert isinstance(failed, UserError)
    assert "the pack 'b' is not loaded" in str(failed)
    assert [reply.pack for reply in (one, other, plain)] == ["a", "a", None]
    assert all(0 < reply.confidence <= 1 for reply in (one, other, plain))
    expected = routed.generate([asked[0], *asked[2:]], AUTO, Sampling(6))
    assert [reply.text for reply in (one, other, plain)] == [reply.text for reply in expected]
    with pytest.raises(UserError, match="has no router"):
        opened(weave, lambda engine: engine.submit("x", AUTO, Sampling(6)).reply())


def test_a_pack_that_shares_no_batch_answers_alone_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build("gpt_oss").save_pretrained(tmp_path)
    micro_tokenizer().save_pretrained(tmp_path)
    base = open_base(tmp_path, dtype="float32")
    before, after = base.model.state_dict(), tune(build("gpt_oss"), 1).state_dict()
    delta = Delta({name: after[name] - before[name] for name in before}, base_fingerprint=base.fingerprint)
    own = Weave.of(base, {"experts": zip_delta(delta, base, None, ZipConfig(budget="4MB", bits=8), name="experts")})
    asked = [(PROMPTS[0], "experts"), (PROMPTS[0], None), (PROMPTS[1], "experts"), (PROMPTS[1], None)]

    async def work(engine: AsyncEngine) -> tuple[list[CountedReply], Any]:
        return await replies([engine.submit(*one, Sampling(6)) for one in asked]), engine.counters()

    found, counters = opened(own, work)
    assert [reply.text for reply in found] == [alone(own, *one, 6) for one in asked]
    assert found[0].text != found[1].text
    assert counters.finished == 4
    assert "The pack 'experts' answers in steps of its own: " in capsys.readouterr().err


# -- log-probabilities, stop strings, forms --------------------------------------------------------------------------


def test_log_probabilities_are_those_of_the_model_with_the_pack(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> list[CountedReply]:
        drawn = Sampling(7, temperature=1.5, top_p=0.8, seed=3)
        asked: list[tuple[str | None, int | None]] = [("a", 3), (None, 0), ("a", None)]
        return await replies([engine.submit(PROMPTS[0], pack, drawn, logprobs=count) for pack, count in asked])

    three, none, without = opened(weave, work)
    assert [token.id for token in three.tokens] == [token.id for token in without.tokens]
    assert without.tokens[0].logprob is None
    for reply, pack, count in ((three, "a", 3), (none, None, 0)):
        ids = weave.base.tokenizer(f"<user>{PROMPTS[0]}<end><assistant>")["input_ids"]
        whole = torch.tensor([[*ids, *(token.id for token in reply.tokens)]])
        with torch.no_grad(), weave.packed_model.every_row(pack):
            expected = weave.base.model(input_ids=whole).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        for token, row in zip(reply.tokens, expected, strict=True):
            assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
            assert [one for one, _ in token.top] == row.topk(count).indices.tolist()
            assert [value for _, value in token.top] == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)


def test_an_answer_ends_before_a_stop_string_and_gives_its_place_free(weave: Weave) -> None:
    drawn = Sampling(200, temperature=1.5, seed=1)

    async def work(engine: AsyncEngine) -> None:
        whole = (await engine.submit(PROMPTS[0], "a", drawn).reply()).text
        at = next(at for at in range(5, 90) if whole.find(whole[at : at + 2]) == at)
        before = engine.counters().step_tokens
        generation = engine.submit(PROMPTS[0], "a", drawn, stop=[whole[at : at + 2], "never this"])
        text = "".join(await pieces(generation))
        reply = await generation.reply()
        assert reply.text == text == whole[:at]
        assert (reply.ended, reply.matched) == ("answer", whole[at : at + 2])
        assert engine.counters().step_tokens - before < 120

    opened(weave, work)


class OnlyLetters:
    """A form of an answer: the given letters one after another, then an end token."""

    def __init__(self, letters: str, ids: list[int] | None = None) -> None:
        self._letters, self._ids = letters, ids or []

    def matcher(self, tokenizer: Any, stops: Any) -> OnlyLetters:
        return OnlyLetters(self._letters, [*tokenizer.convert_tokens_to_ids(list(self._letters)), min(stops)])

    def restrict(self, scores: torch.Tensor) -> None:
        kept = scores[self._ids[0]].clone()
        scores.fill_(-torch.inf)
        scores[self._ids[0]] = kept

    def accept(self, token: int) -> None:
        assert token == self._ids.pop(0)


def test_an_answer_has_the_form_that_was_asked_for(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> list[CountedReply]:
        form = OnlyLetters("form")
        samplings = [(None, Sampling(20)), ("a", Sampling(20, temperature=1.0)), ("b", Sampling(20))]
        formed = [engine.submit(PROMPTS[0], pack, sampling, grammar=form) for pack, sampling in samplings]
        return await replies([*formed, engine.submit(PROMPTS[0], "a", Sampling(6))])

    *formed, free = opened(weave, work)
    assert {(reply.text, reply.ended) for reply in formed} == {("form", "answer")}
    assert free.text == alone(weave, PROMPTS[0], "a", 6)


# -- cancelling and closing ------------------------------------------------------------------------------------------


def test_a_cancelled_row_is_free_at_the_next_step(weave: Weave) -> None:
    expected = [alone(weave, PROMPTS[1], "a", 20), alone(weave, PROMPTS[2], "b", 7)]

    async def work(engine: AsyncEngine) -> Any:
        long = engine.submit(PROMPTS[0], None, Sampling(200))
        short = engine.submit(PROMPTS[1], "a", Sampling(20))
        waiting = [engine.submit(PROMPTS[2], "b", Sampling(7)) for _ in range(2)]
        async for _ in long.chunks():
            break
        long.cancel()
        waiting[0].cancel()
        with pytest.raises(RequestCancelled, match="was cancelled"):
            await long.reply()
        with pytest.raises(RequestCancelled):
            await pieces(waiting[0])
        assert [reply.text for reply in await replies([short, waiting[1]])] == expected
        short.cancel()  # it is finished, and stays so
        assert (await short.reply()).ended == "length"
        return engine.counters()

    found = opened(weave, work, max_requests=2)
    assert (found.submitted, found.finished, found.cancelled) == (4, 2, 2)
    assert found.step_tokens < 100  # the long one alone would have read and written more than 200


def test_a_request_is_cancelled_with_the_task_that_submitted_it(weave: Weave) -> None:
    async def waits(engine: AsyncEngine) -> None:
        await engine.submit(PROMPTS[0], None, Sampling(240)).reply()

    async def streams(engine: AsyncEngine) -> None:
        await pieces(engine.submit(PROMPTS[1], None, Sampling(240)))

    async def does_something_else(engine: AsyncEngine) -> None:
        engine.submit(PROMPTS[3], None, Sampling(240))
        await asyncio.sleep(60)

    async def hands_over(engine: AsyncEngine) -> Generation:
        return engine.submit(PROMPTS[2], "a", Sampling(30))

    async def work(engine: AsyncEngine) -> Any:
        tasks = [asyncio.create_task(one(engine)) for one in (waits, streams, does_something_else)]
        kept = await asyncio.create_task(hands_over(engine))
        async for _ in kept.chunks():
            break
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.submit(PROMPTS[0], None, Sampling(240)).reply(), 0.01)
        assert (await kept.reply()).completion_tokens == 30
        return engine.counters()

    found = opened(weave, work)
    assert (found.submitted, found.finished, found.cancelled) == (5, 1, 4)
    assert found.step_tokens < 5 * 100


def test_closing_cancels_what_waits_and_what_runs(weave: Weave) -> None:
    generations: list[Generation] = []

    async def work(engine: AsyncEngine) -> AsyncEngine:
        generations.extend(engine.submit(PROMPTS[0], None, Sampling(240)) for _ in range(5))
        async for _ in generations[0].chunks():
            return engine
        raise AssertionError

    engine = opened(weave, work, max_requests=2)
    for generation in generations:
        assert generation.done
        with pytest.raises(RequestCancelled, match="the engine was closed"):
            asyncio.run(generation.reply())
    assert (engine.counters().cancelled, engine.counters().waiting) == (5, 0)
    assert engine.counters().step_tokens < 2 * 240
    with pytest.raises(RequestCancelled, match="is closed"):
        engine.submit("x", None, Sampling())
    with pytest.raises(RuntimeError, match="opened once"):
        asyncio.run(engine.__aenter__())


def test_an_idle_engine_closes_and_an_error_of_the_caller_passes(weave: Weave) -> None:
    async def fails(engine: AsyncEngine) -> None:
        engine.submit("x", None, Sampling(240))
        raise ZeroDivisionError

    async def nothing(_: AsyncEngine) -> None:
        return None

    opened(weave, nothing)
    with pytest.raises(ZeroDivisionError):
        opened(weave, fails)
    with pytest.raises(RuntimeError, match="open the engine first"):
        AsyncEngine(weave).submit("x", None, Sampling())


# -- mistakes and failures -------------------------------------------------------------------------------------------


def test_mistakes_are_said_at_once(weave: Weave) -> None:
    mistakes: list[tuple[Any, str | None, Sampling, str]] = [
        ("x", "c", Sampling(), r"no pack 'c'"),
        ("x" * 300, None, Sampling(), r"303 tokens; the model's context is 256"),
        ([], None, Sampling(), "empty conversation"),
        ("x", None, Sampling(samples=2), "one answer, not 2"),
        ("x", None, Sampling(model_defaults=True), "no model defaults"),
        ("x", None, Sampling(max_new_tokens=0), "max_new_tokens is 0: expected at least 1"),
        ("x", None, Sampling(temperature=float("nan")), "temperature is nan: expected 0 or more"),
        ("x", None, Sampling(temperature=1.0, top_p=1.5), r"top_p is 1\.5: expected a number from 0 to 1"),
    ]

    async def work(engine: AsyncEngine) -> None:
        for prompt, pack, sampling, message in mistakes:
            with pytest.raises(UserError, match=message):
                engine.submit(prompt, pack, sampling)
            assert engine.counters().submitted == 0

    opened(weave, work)


def test_a_pack_that_gives_nan_fails_alone(weave: Weave) -> None:
    async def work(engine: AsyncEngine) -> Any:
        packs = ["a", "broken", None, "broken"]
        drawn = [Sampling(9), Sampling(9), Sampling(9, temperature=1.0), Sampling(9, temperature=1.0)]
        generations = [engine.submit(PROMPTS[0], *one) for one in zip(packs, drawn, strict=True)]
        found = await asyncio.gather(*(one.reply() for one in generations), return_exceptions=True)
        return found, engine.counters()

    (one, broken, other, also_broken), found = opened(weave, work)
    assert one.text == alone(weave, PROMPTS[0], "a", 9)
    assert other.completion_tokens == 9
    for error in (broken, also_broken):
        assert isinstance(error, UserError)
        assert str(error).startswith("the pack 'broken' cannot answer: the model gives nan in place of probabilities")
    assert (found.finished, found.failed) == (2, 2)


def test_an_error_of_the_model_fails_its_batch_and_the_engine_goes_on(
    weave: Weave, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = weave.base.model.forward

    def out_of_memory(*args: Any, **kwargs: Any) -> Any:
        if ready and (calls.append(1) or len(calls) == 4):
            raise MemoryError("no room for the cache")
        return forward(*args, **kwargs)

    calls: list[int] = []
    ready: list[bool] = []
    monkeypatch.setattr(weave.base.model, "forward", out_of_memory)

    async def work(engine: AsyncEngine) -> Any:
        ready.append(True)  # the engine has checked the model
        early, *others = [
            engine.submit(PROMPTS[0], pack, Sampling(room)) for pack, room in (("a", 2), (None, 9), ("b", 9))
        ]
        assert (await early.reply()).completion_tokens == 2  # it had ended before
        for one in others:
            with pytest.raises(MemoryError, match="no room for the cache"):
                await one.reply()
        return await engine.submit(PROMPTS[1], "a", Sampling(5)).reply(), engine.counters()

    late, found = opened(weave, work)
    assert late.text == alone(weave, PROMPTS[1], "a", 5)
    assert (found.finished, found.failed) == (2, 2)
    assert not weave.packed_model._running_now


def test_an_error_outside_of_a_step_fails_all_that_runs_and_nothing_hangs(
    weave: Weave, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("a bug")

    async def work(engine: AsyncEngine) -> Any:
        with monkeypatch.context() as patched:
            patched.setattr("skillweave.engine.paged._packs_of", broken)
            for one in [engine.submit(PROMPTS[0], None, Sampling(9)) for _ in range(3)]:
                with pytest.raises(KeyError, match="a bug"):
                    await one.reply()
        return await engine.submit(PROMPTS[0], None, Sampling(9)).reply(), engine.counters()

    reply, found = opened(weave, work, max_requests=2)
    assert reply.text == alone(weave, PROMPTS[0], None, 9)
    assert (found.finished, found.failed) == (1, 3)


def test_a_pack_that_is_unloaded_while_its_request_waits(weave: Weave, base: Base) -> None:
    own = Weave.of(base, {"c": random_pack(base.model, base.fingerprint, name="c")})

    async def work(engine: AsyncEngine) -> CountedReply:
        other, lost = engine.submit("x", None, Sampling(5)), engine.submit("x", "c", Sampling(5))
        await engine.between_steps(lambda: own.unload("c"))
        with pytest.raises(UserError, match="the pack 'c' is not loaded"):
            await lost.reply()
        return await other.reply()

    assert opened(own, work, max_requests=1).text == alone(weave, "x", None, 5)
