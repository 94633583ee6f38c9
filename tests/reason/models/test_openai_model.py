"""The client of OpenAI-compatible servers, against a real local server that fails in every way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import openai._base_client
import pytest

from helpers.fault_server import FaultServer
from skillweave.errors import UserError
from skillweave.reason.models import openai_model
from skillweave.reason.models.model import Completion, ModelCall, ModelUnreachable
from skillweave.reason.models.openai_model import OpenAIModel


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)
    monkeypatch.setattr(openai_model, "FIRST_WAIT", 0.005)


def call(text: str = "hello", seed: int = 0) -> ModelCall:
    return ModelCall((("user", text),), 0.5, 32, seed)


def ask(server: FaultServer, *calls: ModelCall, **options: Any) -> list[Completion]:
    async def go() -> list[Completion]:
        model = OpenAIModel(server.url, "tester", **{"timeout": 0.2, "retries": 3} | options)
        try:
            return await asyncio.gather(*(model.complete(one) for one in calls))
        finally:
            await model.close()

    return asyncio.run(go())


def failing(*faults: str) -> Callable[[int, dict[str, Any]], str]:
    return lambda number, body: faults[number] if number < len(faults) else "ok"


def test_a_call_and_its_completion() -> None:
    with FaultServer(lambda body: "hi", failing()) as server:
        assert ask(server, call(seed=7), api_key="secret") == [Completion("hi", "stop", 5, 3)]
    body = server.bodies[0]
    assert {key: body[key] for key in ("model", "temperature", "max_tokens", "seed")} == {
        "model": "tester",
        "temperature": 0.5,
        "max_tokens": 32,
        "seed": 7,
    }
    assert server.headers[0]["authorization"] == "Bearer secret"


@pytest.mark.parametrize("fault", ["slow", "limited", "error", "garbage", "cut", "empty", "hang-up"])
def test_passing_faults_are_tried_again(fault: str) -> None:
    with FaultServer(lambda body: "hi", failing(fault, fault)) as server:
        assert ask(server, call())[0].text == "hi"
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("slow", "in time"),
        ("limited", "429"),
        ("error", "500"),
        ("garbage", "cannot be read"),
        ("empty", "choices"),
        ("hang-up", "tries"),
    ],
)
def test_lasting_faults_end_with_what_happened(fault: str, said: str) -> None:
    with (
        FaultServer(lambda body: "hi", lambda number, body: fault) as server,
        pytest.raises(ModelUnreachable, match=said) as caught,
    ):
        ask(server, call(), retries=1)
    assert server.url in str(caught.value)
    assert len(server.bodies) == 2


@pytest.mark.parametrize(("fault", "said"), [("key", "OPENAI_API_KEY"), ("refused", "too long")])
def test_refusals_are_not_tried_again(fault: str, said: str) -> None:
    with (
        FaultServer(lambda body: "hi", lambda number, body: fault) as server,
        pytest.raises(UserError, match=said) as caught,
    ):
        ask(server, call(), api_key="sk-secret")
    assert not isinstance(caught.value, ModelUnreachable)
    assert len(server.bodies) == 1
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(("fault", "key"), [("no-seed", "seed"), ("new-limit", "max_tokens")])
def test_parameters_that_a_server_does_not_know_are_left_out(fault: str, key: str) -> None:
    with FaultServer(lambda body: "hi", lambda number, body: fault) as server:

        async def go() -> None:
            model = OpenAIModel(server.url, "tester", retries=0)
            assert [(await model.complete(call(seed=seed))).text for seed in (1, 2)] == ["hi", "hi"]
            await model.close()

        asyncio.run(go())
    assert [key in body for body in server.bodies] == [True, False, False]


def test_missing_usage_is_estimated_and_missing_content_is_empty() -> None:
    with FaultServer(lambda body: "12345", failing("no-usage", "thinking")) as server:
        assert ask(server, call("123456789")) == [Completion("12345", "stop", 3, 2)]
        assert ask(server, call()) == [Completion("", "length", 5, 3)]


def test_concurrency_is_bounded() -> None:
    def answer(body: dict[str, Any]) -> str:
        time.sleep(0.01)
        return "hi"

    with FaultServer(answer, failing()) as server:
        assert len(ask(server, *(call(seed=seed) for seed in range(20)), concurrency=3, timeout=5.0)) == 20
    assert server.most_in_flight <= 3


def test_the_server_is_checked_before_a_run() -> None:
    def check(url: str, name: str) -> None:
        async def go() -> None:
            model = OpenAIModel(url, name, retries=0, timeout=1.0)
            try:
                await model.check()
            finally:
                await model.close()

        asyncio.run(go())

    with FaultServer(lambda body: "hi", failing()) as server:
        check(server.url, "tester")
        with pytest.raises(UserError, match="did you mean 'tester'"):
            check(server.url, "testr")
        url = server.url
    with pytest.raises(UserError, match="no server answers"):
        check(url, "tester")


def test_identity_holds_no_secret() -> None:
    async def go() -> str:
        model = OpenAIModel("http://me:secret@localhost:1/v1?token=secret", "m", api_key="secret")
        await model.close()
        return model.identity

    assert asyncio.run(go()) == "http://localhost:1/v1#m"
