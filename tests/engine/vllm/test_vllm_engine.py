"""The engine vllm in front of servers that are told how to behave."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.fake_vllm import FakeVllm, serving
from helpers.weave_packs import random_pack
from skillweave.base import Sampling, open_base
from skillweave.engine import EngineBusy, RequestCancelled
from skillweave.engine.vllm import VllmEngine, VllmServer, export_vllm
from skillweave.engine.vllm.folder import BASE_NAME
from skillweave.engine.vllm.replicas import SLACK, Replica, choose
from skillweave.errors import UserError
from skillweave.weave import Weave

GREEDY = Sampling(max_new_tokens=20)


@pytest.fixture(scope="module")
def folder(micro_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("vllm")
    base = open_base(micro_base)
    packs = {name: random_pack(base.model, base.fingerprint, name=name, seed=seed) for seed, name in enumerate("ab")}
    Weave.write(place / "weave", base, packs)
    return export_vllm(place / "weave", place / "out", base=micro_base).path


@pytest.fixture(scope="module")
def answer(folder: Path) -> list[int]:
    engine = VllmEngine(folder, ["http://localhost:1"])
    return engine.tokenizer(None)("the answer is here", add_special_tokens=False)["input_ids"]


def opened(folder: Path, fakes: list[FakeVllm], work: Callable[[VllmEngine], Awaitable[Any]], **options: Any) -> Any:
    """What ``work`` returns. Nothing may hang: after half a minute the test fails."""

    async def main() -> Any:
        async with VllmEngine(folder, [fake.url for fake in fakes], **options) as engine:
            return await work(engine)

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_an_answer_is_streamed_with_its_tokens_and_log_probabilities(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        generation = engine.submit("a b c", "a", Sampling(20, temperature=0.7, top_p=0.9, seed=2**64 - 1), logprobs=1)
        chunks = [chunk async for chunk in generation.chunks()]
        reply = await generation.reply()
        assert "".join(chunk.text for chunk in chunks) == reply.text
        assert reply.text == engine.tokenizer("a").decode(answer)
        assert [token.id for token in reply.tokens] == answer
        assert {token.logprob for token in reply.tokens} == {-0.5}
        assert [token.top for token in reply.tokens] == [((token, -0.5),) for token in answer]
        assert (reply.pack, reply.ended, reply.completion_tokens) == ("a", "answer", len(answer) + 1)
        counters = engine.counters()
        assert (counters.submitted, counters.finished, counters.running, counters.waiting) == (1, 1, 0, 0)
        assert (counters.prompt_tokens, counters.completion_tokens) == (reply.prompt_tokens, reply.completion_tokens)
        cut = await engine.submit("a b c", None, Sampling(2)).reply()
        assert (cut.ended, cut.completion_tokens) == ("length", 2)

    with serving(FakeVllm(answer)) as fakes:
        opened(folder, fakes, work)
    first, second = fakes[0].bodies
    assert (first["model"], second["model"]) == ("a", BASE_NAME)
    assert (first["temperature"], first["top_p"], first["seed"]) == (0.7, 0.9, -1)
    assert first["ignore_eos"]
    assert first["stop_token_ids"]
    # Both adapters were missing there, and were loaded from the folder.
    assert [body["lora_path"] for body in fakes[0].loaded] == [str(folder / "adapters" / name) for name in "ab"]


def test_a_stop_string_ends_the_answer_and_the_connection(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        generation = engine.submit("a", "b", GREEDY, stop=["er is", "zzz"])
        texts = [chunk.text async for chunk in generation.chunks()]
        reply = await generation.reply()
        whole = engine.tokenizer("b").decode(answer)
        assert reply.text == "".join(texts) == whole[: whole.index("er is")]
        assert reply.matched == "er is"
        await until(lambda: fakes[0].given_up == 1)

    with serving(FakeVllm(answer, delay=0.02)) as fakes:
        opened(folder, fakes, work)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", ["cancel", "waiting task", "leaving"])
def test_a_cancelled_request_is_given_up_by_vllm(folder: Path, answer: list[int], how: str) -> None:
    async def work(engine: VllmEngine) -> Any:
        generation = engine.submit("a", "a", GREEDY)
        await until(lambda: generation.completion_tokens > 0)
        if how == "cancel":
            generation.cancel()
        elif how == "waiting task":
            task = asyncio.create_task(generation.reply())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        else:
            return generation
        assert generation.done
        with pytest.raises(RequestCancelled):
            await generation.reply()
        await until(lambda: fakes[0].given_up == 1)
        assert engine.counters().cancelled == 1
        assert engine.replicas[0].load == 0
        return generation

    with serving(FakeVllm(answer * 3, delay=0.1)) as fakes:
        generation = opened(folder, fakes, work)
        assert isinstance(generation.error, RequestCancelled)


def test_a_request_whose_server_dies_before_its_first_token_goes_to_another(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        replies = await asyncio.gather(*(engine.submit("a", "a", GREEDY).reply() for _ in range(4)))
        assert {reply.completion_tokens for reply in replies} == {len(answer) + 1}
        broken = engine.replicas[0]
        assert broken.retry_at > time.monotonic()
        asked = len(fakes[0].bodies)
        await engine.submit("a", "a", GREEDY).reply()
        assert len(fakes[0].bodies) == asked
        fakes[0].dies_after, broken.retry_at, fakes[0].adapters = None, 0.0, []  # it was started again
        for fake in fakes:
            fake.delay = 0.02
        await asyncio.gather(*(engine.submit("a", "a", GREEDY).reply() for _ in range(12)))
        assert len(fakes[0].bodies) > asked
        assert broken.failures == 0

    with serving(FakeVllm(answer, dies_after=0), FakeVllm(answer)) as fakes:
        opened(folder, fakes, work)


def test_a_request_whose_server_dies_later_fails_clearly(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        generation = engine.submit("a", "a", GREEDY)
        with pytest.raises(UserError, match=r"failed while it wrote this answer, after 2 tokens.*again"):
            await generation.reply()
        assert engine.counters().failed == 1

    with serving(FakeVllm(answer, dies_after=2)) as fakes:
        opened(folder, fakes, work)


def test_a_server_that_lost_an_adapter_gets_it_again(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        fakes[0].adapters.clear()
        reply = await engine.submit("a", "b", GREEDY).reply()
        assert reply.ended == "answer"

    with serving(FakeVllm(answer)) as fakes:
        opened(folder, fakes, work)
    assert [body["lora_name"] for body in fakes[0].loaded] == ["a", "b", "b"]


def test_packs_stay_with_their_servers(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        for _ in range(3):
            for pack in ("a", "b"):
                await engine.submit("a", pack, GREEDY).reply()

    with serving(FakeVllm(answer), FakeVllm(answer)) as fakes:
        opened(folder, fakes, work)
    assert {tuple(body["model"] for body in fake.bodies) for fake in fakes} == {("a",) * 3, ("b",) * 3}


def test_a_pack_leaves_a_server_that_is_much_busier() -> None:
    one, two = Replica("1", load=SLACK - 1, served={"a"}), Replica("2", served={"b"})
    assert choose([one, two], "a", 0.0) is one
    assert choose([one, two], "c", 0.0) is two
    one.load += 1
    assert choose([one, two], "a", 0.0) is two
    two.failed("gone", clock=lambda: 10.0)
    assert choose([one, two], "b", 10.5) is one
    assert choose([one, two], "b", 11.0) is two
    two.failed("gone", clock=lambda: 11.0)
    assert two.retry_at == 13.0
    assert choose([one, two], "b", 11.0, [one]) is None


def test_what_is_busy_or_refused_is_said(folder: Path, answer: list[int]) -> None:
    async def work(engine: VllmEngine) -> None:
        fakes[0].delay = 10.0
        engine.submit("a", "a", GREEDY)
        with pytest.raises(EngineBusy, match="1 requests wait"):
            engine.submit("a", "a", GREEDY)

    async def refused(engine: VllmEngine) -> None:
        for status, error, text in ((503, EngineBusy, "no more requests"), (400, UserError, "refuses the request")):
            fakes[0].status = status
            with pytest.raises(error, match=text):
                await engine.submit("a", "a", GREEDY).reply()
        with pytest.raises(UserError, match="no adapter 'aa'; did you mean 'a'"):
            engine.submit("a", "aa", GREEDY)
        with pytest.raises(UserError, match="64"):  # --max-model-len of the server, or the base's own context
            engine.submit([5] * 64, "a", GREEDY)
        with pytest.raises(UserError, match="hidden states"):
            await engine.route("a")

    with serving(FakeVllm(answer)) as fakes:
        opened(folder, fakes, work, max_waiting=1)
    with serving(FakeVllm(answer)) as fakes:
        opened(folder, fakes, refused)


def test_servers_that_cannot_answer_are_refused_at_the_start(folder: Path, answer: list[int], tmp_path: Path) -> None:
    async def nothing(engine: VllmEngine) -> None: ...

    with pytest.raises(UserError, match=r"no vLLM server can be reached: .*ConnectError"):
        opened(folder, [FakeVllm([], url="http://127.0.0.1:9")], nothing)
    with serving(FakeVllm(answer, acts=False)) as fakes, pytest.raises(UserError, match="'a' does not act"):
        opened(folder, fakes, nothing)
    with serving(FakeVllm(answer, may_load=False)) as fakes, pytest.raises(UserError, match="RUNTIME_LORA_UPDATING"):
        opened(folder, fakes, nothing)
    with pytest.raises(UserError, match=r"no serve\.json"):
        VllmEngine(tmp_path, ["http://localhost:1"])
    with pytest.raises(UserError, match="is no URL"):
        VllmEngine(folder, ["localhost:8000"])


def test_a_server_that_does_not_start_is_an_error_with_its_output(folder: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no vllm here\nexit 3\n")
    python.chmod(0o755)

    async def main() -> None:
        async with VllmEngine(folder, [VllmServer(folder, port=9, python=python, log=tmp_path / "log")]):
            pass

    with pytest.raises(UserError, match="ended with 3 while it started:\nno vllm here"):
        asyncio.run(main())
