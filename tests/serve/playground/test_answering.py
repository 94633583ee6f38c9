"""One answer of the playground: its states, whom the server's observer hears of, and what happens if nobody waits."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from helpers.fake_engine import FakeEngine, FakeService
from skillweave.base import Sampling
from skillweave.engine.interface import RequestCancelled
from skillweave.errors import UserError
from skillweave.micro import micro_tokenizer
from skillweave.serve.admission import Admission
from skillweave.serve.errors import ApiError
from skillweave.serve.playground.answering import AnswerState, answer
from skillweave.serve.playground.together import together
from skillweave.weave import Route

ASK = [{"role": "user", "content": "3 1 2"}]


def ran(work: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        return await asyncio.wait_for(work, 20)

    return asyncio.run(limited())


def service_of(text: str = "1 2 3", **more: Any) -> FakeService:
    return FakeService(FakeEngine(micro_tokenizer(), lambda _: text, **more))


def opened() -> Admission:
    admission = Admission(4)
    admission.open()
    return admission


async def all_states(service: FakeService, model: str = "sort", longest: int = 50) -> list[AnswerState]:
    return [one async for one in answer(service, opened(), model, ASK, Sampling(max_new_tokens=longest))]


def test_an_answer_grows_to_its_end() -> None:
    async def work() -> None:
        service = service_of(delay=0.06)
        states = await all_states(service)
        texts = [one.text for one in states]
        assert texts[0] == ""
        assert texts[-1] == "1 2 3"
        assert len(set(texts)) > 3
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
        last = states[-1]
        assert (last.ended, last.tokens, last.resolved.name) == ("complete", 5, "sort")
        assert last.rate == pytest.approx(4 / (last.seconds - (last.first_token or 0)))
        noted = service.observer
        assert (noted.started_, noted.firsts, noted.tokens) == (1, 1, 4)
        ((figures, reason),) = noted.finished_
        assert (figures.model, figures.completion_tokens, reason) == ("sort", 6, "stop")
        assert (noted.failed_, service.held) == ([], [])

    ran(work())


def test_fast_tokens_are_shown_together() -> None:
    states = ran(all_states(service_of("x" * 200), longest=300))
    assert states[-1].text == "x" * 200
    assert len(states) < 50


def test_an_answer_that_is_too_long_is_cut_off_and_told() -> None:
    service = service_of()
    assert ran(all_states(service, longest=2))[-1].ended == "cut off"
    assert service.observer.finished_[0][1] == "length"


def test_the_router_is_asked_for_auto() -> None:
    scores = {"sort": 0.8, "json": 0.2}
    states = ran(all_states(service_of(route_to=Route("sort", 0.8, scores)), "auto"))
    assert (states[0].resolved.route, states[0].resolved.pack, states[0].scores) == ("router", "sort", scores)
    to_base = ran(all_states(service_of(route_to=Route(None, 0.9, {"base": 0.9})), "auto"))[0].resolved
    assert (to_base.name, to_base.pack) == ("base", None)


@pytest.mark.parametrize("longest", [0, 2001])
def test_the_limits_are_those_of_the_api(longest: int) -> None:
    with pytest.raises(UserError, match="expected 1 to 2000"):
        ran(all_states(service_of(), longest=longest))


def test_nothing_is_asked_before_the_engine_is_open_or_when_it_stops() -> None:
    async def work() -> None:
        service, admission = service_of(), Admission(4)
        for state, told in (("starting", "still being loaded"), ("stopping", "is stopping")):
            admission.state = state  # type: ignore[assignment]
            with pytest.raises(UserError, match=told):
                await anext(answer(service, admission, "sort", ASK, Sampling()))
        assert service.engine.requests == []

    ran(work())


def test_a_server_that_stops_waits_for_an_answer() -> None:
    async def work() -> None:
        admission = opened()
        states = answer(service_of(delay=0.02), admission, "sort", ASK, Sampling(max_new_tokens=50))
        await anext(states)
        draining = asyncio.create_task(admission.drain(10))
        assert [one async for one in states][-1].ended == "complete"
        assert await draining == 0

    ran(work())


def test_an_answer_is_given_up_at_the_end_of_the_grace_time() -> None:
    async def work() -> None:
        service, admission = service_of("x" * 500, delay=0.02), opened()
        states = answer(service, admission, "sort", ASK, Sampling(max_new_tokens=600))
        await anext(states)
        assert await admission.drain(0.1) == 1
        with pytest.raises(RequestCancelled):
            async for _ in states:
                pass
        assert service.engine.generations[0].cancelled
        assert (admission.running, service.held) == (set(), [])

    ran(work())


def test_answers_of_the_playground_and_of_the_api_have_one_limit() -> None:
    async def work() -> None:
        admission = Admission(1)
        admission.open()
        states = answer(service_of(), admission, "sort", ASK, Sampling(max_new_tokens=50))
        await anext(states)
        with pytest.raises(ApiError, match="answers 1 requests already"):
            await anext(answer(service_of(), admission, "sort", ASK, Sampling()))
        await states.aclose()
        assert admission.full is None

    ran(work())


def test_an_answer_that_nobody_waits_for_is_given_up() -> None:
    async def work() -> None:
        service = service_of("x" * 500, delay=0.01)
        states = answer(service, opened(), "sort", ASK, Sampling(max_new_tokens=600))
        await anext(states)
        await anext(states)
        assert service.held == ["sort"]
        await states.aclose()
        assert service.engine.generations[0].cancelled
        assert service.held == []
        assert len(service.observer.failed_) == 1
        assert service.observer.finished_ == []

    ran(work())


def test_a_complete_answer_that_is_left_has_not_failed() -> None:
    async def work() -> None:
        service = service_of()
        states = answer(service, opened(), "sort", ASK, Sampling())
        async for state in states:
            if state.ended:
                break
        await states.aclose()
        assert (len(service.observer.finished_), service.observer.failed_) == (1, [])

    ran(work())


def test_an_error_of_the_model_is_told_once() -> None:
    service = service_of("x" * 50, breaks=RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        ran(all_states(service))
    assert len(service.observer.failed_) == 1
    assert service.held == []


async def counted(upto: int, pause: float, left: list[int]) -> AsyncIterator[int]:
    try:
        for at in range(upto):
            await asyncio.sleep(pause)
            yield at
    finally:
        left.append(upto)


def test_streams_are_followed_together() -> None:
    async def work() -> None:
        left: list[int] = []
        seen = [pair async for pair in together([counted(3, 0.01, left), counted(6, 0.01, left)])]
        assert seen[-1] == (2, 5)
        assert left == [3, 6]
        assert [pair async for pair in together([])] == []
        assert [pair async for pair in together([counted(0, 0, left)])] in ([], [(None,)])

    ran(work())


def test_leaving_streams_ends_them() -> None:
    async def work() -> None:
        left: list[int] = []
        both = together([counted(1000, 0.01, left), counted(2000, 0.01, left)])
        await anext(both)
        await both.aclose()
        assert sorted(left) == [1000, 2000]

    ran(work())


def test_an_error_of_one_stream_ends_the_other() -> None:
    async def broken() -> AsyncIterator[int]:
        yield 1
        raise RuntimeError("broken")

    async def work() -> None:
        left: list[int] = []
        with pytest.raises(RuntimeError, match="broken"):
            async for _ in together([broken(), counted(5, 0.01, left)]):
                pass
        assert left == [5]

    ran(work())
